"""The protocol of retrievers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from flashback.settings import SearchOptions


@dataclass(frozen=True)
class Hit:
    """A retrieved passage."""

    id: str
    document_id: str
    title: str
    text: str
    """The passage as the reader gets it, with its title in front if the index was made so."""
    score: float
    """Higher is better; only comparable within one retriever."""


class Retriever(Protocol):
    """Finds passages for plain-text queries.

    With a lookahead, and in the server, it is called from other threads: one at a time for each
    text, so several at a time if several texts are written.
    """

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        """The best `options.k` hits of each query, best first; fewer or none if there are none."""
        ...


class NoRetriever:
    """Finds nothing: the retriever of a pattern without passages."""

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        """See `Retriever.search`."""
        return [[] for _ in queries]
