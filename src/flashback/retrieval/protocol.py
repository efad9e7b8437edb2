"""The protocol of retrievers."""

import reprlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from flashback.corpus.passages import Passage
from flashback.corpus.place import Place
from flashback.declared import check_type
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
class Combined(Retriever, Protocol):
    """A retriever made of others."""

    @property
    def parts(self) -> Sequence[Retriever]:
        """The others, in their order."""
        ...

    def over(self, parts: Sequence[Retriever]) -> Retriever:
        """The same, of so many other ones, such as newer versions of them."""
        ...


def over_leaves(retriever: Retriever, change: Callable[[Retriever], Retriever]) -> Retriever:
    """The same retriever with each that is not made of others changed."""
    if isinstance(retriever, Combined):
        return retriever.over([over_leaves(part, change) for part in retriever.parts])
    return change(retriever)


def leaves_of(retriever: Retriever) -> list[Retriever]:
    """All that a retriever is made of in the end: itself, if it is not made of others."""
    if isinstance(retriever, Combined):
        return [leaf for part in retriever.parts for leaf in leaves_of(part)]
    return [retriever]


def failures_of(retriever: object) -> int:
    """How many queries of a retriever have failed and found nothing, if it goes on then."""
    found = getattr(retriever, "failures", 0)
    return found if isinstance(found, int) else 0


@runtime_checkable
class Writable(Retriever, Protocol):
    """A retriever whose passages change while it is searched. One writer at a time."""

    def add(self, passages: Iterable[Passage]) -> None:
        """Add passages at the next commit; of a document that is there, delete it first."""
        ...

    def delete(self, documents: Iterable[str]) -> None:
        """Remove all passages of documents, by document id, at the next commit.

        Unknown ids are passed over; what is added behind it stays.
        """
        ...

    def commit(self) -> None:
        """Make what was added and deleted lasting, in the order of the calls, all or nothing.

        Stores without transactions (Milvus, Qdrant) may stop half-way at a failure; they say so.
        """
        ...

    def refresh(self) -> None:
        """Search what was committed before from now on; until then a search may see less."""
        ...


@runtime_checkable
class Sampled(Protocol):
    """What gives some of its passages to look at."""

    def sample(self) -> list[str]:
        """The texts of some passages that stand for all, as a reader gets them."""
        ...


@runtime_checkable
class Listed(Protocol):
    """What gives all of its passages."""

    def every(self) -> Iterator[Hit]:
        """Every stored passage, in any order; scores say nothing."""
        ...


class NoRetriever:
    """Finds nothing: the retriever of a pattern without passages."""

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        """See `Retriever.search`."""
        return [[] for _ in queries]


def identity_of(retriever: object) -> str | None:
    """A text that changes with what a retriever finds; None: it does not say."""
    digest = getattr(getattr(retriever, "manifest", None), "digest", None)  # of an index
    own = getattr(retriever, "identity", digest)
    return own if isinstance(own, str) else None


def check_search(queries: Sequence[str], options: SearchOptions) -> None:
    """Refuse what no retriever can answer.

    Raises:
        SettingsError: k is below 1, or `queries` is one text.
    """
    check_type("options", options, SearchOptions)
    check_type("k", options.k, int)
    if options.k < 1:
        raise SettingsError(f"k={options.k}: expected at least 1 passage")
    if isinstance(queries, str):  # it would be taken letter by letter
        raise SettingsError(f"queries={queries[:40]!r}: expected several, found one; use [...]")


def storable(text: str) -> str:
    """A text without lone surrogates, which no store of UTF-8 holds."""
    return text.encode("utf-8", "replace").decode("utf-8")


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
