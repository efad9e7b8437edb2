"""Documents to passages: sentence-aware cuts of about `words` words.

Passages are kept as text; the reader's own tokenizer cuts them to m tokens when they are arranged,
so that one index serves every reader.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from flashback.corpus.documents import Document

DEFAULT_WORDS = 100
"""About 128 tokens of English (the paper's m)."""

_SENTENCE = re.compile(r".+?(?:[.!?][\"')\]]*(?=\s)|\n[ \t]*\n|\Z)\s*", re.DOTALL)
_WORD = re.compile(r"\S+\s*")


@dataclass(frozen=True)
class Passage:
    """A piece of a document, as text."""

    id: str
    document_id: str
    title: str
    text: str


def cut(text: str, words: int) -> Iterator[str]:
    """Cut `text` into pieces of at most `words` words, between sentences where that is possible.

    No word is lost, repeated or moved: the pieces' words, in order, are the text's.
    """
    piece, size = "", 0
    for sentence in _SENTENCE.findall(text):
        length = len(sentence.split())
        if size and size + length > words:
            yield piece.strip()
            piece, size = "", 0
        if length > words:  # a sentence longer than a passage is cut between words
            tokens = _WORD.findall(sentence.lstrip())
            rest = (length - 1) // words * words
            for start in range(0, rest, words):
                yield "".join(tokens[start : start + words]).strip()
            sentence, length = "".join(tokens[rest:]), length - rest
        piece += sentence
        size += length
    if size:
        yield piece.strip()


def cut_documents(documents: Iterable[Document], words: int = DEFAULT_WORDS) -> Iterator[Passage]:
    """Stream the passages of a stream of documents, numbered within each document."""
    current, number = None, 0
    for document in documents:
        if document.id != current:
            current, number = document.id, 0
        for text in cut(document.text, words):
            yield Passage(f"{document.id}#{number}", document.id, document.title, text)
            number += 1
