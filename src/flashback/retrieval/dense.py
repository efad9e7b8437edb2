"""Dense index: passages found by the angle between their vectors and the query's.

Vectors are kept as float16 in a graph (HNSW, Malkov and Yashunin 2018) of usearch, memory-mapped
when searched. Few vectors are all compared; of many, the graph finds nearly all of the nearest
(docs/hybrid.md). Scores are cosines.

Symbols: N passages, D dimensions.
"""

import platform
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from flashback.corpus.documents import CorpusReport
from flashback.corpus.duplicates import Spool
from flashback.corpus.passages import Passage
from flashback.errors import IndexFolderError, ReaderError, SettingsError
from flashback.retrieval.bm25 import IndexSettings, fill
from flashback.retrieval.encoders import Encoder, Vectors, encode, load_encoder, same_vector
from flashback.retrieval.index_folder import (
    PART,
    Content,
    Manifest,
    new_version,
    publish,
    read_manifest,
)
from flashback.retrieval.index_settings import DENSE
from flashback.retrieval.passage_store import PassageStore, write_passages
from flashback.retrieval.protocol import Hit, check_search, storable
from flashback.retrieval.records import shown_of
from flashback.retrieval.tantivy_files import readable_errors
from flashback.retrieval.vector_parts import HalfVectors, VectorParts
from flashback.settings import SearchOptions

OnEncoding = Callable[[int, int], Callable[[int], None]]
"""Given a number of passages and how many are encoded: what to call with how many more are."""
_VECTORS, _PASSAGES = "vectors.usearch", "passages.sqlite"
_CONNECTIVITY, _EXPANSION = 16, 128
_COMPARED = 1 << 24
"""N · D up to which a search compares all vectors: 2 ms on one core."""
_SAMPLE = 256
"""Passages that stand for all of an index."""


def build_dense(
    folder: Path,
    passages: Iterable[Passage],
    settings: IndexSettings,
    encoder: Encoder,
    report: CorpusReport,
    *,
    overwrite: bool = False,
    on_encoding: OnEncoding = lambda *_: lambda _: None,
    tokens_of: str = "none",
) -> Manifest:
    """Write a new dense index; only vectors (2·D + 200 bytes each) are in memory meanwhile.

    If it is interrupted, the same call goes on with the vectors that were made; see `vector_parts`.

    Args:
        folder: where; it is whole or absent whatever happens meanwhile.
        report: filled while `passages` are produced; its counts go into the manifest.
        on_encoding: given the number of passages, and of those that an interrupted build encoded,
            gives what to call with how many more have their vectors.
        tokens_of: the reader whose tokens limit passages.

    Raises:
        CorpusError: there was not one passage.
        ReaderError: the encoder gives something else than vectors.
        SettingsError: usearch is not installed.
        IndexFolderError: the folder is taken, or cannot be written.
    """
    check_installed()
    with readable_errors(folder), new_version(folder, overwrite=overwrite) as data:
        write = partial(_write, encoder=encoder, on_encoding=on_encoding)
        counts = fill(data, passages, settings, report, write)
        versions = {name: version(name) for name in ("usearch", "numpy")}
        made = settings.record(DENSE) | {"encoder": encoder.name, "dimension": encoder.dimension}
        versions["python"] = platform.python_version()
        return publish(folder, data, Content(DENSE, counts, made, versions, tokens_of))


def check_installed() -> None:
    """Refuse to work without usearch.

    Raises:
        SettingsError: it is not installed.
    """
    try:
        import usearch.index  # noqa: F401
    except ImportError:
        raise SettingsError(
            "a dense index needs usearch; install FlashBack with the extra dense: "
            "pip install '.[dense]' in a clone of the project"
        ) from None


def _write(
    data: Path,
    spool: Spool,
    settings: IndexSettings,
    *,
    encoder: Encoder,
    on_encoding: OnEncoding,
) -> dict[str, int]:
    """See `Write`; nothing is counted."""
    write_passages(data / _PASSAGES, spool, titled=settings.title)

    def texts() -> Iterator[str]:
        return (shown_of(stored.passage, titled=settings.title) for stored in spool)

    parts = VectorParts(data.parent / PART, encoder)
    advance = on_encoding(spool.stored, parts.ready(texts()))
    _write_vectors(data / _VECTORS, parts.vectors(texts(), advance), encoder.dimension)
    return {}


def _write_vectors(file: Path, parts: Iterable[HalfVectors], dimension: int) -> None:
    """Write the graph of the vectors (N, D) of each part; a text's number is its vector's key."""
    index = _new_graph(dimension)
    number = 0
    for vectors in parts:
        known = np.flatnonzero(vectors.any(1))  # a zero vector has no direction
        # One thread: two builds of a corpus find the same.
        index.add((known + number).astype(np.uint64), vectors[known], threads=1)
        number += len(vectors)
    try:
        index.save(str(file))
    except RuntimeError as error:  # usearch's way to say that the disk is full
        raise OSError(str(error)) from error


def _new_graph(dimension: int) -> Any:
    from usearch.index import Index

    return Index(
        ndim=dimension,
        metric="cos",
        dtype="f16",
        connectivity=_CONNECTIVITY,
        expansion_add=_EXPANSION,
        expansion_search=_EXPANSION,
    )


class DenseIndex:
    """An opened dense index; an `Index`. Safe to share between threads."""

    def __init__(
        self, folder: Path, manifest: Manifest, store: PassageStore, graph: Any, encoder: Encoder
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self._store = store
        self._graph = graph
        self._encoder = encoder
        self._lock = threading.Lock()
        self._all = len(store) * encoder.dimension <= _COMPARED

    @classmethod
    def open(cls, folder: str | Path) -> "DenseIndex":
        """Open an index, memory-mapped, and load the encoder that it was made with.

        Raises:
            IndexFolderError: missing, foreign, damaged, half-written, or of another encoder.
            ReaderError: the encoder is missing or unusable.
            SettingsError: usearch is not installed.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        content = manifest.content
        if content.kind != DENSE:
            raise IndexFolderError(f"index {folder}: kind {content.kind!r}; expected {DENSE!r}")
        check_installed()
        store, graph = _open_files(folder, manifest)
        encoder = _encoder_of(folder, content)
        opened = cls(folder, manifest, store, graph, encoder)
        if len(store) != content.counts.get("passages"):
            raise IndexFolderError(
                f"index {folder}: holds {len(store)} passages, but its manifest says "
                f"{content.counts.get('passages')}; build it again"
            )
        opened._check_encoder()
        return opened

    def _check_encoder(self) -> None:
        """Refuse vectors that are of another dimension, or of another encoder of that name."""
        name, found = self._encoder.name, int(self._graph.ndim)
        if found != self._encoder.dimension:
            raise IndexFolderError(
                f"index {self.folder}: vectors of {found} dimensions, but the encoder {name} has "
                f"{self._encoder.dimension}; use the encoder it was made with, or build it again"
            )
        if not len(self._graph):
            return
        number = int(next(iter(self._graph.keys)))
        (text,) = self._store.texts([number])
        if not same_vector(self._encoder, text, self._graph.get(number)):
            raise IndexFolderError(
                f"index {self.folder}: the encoder {name} gives other vectors than those in the "
                "index; use the encoder it was made with, or build it again"
            )

    def __len__(self) -> int:
        return len(self._store)

    def sample(self) -> list[str]:
        """The texts of up to 256 passages, spread evenly over the index."""
        return list(self._store.texts(range(0, len(self), -(-len(self) // _SAMPLE))))

    def every(self) -> Iterator[Hit]:
        """Every stored passage, each as its first document has it; scores say nothing."""
        for number in range(len(self)):
            hit = self._store.hit(number, 0.0, SearchOptions())
            assert hit is not None
            yield hit

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        """See `Retriever.search`. A query without a token that the encoder knows finds nothing.

        Raises:
            SettingsError: k is below 1, or `queries` is one text.
        """
        check_search(queries, options)
        if not queries:
            return []
        texts = [storable(query).strip() for query in queries]
        with self._lock:  # usearch's threads share their notes
            vectors = encode(self._encoder, texts, query=True)
            return [
                self._search_one(vector, options) if text and vector.any() else []
                for text, vector in zip(texts, vectors, strict=True)
            ]

    def _search_one(self, vector: Vectors, options: SearchOptions) -> list[Hit]:
        limit = min(options.k, len(self))
        while True:
            best = self._nearest(vector, limit)
            good = [(score, number) for score, number in best if score >= options.min_score]
            found = (self._store.hit(number, score, options) for score, number in good)
            hits = [hit for hit in islice(found, limit) if hit is not None]
            if len(hits) >= options.k or len(good) < limit or limit == len(self):
                return hits[: options.k]
            limit = min(4 * limit, len(self))  # some are forbidden

    def _nearest(self, vector: Vectors, count: int) -> list[tuple[float, int]]:
        """Scores and numbers, best first; equal ones in the order of the corpus."""
        asked = count
        while True:
            asked = min(asked + 1, len(self))
            # Of many vectors, the graph is sure to find few.
            compare = self._all or asked > _EXPANSION
            found = self._graph.search(vector, asked, exact=compare, threads=1)
            scores = np.clip(1 - found.distances.astype(np.float64), -1, 1)
            # Which of several equal ones at the end are left out depends on how many are asked for.
            if len(scores) <= count or asked == len(self) or scores[count - 1] > scores[-1]:
                break
            asked *= 2
        order = np.lexsort((found.keys, -scores))[:count]
        return [(float(scores[at]), int(found.keys[at])) for at in order]


def _open_files(folder: Path, manifest: Manifest) -> tuple[PassageStore, Any]:
    from usearch.index import Index

    data = folder / manifest.data
    try:
        graph = Index.restore(str(data / _VECTORS), view=True, expansion_search=_EXPANSION)
        if graph is None:
            raise ValueError(f"{_VECTORS} is no file of usearch")
        return PassageStore(data / _PASSAGES), graph
    except (sqlite3.Error, OSError, ValueError, RuntimeError) as error:
        raise IndexFolderError(
            f"index {folder}: damaged ({error}); build it again with `flashback index`"
        ) from error


def _encoder_of(folder: Path, content: Content) -> Encoder:
    """The encoder that a manifest names."""
    name = content.settings.get("encoder")
    if not isinstance(name, str):
        raise IndexFolderError(f"index {folder}: encoder {name!r}; expected a name; build it again")
    try:
        return load_encoder(name)
    except ReaderError as error:
        raise ReaderError(f"index {folder}: {error}") from error
