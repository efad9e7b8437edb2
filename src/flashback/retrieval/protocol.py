"""The protocol of retrievers."""

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from flashback.corpus.place import Place
from flashback.errors import SettingsError
from flashback.settings import RetrievalSettings, SearchOptions


@dataclass(frozen=True)
class Hit:
    """A retrieved passage."""

    id: str
    document_id: str
    title: str
    text: str
    """The passage as the reader gets it, with its title in front if the index was made so."""
    score: float
    """Higher is better; only comparable within one retriever, and by ratio, see `near_best`: for
    distances or logits set `min_relative_score` to 0."""
    place: Place | None = None
    """Where in its document it stands, if that is known."""

    @property
    def source(self) -> str:
        """Its title (or document) and place, for people: `manual.pdf, page 3`."""
        name = self.title or self.document_id
        place = "" if self.place is None else str(self.place)
        return f"{name}, {place}" if place else name


class Retriever(Protocol):
    """Finds passages for plain-text queries.

    With a lookahead, and in the server, it is called from other threads: one at a time for each
    text, so several at a time if several texts are written.
    """

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        """The best `options.k` hits of each query, best first; fewer or none if there are none."""
        ...


@runtime_checkable
class Renewable(Retriever, Protocol):
    """A retriever that is replaced while it is in use: one version at a time."""

    @property
    def name(self) -> str:
        """As its user calls it, and as errors about it begin: `index NAME: `."""
        ...

    @property
    def current(self) -> Retriever:
        """The version in use; it stays usable when a newer one takes its place."""
        ...

    @property
    def version(self) -> str:
        """A short name of the version in use, which says what is in it."""
        ...

    def renew(self) -> bool:
        """Take the newest version into use; whether there was another one.

        Raises:
            FlashBackError: the newest version is unusable; the one in use stays.
        """
        ...


@runtime_checkable
class Sampled(Protocol):
    """What gives some of its passages to look at."""

    def sample(self) -> list[str]:
        """The texts of some passages that stand for all, as a reader gets them."""
        ...


class NoRetriever:
    """Finds nothing: the retriever of a pattern without passages."""

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        """See `Retriever.search`."""
        return [[] for _ in queries]


def ask(retriever: Retriever, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
    """What a retriever finds, which may be anybody's.

    Raises:
        SettingsError: it is no list of hits for every query.
    """
    found: object = retriever.search(queries, options)
    if (
        isinstance(found, list | tuple)
        and len(found) == len(queries)
        and all(map(_are_hits, found))
    ):
        return list(found)
    raise SettingsError(
        f"retriever {type(retriever).__name__}: search returned {reprlib.repr(found)}; expected a "
        f"list of flashback.Hit for each of the queries ({len(queries)})"
    )


def _are_hits(found: object) -> bool:
    return isinstance(found, list | tuple) and all(isinstance(hit, Hit) for hit in found)


def search(
    retriever: Retriever, queries: Sequence[str], settings: RetrievalSettings
) -> list[list[Hit]]:
    """What the reader is shown for each query: at most k hits, none much worse than the best."""
    found = ask(retriever, queries, settings.search_options)
    return [near_best(hits, settings.min_relative_score) for hits in found]


def near_best(hits: Sequence[Hit], share: float) -> list[Hit]:
    """The hits that score at least this share of the best one; all if its score is not positive."""
    if not hits or hits[0].score <= 0:
        return list(hits)
    return [hit for hit in hits if hit.score >= share * hits[0].score]
