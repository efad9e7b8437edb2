"""A collection of Milvus, searched by its own full text search, or by an encoder's vectors.

    milvus+http://host:19530/collection
    milvus+http://host:19530/collection?encoder=wordllama

BM25 is computed by Milvus, over the stems that the BM25 index has. With an encoder, passages have
that encoder's vectors, too, and are found by them; see `store_vectors`. Forbidden titles and
documents are filtered by the server. The user and password, or a token, stand in MILVUS_TOKEN.
"""

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flashback.corpus.passages import Passage
from flashback.errors import RetrieverError, SettingsError, missing_extra
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
    from pymilvus import MilvusClient

    from flashback.retrieval.store_vectors import Sample

TOKEN = "MILVUS_TOKEN"
"""The environment variable with `user:password` or a token."""
_NAME = re.compile(r"[A-Za-z_]\w{0,254}", re.ASCII)
_SHOWN = ("id", "document", "title", "shown")
_KEYS = ("id_key", "document_key", "title_key")
_FIELDS = {*_SHOWN, *_KEYS, "terms", "vector"}
_MEANING = "meaning"
"""The field of the encoder's vectors."""
_MOST_BYTES = 65_535
"""Of a text, in Milvus."""
_MOST_HITS = 16_384
_MOST_TERMS, _MOST_REPEATS = 512, 8
"""Of a query."""
_SAMPLE = 16
"""Passages among which one with a vector is looked for."""
_TOGETHER = 512
"""Queries, names or passages in a call."""


class MilvusRetriever(BufferedWrites):
    """A `Writable` in a collection. Safe to share between threads; no transactions."""

    def __init__(self, url: str, seconds: float = 10.0) -> None:
        """Connect.

        Args:
            seconds: of a call at most.

        Raises:
            SettingsError: the URL is none, or the extra `milvus` is not installed.
            ReaderError: the encoder is missing or unusable.
            RetrieverError: the server cannot be reached or refuses; the collection has other
                fields, or vectors of another encoder.
        """
        address, self._collection, encoder = _parts(url)
        try:
            from pymilvus import MilvusClient, MilvusException
        except ImportError as error:
            raise missing_extra("milvus+http://", error.name, "milvus") from None
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it is said in one line here
        self._failure = MilvusException
        super().__init__(f"retriever {address}/{self._collection}", encoder)
        with self._readable():
            self._client = MilvusClient(address, token=os.environ.get(TOKEN, ""), timeout=seconds)
            self._exists = self._check()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        """See `Retriever.search`; at most 16,384 hits per query.

        Raises:
            RetrieverError: the server cannot be reached, refuses or is too slow.
        """
        check_search(queries, options)
        found: list[list[Hit]] = [[] for _ in queries]
        asked = self._asked(queries)
        choose, hit = (good_enough, _hit) if self._vectors is None else (near_enough, _near)
        with self._readable():
            for some in chunks(asked, _TOGETHER):
                answers = self._found([query for _, query in some], options)
                for (at, _), records in zip(some, answers, strict=True):
                    found[at] = choose(filter(None, map(hit, records)), options)
        return found

    def _asked(self, queries: Sequence[str]) -> Sequence[tuple[int, Any]]:
        """The place of each query that can be asked, and what is."""
        if self._vectors is not None:
            return self._vectors.of_queries(queries)
        return [(at, words) for at, query in enumerate(queries) if (words := _words(query))]

    def commit(self) -> None:
        """See `Writable`; the collection is made if there is none.

        Raises:
            RetrieverError: it may have been done in part; what is to be written is kept, and
                another commit does it again.
        """
        rows: list[dict[str, Any]] = [_row(passage) for passage in self._pending.added]
        vectors = self._encoded()
        if self._vectors is not None:
            none = [0.0] * self._vectors.dimension
            rows = [row | {_MEANING: one or none} for row, one in zip(rows, vectors, strict=True)]
        with self._readable():
            if not self._exists:
                dimension = None if self._vectors is None else self._vectors.dimension
                _create(self._client, self._collection, dimension)
                self._exists = True
            for names in chunks(list(self._pending.deleted), _TOGETHER):
                condition = f"document_key in {_listed(names)}"
                self._client.delete(self._collection, filter=condition)
            for some in chunks(rows, _TOGETHER):
                self._client.upsert(self._collection, list(some))
        self._pending.clear()

    def refresh(self) -> None:
        """See `Writable`: every search sees what was committed before it."""

    def _found(self, queries: list[Any], options: SearchOptions) -> Any:
        clauses = [
            f"{field} not in {_listed(names)}"
            for field, names in (
                ("title_key", options.forbid_titles),
                ("document_key", options.forbid_documents),
            )
            if names
        ]
        return self._client.search(
            self._collection,
            data=queries,
            anns_field="vector" if self._vectors is None else _MEANING,
            limit=min(options.k, _MOST_HITS),
            filter=" and ".join(clauses),
            output_fields=[*_SHOWN],
            search_params={"metric_type": "BM25" if self._vectors is None else "COSINE"},
            consistency_level="Strong",
        )

    def _check(self) -> bool:
        """Whether the collection exists; refuse one of something else."""
        if not self._client.has_collection(self._collection):
            return False
        about = self._client.describe_collection(self._collection)
        found = {field["name"] for field in about["fields"]}
        if not found >= _FIELDS:
            raise RetrieverError(
                f"{self._shown}: the collection has other fields ({', '.join(sorted(found))}); "
                "give another one"
            )
        dimensions = {field["name"]: field["params"].get("dim") for field in about["fields"]}
        dimension = dimensions.get(_MEANING)
        self._agree(None if dimension is None else int(dimension), self._sample)
        return True

    def _sample(self) -> "Sample | None":
        """A passage that has a vector."""
        records = self._client.query(
            self._collection,
            filter="",
            limit=_SAMPLE,
            output_fields=["shown", _MEANING],
            consistency_level="Strong",
        )
        return next(((one["shown"], one[_MEANING]) for one in records if any(one[_MEANING])), None)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except self._failure as error:
            raise RetrieverError(f"{self._shown}: {one_line(error)}") from error


def _words(query: str) -> str:
    """A query as a text of stems."""
    best = terms_of(query, query=True).most_common(_MOST_TERMS)
    return " ".join(word for word, count in best for _ in range(min(count, _MOST_REPEATS)))


def _listed(names: Sequence[str]) -> str:
    """Names as a list of their keys, in Milvus's language."""
    return "[" + ", ".join(f'"{key_of(name)}"' for name in names) + "]"


def _row(passage: Passage) -> dict[str, str]:
    """A passage as Milvus has it.

    Raises:
        RetrieverError: it is longer than Milvus takes.
    """
    names = passage.id, passage.document_id, passage.title
    row = dict(zip(_SHOWN, map(storable, (*names, shown(passage))), strict=True))
    row |= dict(zip(_KEYS, map(key_of, names), strict=True))
    row["terms"] = " ".join(terms_of(f"{passage.title}\n{passage.text}").elements())
    if any(len(value.encode()) > _MOST_BYTES for value in row.values()):
        raise RetrieverError(f"passage {passage.id[:80]!r}: longer than Milvus takes, 65,535 bytes")
    return row


def _hit(record: Any) -> Hit:
    entity = record["entity"]
    identifier, document, title, text = (str(entity[name]) for name in _SHOWN)
    # Milvus gives BM25 as a score; milvus-lite as a distance, which is the score below 0.
    return Hit(identifier, document, title, text, abs(float(record["distance"])))


def _near(record: Any) -> Hit | None:
    """A hit of vectors; None: the passage has none, which Milvus has as zeros."""
    found = _hit(record)
    score = cosine(float(record["distance"]))
    return replace(found, score=score) if score else None


def _create(client: "MilvusClient", name: str, dimension: int | None) -> None:
    from pymilvus import DataType, Function, FunctionType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id_key", DataType.VARCHAR, is_primary=True, max_length=32)
    for key in _KEYS[1:]:
        schema.add_field(key, DataType.VARCHAR, max_length=32)
    for text in _SHOWN:
        schema.add_field(text, DataType.VARCHAR, max_length=_MOST_BYTES)
    schema.add_field(
        "terms",
        DataType.VARCHAR,
        max_length=_MOST_BYTES,
        enable_analyzer=True,
        analyzer_params={"tokenizer": "standard"},
    )
    schema.add_field("vector", DataType.SPARSE_FLOAT_VECTOR)
    bm25 = Function(
        name="bm25",
        function_type=FunctionType.BM25,
        input_field_names=["terms"],
        output_field_names=["vector"],
    )
    schema.add_function(bm25)
    index = client.prepare_index_params()
    index.add_index("vector", index_type="SPARSE_INVERTED_INDEX", metric_type="BM25")
    if dimension is not None:
        schema.add_field(_MEANING, DataType.FLOAT_VECTOR, dim=dimension)
        index.add_index(_MEANING, index_type="AUTOINDEX", metric_type="COSINE")
    client.create_collection(name, schema=schema, index_params=index)


def _parts(url: str) -> tuple[str, str, str | None]:
    """Milvus's address, the collection and the encoder.

    Raises:
        SettingsError: it is no URL of a collection.
    """
    try:
        address, name, encoder = place_of(url, "milvus")
        if _NAME.fullmatch(name):
            return address, name, encoder
    except ValueError:
        pass
    raise SettingsError(
        "--retriever: expected milvus+http://host:19530/collection, with ?encoder=NAME to search "
        f"by vectors, and with the password, if any, in ${TOKEN}"
    )
