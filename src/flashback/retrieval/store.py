"""What all stores need: writes that wait for a commit, names as keys, a text's terms."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import TypeVar

import tantivy

from flashback.corpus.passages import Passage
from flashback.retrieval import analysis
from flashback.retrieval.protocol import Hit, storable
from flashback.settings import SearchOptions

Item = TypeVar("Item")


class Pending:
    """What was added and deleted since the last commit, in memory; one writer at a time."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.added: list[Passage] = []
        self.deleted: dict[str, None] = {}
        """Documents of the store; they are deleted before anything is added."""

    def add(self, passages: Iterable[Passage]) -> None:
        """See `Writable.add`."""
        self.added += passages

    def delete(self, documents: Iterable[str]) -> None:
        """See `Writable.delete`."""
        gone = dict.fromkeys(documents)
        self.deleted |= gone
        self.added = [passage for passage in self.added if passage.document_id not in gone]

    def clear(self) -> None:
        """Forget what has been committed."""
        self.added, self.deleted = [], {}

    def __bool__(self) -> bool:
        return bool(self.added or self.deleted)


class BufferedWrites:
    """The part of `Writable` that is the same in every store: writes wait for its commit."""

    def __init__(self) -> None:
        """Begin with nothing to write."""
        self._pending = Pending()

    def add(self, passages: Iterable[Passage]) -> None:
        """See `Writable`; one whose id is there already takes its place."""
        self._pending.add(passages)

    def delete(self, documents: Iterable[str]) -> None:
        """See `Writable`."""
        self._pending.delete(documents)


def chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """The items, `size` at a time."""
    return (items[at : at + size] for at in range(0, len(items), size))


def shown(passage: Passage) -> str:
    """A passage as a reader gets it: its title in front."""
    heading = passage.title if passage.heading is None else passage.heading
    return f"{heading}\n{passage.text}" if heading else passage.text


def key_of(name: str) -> str:
    """A name as 32 hexadecimal digits, which no store's language takes for anything else."""
    return hashlib.blake2b(storable(name).encode(), digest_size=16).hexdigest()


def terms_of(text: str, *, query: bool = False) -> Counter[str]:
    """The stems of a text, as the BM25 index has them, and how often each stands in it."""
    return Counter(_analyzer().analyze(analysis.terms(storable(text), query=query)))


@cache
def _analyzer() -> tantivy.TextAnalyzer:
    return analysis.analyzer()


def good_enough(hits: Iterable[Hit], options: SearchOptions) -> list[Hit]:
    """Those that have something in common with the query and the least score, best first."""
    good = [hit for hit in hits if hit.score > 0 and hit.score >= options.min_score]
    return sorted(good, key=lambda hit: -hit.score)


def one_line(error: BaseException) -> str:
    """What a store's client says, in one short line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
