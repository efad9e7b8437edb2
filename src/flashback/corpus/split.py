"""A fixed split of a corpus by the hash of the title, and a guard against copies across it.

Documentation is full of copies (vendored packages, cloned docstrings), so a split by title alone
would leak: whatever repeats a held-out document is kept out of the other parts.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, get_args

from flashback.corpus.documents import Document

Split = Literal["base", "adapter", "evaluation"]
SPLITS: tuple[Split, ...] = get_args(Split)

GRAM = 8
"""Words in the n-grams by which overlap is measured."""
_PARAGRAPH_OVERLAP = 0.5
_DOCUMENT_OVERLAP = 0.3
_BEGINNING = 128
"""Words; readers see no more of a passage."""
_TERM = re.compile(r"\w+")


def split_of(title: str) -> Split:
    """80 % of titles are `base`, 15 % `adapter`, 5 % `evaluation`; the same on every machine."""
    percent = int.from_bytes(hashlib.blake2b(title.encode(), digest_size=8).digest()) % 100
    return "base" if percent < 80 else "adapter" if percent < 95 else "evaluation"


class Overlap:
    """The share of a text's 8-grams that also stand in a set of reference texts."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._known: set[int] = set()
        self._whole: list[str] = []
        for text in texts:
            terms = _terms(text)
            self._known.update(_grams(terms))
            self._whole.append(_runs(terms))

    def share(self, text: str) -> float:
        """Between 0 (nothing in common, or shorter than an n-gram) and 1 (all of it)."""
        return self._share(_terms(text))

    def _share(self, terms: Sequence[str]) -> float:
        grams = list(_grams(terms))
        return sum(gram in self._known for gram in grams) / len(grams) if grams else 0.0

    def repeats(self, text: str) -> float:
        """The share of a text's beginning; all of it, if a shorter text stands in the reference."""
        terms = _terms(text)[:_BEGINNING]
        if len(terms) >= GRAM:
            return self._share(terms)
        return float(bool(terms) and any(_runs(terms) in one for one in self._whole))

    def without_copies(self, document: Document) -> Document | None:
        """The document less paragraphs that repeat the reference; None if it is mostly a copy."""
        paragraphs = document.text.split("\n\n")
        kept = [text for text in paragraphs if self.share(text) < _PARAGRAPH_OVERLAP]
        text = "\n\n".join(kept)
        if len(text) < (1 - _DOCUMENT_OVERLAP) * len(document.text):
            return None
        return Document(document.id, document.title, text)


def _terms(text: str) -> list[str]:
    """Words in lower case, without punctuation."""
    return _TERM.findall(text.lower())


def _runs(terms: Sequence[str]) -> str:
    """Words joined by spaces, so that consecutive words are a substring."""
    return f" {' '.join(terms)} "


def _grams(terms: Sequence[str]) -> Iterator[int]:
    return (hash(tuple(terms[i : i + GRAM])) for i in range(len(terms) - GRAM + 1))


def split_documents(documents: Iterable[Document]) -> dict[Split, list[Document]]:
    """Every document in its part; what largely repeats an evaluation document is in no other.

    That is: documents of which over 30 % are such paragraphs, and paragraphs half of whose 8-grams
    an evaluation document has. Shorter repetitions remain.
    """
    parts: dict[Split, list[Document]] = {name: [] for name in SPLITS}
    for document in documents:
        parts[split_of(document.title)].append(document)
    held_out = Overlap(document.text for document in parts["evaluation"])
    for name in ("base", "adapter"):
        cleaned = (held_out.without_copies(document) for document in parts[name])
        parts[name] = [document for document in cleaned if document is not None]
    return parts
