"""Documents to passages: sentence-aware cuts of about `words` words, near-identical ones once.

Passages are kept as text; the reader's own tokenizer cuts them to m tokens when they are arranged,
so that one index serves every reader.
"""

import re
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

from rensa import RMinHash

from flashback.corpus.documents import Document

DEFAULT_WORDS = 100
"""About 128 tokens of English (the paper's m)."""

_SENTENCE = re.compile(r".+?(?:[.!?][\"')\]]*(?=\s)|\n[ \t]*\n|\Z)\s*", re.DOTALL)
_WORD = re.compile(r"\S+\s*")
_TERM = re.compile(r"\w+")


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


class NearDuplicates:
    """Remembers which texts were seen, up to small edits, in bounded memory.

    MinHash (Broder 1997) over 3-word shingles, `BANDS` bands of `ROWS` values: a text is taken for
    a repetition when one band repeats, which at Jaccard similarity J happens with probability
    1 - (1 - J^ROWS)^BANDS: 0.99 at 0.98, 0.56 at 0.9, 0.01 at 0.7. The bands live in a temporary
    SQLite database that spills to disk.
    """

    BANDS = 4
    ROWS = 16

    def __init__(self) -> None:
        self._seen = sqlite3.connect("", isolation_level=None)
        self._seen.execute("PRAGMA journal_mode = OFF")
        self._seen.execute("CREATE TABLE seen (band INTEGER PRIMARY KEY) WITHOUT ROWID")
        self._seen.execute("BEGIN")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._seen.close()

    def seen_before(self, text: str) -> bool:
        """Whether a text near-identical to this one was given before; remembers this one."""
        bands = self._bands(text)
        marks = ",".join("?" * len(bands))
        query = f"SELECT 1 FROM seen WHERE band IN ({marks}) LIMIT 1"
        if self._seen.execute(query, bands).fetchone():
            return True
        self._seen.executemany("INSERT OR IGNORE INTO seen VALUES (?)", [(b,) for b in bands])
        return False

    def _bands(self, text: str) -> list[int]:
        terms = _TERM.findall(text.lower()) or [text]
        shingles = [" ".join(terms[i : i + 3]) for i in range(max(1, len(terms) - 2))]
        sketch = RMinHash(num_perm=self.BANDS * self.ROWS, seed=0)
        sketch.update(shingles)
        digest = sketch.digest()
        return [
            hash((band, *digest[band * self.ROWS : (band + 1) * self.ROWS]))
            for band in range(self.BANDS)
        ]
