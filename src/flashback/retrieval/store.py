"""What all stores need: writes that wait for a commit, names as keys, a text's terms, URLs."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import parse_qsl, urlsplit

import tantivy

from flashback.corpus.passages import Passage
from flashback.errors import RetrieverError
from flashback.retrieval import analysis
from flashback.retrieval.protocol import Hit, storable
from flashback.settings import SearchOptions

if TYPE_CHECKING:
    from flashback.retrieval.encoders import Encoder
    from flashback.retrieval.store_vectors import Sample, StoreVectors

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
    """What is the same in every store: writes wait for its commit, vectors are of one encoder."""

    def __init__(self, shown: str, encoder: "Encoder | str | None" = None) -> None:
        """Begin with nothing to write.

        Args:
            shown: the store, as errors about it begin.
            encoder: of the store's vectors, or its name; None: it is searched by words.

        Raises:
            ReaderError: the encoder is missing or unusable.
        """
        self._pending = Pending()
        self._shown = shown
        self._vectors = _vectors_by(encoder, shown)
        self._reads_only = False

    def _agree(self, dimension: int | None, sample: "Callable[[], Sample | None]") -> None:
        """Refuse a store with vectors of another encoder, or with none if there is an encoder.

        Args:
            dimension: of the store's vectors; None: it has none.
            sample: gives one of its passages; None: there is none.

        Raises:
            RetrieverError: see `StoreVectors.check`.
        """
        if self._vectors is not None:
            self._vectors.check(dimension, sample)
        self._reads_only = self._vectors is None and dimension is not None

    def _encoded(self) -> "list[list[float] | None]":
        """A vector for each passage that waits; None: it has none, or there is no encoder.

        Raises:
            RetrieverError: the store has vectors, and there is no encoder.
            ReaderError: the encoder gives something else than vectors.
        """
        if self._reads_only:
            raise RetrieverError(
                f"{self._shown}: its passages have vectors; name their encoder to write into it: "
                "?encoder=NAME"
            )
        texts = [storable(shown(passage)) for passage in self._pending.added]
        return [None] * len(texts) if self._vectors is None else self._vectors.of_passages(texts)

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


def near_enough(hits: Iterable[Hit], options: SearchOptions) -> list[Hit]:
    """Those whose score, a cosine, is the least score or more, best first."""
    return sorted(
        (hit for hit in hits if hit.score >= options.min_score), key=lambda hit: -hit.score
    )


def cosine(value: float) -> float:
    """A cosine without what rounding adds to it."""
    return min(1.0, max(-1.0, value))


def one_line(error: BaseException) -> str:
    """What a store's client says, in one short line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def place_of(url: str, prefix: str) -> tuple[str, str, str | None]:
    """The address, the collection and the encoder of `PREFIX+http://host:port/NAME?encoder=NAME`.

    Raises:
        ValueError: it is no such URL.
    """
    parts = urlsplit(url)
    name, query = parts.path.strip("/"), dict(parse_qsl(parts.query, keep_blank_values=True))
    encoder = query.pop("encoder", None)
    if None in (parts.hostname, parts.port) or not name or "/" in name or "@" in parts.netloc:
        raise ValueError(url)
    if query or encoder == "":
        raise ValueError(url)
    return f"{parts.scheme.removeprefix(f'{prefix}+')}://{parts.netloc}", name, encoder


def _vectors_by(encoder: "Encoder | str | None", shown: str) -> "StoreVectors | None":
    if encoder is None:
        return None
    from flashback.retrieval.encoders import load_encoder  # NumPy takes a while to import
    from flashback.retrieval.store_vectors import StoreVectors

    return StoreVectors(load_encoder(encoder) if isinstance(encoder, str) else encoder, shown)
