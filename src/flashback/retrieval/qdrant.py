"""A collection of Qdrant, searched by BM25 over sparse vectors, or by an encoder's vectors.

    qdrant+http://host:6333/collection
    qdrant+http://host:6333/collection?encoder=wordllama

A passage is a sparse vector of its stems, those of the BM25 index, weighted by how often they stand
in it; Qdrant weights them by how rare they are. With an encoder, it is also that encoder's vector,
and what is searched; see `store_vectors`. Forbidden titles and documents are filtered by the
server. The key of a server stands in QDRANT_API_KEY.
"""

import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from json import JSONDecodeError
from typing import TYPE_CHECKING, Any

from flashback.corpus.passages import Passage
from flashback.errors import FlashBackError, RetrieverError, SettingsError, missing_extra
from flashback.retrieval.protocol import Hit, check_search, storable
from flashback.retrieval.store import (
    BufferedWrites,
    chunks,
    cosine,
    good_enough,
    key_of,
    near_enough,
    one_line,
    place_of,
    shown,
    terms_of,
)
from flashback.settings import SearchOptions

if TYPE_CHECKING:
    from qdrant_client import QdrantClient, models

    from flashback.retrieval.encoders import Encoder
    from flashback.retrieval.store_vectors import Sample

KEY = "QDRANT_API_KEY"
"""The environment variable with the server's key."""
_TERMS, _MEANING = "terms", "meaning"
"""The names of a passage's vectors."""
_SHOWN = ("id", "document", "title", "shown")
_K1, _B = 1.2, 0.75
_USUAL_TERMS = 64.0
"""Stems of a passage of usual length; BM25 takes the mean, which a client does not know."""
_TOGETHER = 256
"""Queries, names or passages in a call."""
_MOST_HITS = 100_000


class QdrantRetriever(BufferedWrites):
    """A `Writable` in a collection. Safe to share between threads; no transactions."""

    def __init__(
        self, client: "QdrantClient", collection: str, encoder: "Encoder | str | None" = None
    ) -> None:
        """Use a collection of a client, of a server or embedded.

        Args:
            encoder: of vectors by which passages are found, or its name; None: they are found by
                words.

        Raises:
            SettingsError: the extra `qdrant` is not installed.
            ReaderError: the encoder is missing or unusable.
            RetrieverError: the server cannot be reached or refuses; the collection has no such
                vectors, or those of another encoder.
        """
        self._models, self._failures = _library()
        self._client = client
        self._collection = collection
        super().__init__(f"retriever qdrant/{collection}", encoder)
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
        address, collection, encoder = _parts(url)
        _library()
        from qdrant_client import QdrantClient

        key = os.environ.get(KEY)
        client = QdrantClient(address, api_key=key, timeout=10, check_compatibility=False)
        return cls(client, collection, encoder)

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
        asked = self._asked(queries)
        choose = good_enough if self._vectors is None else near_enough
        with self._readable(), self._one_at_a_time:
            for some in chunks(asked, _TOGETHER):
                requests = [self._request(query, options) for _, query in some]
                answers = self._client.query_batch_points(self._collection, requests)
                for (at, _), answer in zip(some, answers, strict=True):
                    found[at] = choose(map(self._hit, answer.points), options)
        return found

    def _asked(self, queries: Sequence[str]) -> Sequence[tuple[int, Any]]:
        """The place and the vector of each query that has one."""
        if self._vectors is not None:
            return self._vectors.of_queries(queries)
        every = ((at, terms_of(query, query=True)) for at, query in enumerate(queries))
        return [
            (at, self._sparse({term: float(count) for term, count in terms.items()}))
            for at, terms in every
            if terms
        ]

    def commit(self) -> None:
        """See `Writable`; the collection is made if there is none.

        Raises:
            RetrieverError: it may have been done in part; what is to be written is kept, and
                another commit does it again.
        """
        points = list(map(self._point, self._pending.added, self._encoded()))
        with self._readable(), self._one_at_a_time:
            if not self._exists:
                self._create()
            for names in chunks(list(self._pending.deleted), _TOGETHER):
                selector = self._models.FilterSelector(
                    filter=self._models.Filter(must=[self._any("document_key", names)])
                )
                self._client.delete(self._collection, selector, wait=True)
            for some in chunks(points, _TOGETHER):
                self._client.upsert(self._collection, list(some), wait=True)
        self._pending.clear()

    def refresh(self) -> None:
        """See `Writable`: every search sees what was committed before it."""

    def _request(self, query: Any, options: SearchOptions) -> Any:
        forbidden = [
            self._any(field, names)
            for field, names in (
                ("title_key", options.forbid_titles),
                ("document_key", options.forbid_documents),
            )
            if names
        ]
        return self._models.QueryRequest(
            query=query,
            using=_TERMS if self._vectors is None else _MEANING,
            limit=min(options.k, _MOST_HITS),
            with_payload=list(_SHOWN),
            filter=self._models.Filter(must_not=forbidden) if forbidden else None,
        )

    def _any(self, field: str, names: Sequence[str]) -> Any:
        keys = [key_of(name) for name in names]
        return self._models.FieldCondition(key=field, match=self._models.MatchAny(any=keys))

    def _point(self, passage: Passage, meaning: list[float] | None) -> Any:
        names = passage.id, passage.document_id, passage.title
        payload = dict(zip(_SHOWN, map(storable, (*names, shown(passage))), strict=True))
        payload |= {"document_key": key_of(names[1]), "title_key": key_of(names[2])}
        terms = terms_of(f"{passage.title}\n{passage.text}")
        vectors: dict[str, Any] = {_TERMS: self._sparse(weights(terms))}
        if meaning is not None:
            vectors[_MEANING] = meaning
        return self._models.PointStruct(id=key_of(passage.id), vector=vectors, payload=payload)

    def _sparse(self, values: dict[str, float]) -> Any:
        by_place: dict[int, float] = {}
        for term, value in values.items():
            place = int(key_of(term)[:8], 16)
            by_place[place] = by_place.get(place, 0.0) + value
        return self._models.SparseVector(
            indices=list(by_place.keys()), values=list(by_place.values())
        )

    def _create(self) -> None:
        terms = {_TERMS: self._models.SparseVectorParams(modifier=self._models.Modifier.IDF)}
        meaning = {}
        if self._vectors is not None:
            meaning[_MEANING] = self._models.VectorParams(
                size=self._vectors.dimension, distance=self._models.Distance.COSINE
            )
        self._client.create_collection(
            self._collection, vectors_config=meaning, sparse_vectors_config=terms
        )
        self._exists = True

    def _check(self) -> bool:
        """Whether the collection exists; refuse one of something else."""
        if not self._client.collection_exists(self._collection):
            return False
        found = self._client.get_collection(self._collection).config.params
        if _TERMS not in (found.sparse_vectors or {}):
            raise RetrieverError(
                f"{self._shown}: the collection has no sparse vectors {_TERMS!r}; it was not made "
                "by FlashBack; give another one"
            )
        dense = found.vectors if isinstance(found.vectors, dict) else {}
        self._agree(dense[_MEANING].size if _MEANING in dense else None, self._sample)
        return True

    def _sample(self) -> "Sample | None":
        """A passage that has a vector."""
        having = self._models.HasVectorCondition(has_vector=_MEANING)
        records, _ = self._client.scroll(
            self._collection,
            self._models.Filter(must=[having]),
            limit=1,
            with_payload=["shown"],
            with_vectors=[_MEANING],
        )
        return next(((one.payload["shown"], one.vector[_MEANING]) for one in records), None)

    def _hit(self, point: "models.ScoredPoint") -> Hit:
        payload = point.payload or {}
        identifier, document, title, text = (str(payload[name]) for name in _SHOWN)
        score = float(point.score)
        return Hit(
            identifier, document, title, text, score if self._vectors is None else cosine(score)
        )

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except FlashBackError:
            raise
        except JSONDecodeError as error:
            raise RetrieverError(
                f"{self._shown}: its answer is no JSON; expected Qdrant"
            ) from error
        except self._failures as error:
            raise RetrieverError(f"{self._shown}: {one_line(error)}") from error


def weights(terms: Counter[str]) -> dict[str, float]:
    """What BM25 gives a passage's stems, but for how rare they are (Robertson and Zaragoza 2009).

    The passage's length is compared with a usual one instead of the collection's mean.
    """
    length = _K1 * (1 - _B + _B * terms.total() / _USUAL_TERMS)
    return {term: count * (_K1 + 1) / (count + length) for term, count in terms.items()}


def _library() -> tuple[Any, tuple[type[Exception], ...]]:
    """The client's models, and what it raises."""
    try:
        from qdrant_client import models
        from qdrant_client.http.exceptions import ApiException
    except ImportError as error:
        raise missing_extra("qdrant+http://", error.name, "qdrant") from None
    return models, (ApiException, ValueError, OSError)


def _parts(url: str) -> tuple[str, str, str | None]:
    """Qdrant's address, the collection and the encoder.

    Raises:
        SettingsError: it is no URL of a collection.
    """
    try:
        return place_of(url, "qdrant")
    except ValueError:
        raise SettingsError(
            "--retriever: expected qdrant+http://host:6333/collection, with ?encoder=NAME to "
            f"search by vectors, and with the key, if any, in ${KEY}"
        ) from None
