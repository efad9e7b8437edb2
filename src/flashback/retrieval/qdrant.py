"""A collection of Qdrant, searched by BM25 over sparse vectors.

    qdrant+http://host:6333/collection

A passage is a sparse vector of its stems, those of the BM25 index, weighted by how often they stand
in it; Qdrant weights them by how rare they are. Forbidden titles and documents are filtered by the
server. The key of a server stands in QDRANT_API_KEY.
"""

import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from flashback.corpus.passages import Passage
from flashback.errors import RetrieverError, SettingsError
from flashback.retrieval.protocol import Hit, check_search, missing_extra, storable
from flashback.retrieval.store import (
    BufferedWrites,
    chunks,
    good_enough,
    key_of,
    one_line,
    shown,
    terms_of,
)
from flashback.settings import SearchOptions

if TYPE_CHECKING:
    from qdrant_client import QdrantClient, models

KEY = "QDRANT_API_KEY"
"""The environment variable with the server's key."""
_VECTOR = "terms"
_SHOWN = ("id", "document", "title", "shown")
_K1, _B = 1.2, 0.75
_USUAL_TERMS = 64.0
"""Stems of a passage of usual length; BM25 takes the mean, which a client does not know."""
_TOGETHER = 256
"""Queries, names or passages in a call."""
_MOST_HITS = 100_000


class QdrantRetriever(BufferedWrites):
    """A `Writable` in a collection. Safe to share between threads; no transactions."""

    def __init__(self, client: "QdrantClient", collection: str) -> None:
        """Use a collection of a client, of a server or embedded.

        Raises:
            SettingsError: the extra `qdrant` is not installed.
            RetrieverError: the server cannot be reached or refuses; the collection has no such
                vectors.
        """
        self._models, self._failures = _library()
        self._client = client
        self._collection = collection
        self._shown = f"retriever qdrant/{collection}"
        super().__init__()
        self._one_at_a_time = threading.Lock()
        """What is embedded promises nothing about threads."""
        with self._readable():
            self._exists = self._check()

    @classmethod
    def open(cls, url: str) -> "QdrantRetriever":
        """Connect to a server.

        Raises:
            SettingsError: the URL is none, or the extra `qdrant` is not installed.
            RetrieverError: see `QdrantRetriever`.
        """
        address, collection = _parts(url)
        _library()
        from qdrant_client import QdrantClient

        key = os.environ.get(KEY)
        client = QdrantClient(address, api_key=key, timeout=10, check_compatibility=False)
        return cls(client, collection)

    def close(self) -> None:
        """Close the client."""
        self._client.close()

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        """See `Retriever.search`; at most 100,000 hits per query.

        Raises:
            RetrieverError: the server cannot be reached, refuses or is too slow.
        """
        check_search(queries, options)
        found: list[list[Hit]] = [[] for _ in queries]
        every = ((at, terms_of(query, query=True)) for at, query in enumerate(queries))
        asked = [(at, terms) for at, terms in every if terms]
        with self._readable(), self._one_at_a_time:
            for some in chunks(asked, _TOGETHER):
                requests = [self._request(terms, options) for _, terms in some]
                answers = self._client.query_batch_points(self._collection, requests)
                for (at, _), answer in zip(some, answers, strict=True):
                    found[at] = good_enough(map(_hit, answer.points), options)
        return found

    def commit(self) -> None:
        """See `Writable`; the collection is made if there is none.

        Raises:
            RetrieverError: it may have been done in part; what is to be written is kept, and
                another commit does it again.
        """
        with self._readable(), self._one_at_a_time:
            if not self._exists:
                self._create()
            for names in chunks(list(self._pending.deleted), _TOGETHER):
                selector = self._models.FilterSelector(
                    filter=self._models.Filter(must=[self._any("document_key", names)])
                )
                self._client.delete(self._collection, selector, wait=True)
            for some in chunks(self._pending.added, _TOGETHER):
                self._client.upsert(self._collection, list(map(self._point, some)), wait=True)
        self._pending.clear()

    def refresh(self) -> None:
        """See `Writable`: every search sees what was committed before it."""

    def _request(self, terms: Counter[str], options: SearchOptions) -> Any:
        forbidden = [
            self._any(field, names)
            for field, names in (
                ("title_key", options.forbid_titles),
                ("document_key", options.forbid_documents),
            )
            if names
        ]
        return self._models.QueryRequest(
            query=self._sparse({term: float(count) for term, count in terms.items()}),
            using=_VECTOR,
            limit=min(options.k, _MOST_HITS),
            with_payload=list(_SHOWN),
            filter=self._models.Filter(must_not=forbidden) if forbidden else None,
        )

    def _any(self, field: str, names: Sequence[str]) -> Any:
        keys = [key_of(name) for name in names]
        return self._models.FieldCondition(key=field, match=self._models.MatchAny(any=keys))

    def _point(self, passage: Passage) -> Any:
        names = passage.id, passage.document_id, passage.title
        payload = dict(zip(_SHOWN, map(storable, (*names, shown(passage))), strict=True))
        payload |= {"document_key": key_of(names[1]), "title_key": key_of(names[2])}
        terms = terms_of(f"{passage.title}\n{passage.text}")
        return self._models.PointStruct(
            id=key_of(passage.id), vector={_VECTOR: self._sparse(weights(terms))}, payload=payload
        )

    def _sparse(self, values: dict[str, float]) -> Any:
        by_place: dict[int, float] = {}
        for term, value in values.items():
            place = int(key_of(term)[:8], 16)
            by_place[place] = by_place.get(place, 0.0) + value
        return self._models.SparseVector(
            indices=list(by_place.keys()), values=list(by_place.values())
        )

    def _create(self) -> None:
        vectors = {_VECTOR: self._models.SparseVectorParams(modifier=self._models.Modifier.IDF)}
        self._client.create_collection(
            self._collection, vectors_config={}, sparse_vectors_config=vectors
        )
        self._exists = True

    def _check(self) -> bool:
        """Whether the collection exists; refuse one of something else."""
        if not self._client.collection_exists(self._collection):
            return False
        found = self._client.get_collection(self._collection).config.params.sparse_vectors or {}
        if _VECTOR not in found:
            raise RetrieverError(
                f"{self._shown}: the collection has no sparse vectors {_VECTOR!r}; it was not made "
                "by FlashBack; give another one"
            )
        return True

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except RetrieverError:
            raise
        except self._failures as error:
            raise RetrieverError(f"{self._shown}: {one_line(error)}") from error


def weights(terms: Counter[str]) -> dict[str, float]:
    """What BM25 gives a passage's stems, but for how rare they are (Robertson and Zaragoza 2009).

    The passage's length is compared with a usual one instead of the collection's mean.
    """
    length = _K1 * (1 - _B + _B * terms.total() / _USUAL_TERMS)
    return {term: count * (_K1 + 1) / (count + length) for term, count in terms.items()}


def _hit(point: "models.ScoredPoint") -> Hit:
    payload = point.payload or {}
    identifier, document, title, text = (str(payload[name]) for name in _SHOWN)
    return Hit(identifier, document, title, text, float(point.score))


def _library() -> tuple[Any, tuple[type[Exception], ...]]:
    """The client's models, and what it raises."""
    try:
        from qdrant_client import models
        from qdrant_client.http.exceptions import ApiException
    except ImportError as error:
        raise missing_extra("qdrant+http://", error.name, "qdrant") from None
    return models, (ApiException, ValueError, OSError)


def _parts(url: str) -> tuple[str, str]:
    """Qdrant's address and the collection.

    Raises:
        SettingsError: it is no URL of a collection.
    """
    try:
        parts = urlsplit(url)
        good = parts.hostname is not None and parts.port is not None
    except ValueError:
        good = False
    name = parts.path.strip("/") if good else ""
    if not name or "/" in name or "@" in parts.netloc or parts.query:
        raise SettingsError(
            "--retriever: expected qdrant+http://host:6333/collection, with the key, if any, in "
            f"${KEY}"
        )
    return f"{parts.scheme.removeprefix('qdrant+')}://{parts.netloc}", name
