"""A table of PostgreSQL, searched by its own full text search, or by an encoder's vectors.

    postgresql://user@host:5432/database?table=passages&config=english
    postgresql://user@host:5432/database?table=passages&encoder=wordllama

Words are found by the stems of one of PostgreSQL's configurations and ranked by its `ts_rank`,
which is not BM25: how rare a word is does not count. With an encoder, passages have that encoder's
vectors, too, as float16 in pgvector, and are found by them; see `store_vectors`. The password may
stand in the environment (PGPASSWORD) or in ~/.pgpass, as for any client.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from flashback.corpus.passages import Passage
from flashback.errors import RetrieverError, SettingsError, missing_extra
from flashback.retrieval.protocol import Hit, check_search, storable
from flashback.retrieval.store import BufferedWrites, one_line, shown
from flashback.settings import SearchOptions

if TYPE_CHECKING:
    from psycopg import Connection

    from flashback.retrieval.store_vectors import Sample

TABLE, CONFIG = "flashback_passages", "english"
_FIELDS = {"number", "id", "document", "title", "shown", "terms"}
_SETTINGS = {"connect_timeout": "3", "options": "-c statement_timeout=10s"}
"""Of every connection, unless the URL has others."""
_MOST_DIMENSIONS = 4000
"""Of vectors of float16 that pgvector has a graph for; longer ones are all compared."""
_HALFVEC = re.compile(r"halfvec\((\d+)\)")
_NAME = re.compile(r"[A-Za-z_]\w{0,62}", re.ASCII)
_CREATE = """
CREATE TABLE IF NOT EXISTS {0} (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, id text NOT NULL,
    document text NOT NULL, title text NOT NULL, shown text NOT NULL, terms tsvector NOT NULL{2});
CREATE INDEX IF NOT EXISTS {0}_terms ON {0} USING gin (terms);
CREATE INDEX IF NOT EXISTS {0}_document ON {0} (document);
"""
_CREATE_GRAPH = """
CREATE INDEX IF NOT EXISTS {0}_meaning ON {0} USING hnsw (meaning halfvec_cosine_ops)
    WITH (ef_construction = 128)
"""
_SEARCH = """
WITH asked AS (
    SELECT place, (SELECT string_agg(quote_literal(lexeme), ' | ')
        FROM unnest(to_tsvector(%(config)s::regconfig, text)))::tsquery AS query
    FROM unnest(%(queries)s::text[]) WITH ORDINALITY AS given (text, place))
SELECT place, hit.id, document, title, shown, score FROM asked, LATERAL (
    SELECT *, ts_rank(terms, query, 1)::float8 AS score FROM {0}
    WHERE terms @@ query AND title <> ALL (%(titles)s) AND document <> ALL (%(documents)s)
    ORDER BY score DESC, number LIMIT %(k)s) AS hit
WHERE score >= %(min_score)s ORDER BY place, score DESC, hit.number
"""
_SEARCH_VECTORS = """
SELECT place, hit.id, document, title, shown, score
FROM unnest(%(queries)s::text[]) WITH ORDINALITY AS asked (query, place), LATERAL (
    SELECT *, 1 - (meaning <=> query::halfvec) AS score FROM {0}
    WHERE meaning IS NOT NULL AND title <> ALL (%(titles)s) AND document <> ALL (%(documents)s)
    ORDER BY meaning <=> query::halfvec, number LIMIT %(k)s) AS hit
WHERE score >= %(min_score)s ORDER BY place, score DESC, hit.number
"""
_INSERT = """
INSERT INTO {0} (id, document, title, shown, terms{2})
VALUES (%s, %s, %s, %s, to_tsvector('{1}'::regconfig, %s){3})
"""
_COLUMNS = """
SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute
WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped
"""


class PostgresRetriever(BufferedWrites):
    """A `Writable` in a table. Safe to share between threads; a commit is one transaction."""

    def __init__(self, url: str) -> None:
        """Connect.

        Raises:
            SettingsError: the URL is none, or the extra `postgres` is not installed.
            ReaderError: the encoder is missing or unusable.
            RetrieverError: the server cannot be reached or refuses; the table has other columns, or
                vectors of another encoder.
        """
        self._conninfo, self._table, self._config, encoder = _parts(url)
        try:
            import psycopg
            from psycopg_pool import ConnectionPool
        except ImportError as error:
            raise missing_extra("postgresql://", error.name, "postgres") from None
        self._failure = psycopg.Error
        parts = urlsplit(url)
        place = parts.netloc.rpartition("@")[2] + parts.path
        super().__init__(f"retriever {parts.scheme}://{place}", encoder)
        with self._readable(), psycopg.connect(self._conninfo) as first:  # says why it fails
            self._exists = self._check(first)
        self._pool = ConnectionPool(
            self._conninfo,
            min_size=1,
            max_size=8,
            open=True,
            timeout=10.0,
            configure=self._configure,
            check=ConnectionPool.check_connection,
            name=f"flashback-{id(self)}",
        )

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        """See `Retriever.search`; all queries see the same commits.

        Raises:
            RetrieverError: the server cannot be reached, refuses or is too slow.
        """
        check_search(queries, options)
        places, asked_for, search = self._asked(queries)
        asked = {
            "config": self._config,
            "queries": asked_for,
            "titles": [_storable(title) for title in options.forbid_titles],
            "documents": [_storable(name) for name in options.forbid_documents],
            "k": min(options.k, (1 << 31) - 1),
            "min_score": options.min_score,
        }
        found: list[list[Hit]] = [[] for _ in queries]
        with self._readable(), self._pool.connection() as connection:
            for place, *fields in connection.execute(self._sql(search), asked):
                found[places[place - 1]].append(Hit(*fields))
        return found

    def _asked(self, queries: Sequence[str]) -> tuple[Sequence[int], list[str | None], str]:
        """The places of the queries that are asked, what is asked, and the statement."""
        if self._vectors is None:
            return range(len(queries)), [_storable(query) for query in queries], _SEARCH
        asked = self._vectors.of_queries(queries)
        vectors = [_literal(vector) for _, vector in asked]
        return [at for at, _ in asked], vectors, _SEARCH_VECTORS

    def commit(self) -> None:
        """See `Writable`; the table is made if there is none.

        Raises:
            RetrieverError: nothing was changed; what is to be written is kept.
        """
        pending = self._pending
        rows = [
            (*_row(passage), *(() if self._vectors is None else (_literal(vector),)))
            for passage, vector in zip(pending.added, self._encoded(), strict=True)
        ]
        with self._readable(), self._pool.connection() as connection, connection.transaction():
            self._create(connection)
            gone = [_storable(name) for name in pending.deleted]
            connection.execute(self._sql("DELETE FROM {0} WHERE document = ANY (%s)"), [gone])
            with connection.cursor() as cursor:
                more = ("", "") if self._vectors is None else (", meaning", ", %s::halfvec")
                cursor.executemany(self._sql(_INSERT, *more), rows)
        self._exists = True
        pending.clear()

    def refresh(self) -> None:
        """See `Writable`: every search sees what was committed before it."""

    def _create(self, connection: "Connection[Any]") -> None:
        """Make the table if there is none."""
        if not self._exists and self._check(connection):  # somebody made it meanwhile
            return
        column = ""
        if self._vectors is not None:
            column = f", meaning halfvec({self._vectors.dimension})"
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        connection.execute(self._sql(_CREATE, column))
        if self._vectors is not None and self._vectors.dimension <= _MOST_DIMENSIONS:
            connection.execute(self._sql(_CREATE_GRAPH))

    def _configure(self, connection: "Connection[Any]") -> None:
        """Let a search look at more of the graph, and go on where what it finds is forbidden."""
        if self._vectors is not None:
            connection.execute("SET hnsw.iterative_scan = strict_order")
            connection.execute("SET hnsw.ef_search = 128")
            connection.commit()

    def _sql(self, text: str, *more: str) -> Any:
        """A statement about the table; both names were checked and hold letters and digits."""
        return text.format(self._table, self._config, *more)

    def _check(self, connection: "Connection[Any]") -> bool:
        """Whether the table exists; refuse one of something else, and an unknown configuration."""
        connection.execute("SELECT %s::regconfig", [self._config])
        found = dict(connection.execute(_COLUMNS, [self._table]).fetchall())
        if not found:
            return False
        dimension = _HALFVEC.fullmatch(found.get("meaning", ""))
        if not found.keys() >= _FIELDS or ("meaning" in found and dimension is None):
            raise RetrieverError(
                f"{self._shown}: the table {self._table} has other columns "
                f"({', '.join(sorted(found))}); give another one: ?table=NAME"
            )
        self._agree(dimension and int(dimension[1]), lambda: self._sample(connection))
        return True

    def _sample(self, connection: "Connection[Any]") -> "Sample | None":
        """A passage that has a vector."""
        one = self._sql("SELECT shown, meaning::real[] FROM {0} WHERE meaning IS NOT NULL LIMIT 1")
        found: Sample | None = connection.execute(one).fetchone()
        return found

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except self._failure as error:
            raise RetrieverError(f"{self._shown}: {one_line(error)}") from error


def _row(passage: Passage) -> tuple[str, ...]:
    searched = f"{passage.title}\n{passage.text}"
    names = passage.id, passage.document_id, passage.title, shown(passage), searched
    return tuple(map(_storable, names))


def _storable(text: str) -> str:
    """Without what PostgreSQL has no place for."""
    return storable(text).replace("\0", "\ufffd")


def _literal(vector: Sequence[float] | None) -> str | None:
    """A vector in pgvector's language."""
    return None if vector is None else f"[{','.join(f'{value:.6g}' for value in vector)}]"


def _parts(url: str) -> tuple[str, str, str, str | None]:
    """A URL as libpq takes it, the table, the configuration and the encoder.

    Raises:
        SettingsError: a name has other signs than letters, digits and underscores, or the encoder
            has no name.
    """
    parts = urlsplit(url)
    every = parse_qsl(parts.query, keep_blank_values=True)
    given = {name: value for name, value in every if value or name == "encoder"}
    encoder = given.pop("encoder", None)
    if encoder == "":
        raise SettingsError("--retriever: encoder='': expected a name, such as encoder=wordllama")
    table, config = (given.pop(name, own) for name, own in (("table", TABLE), ("config", CONFIG)))
    for name, value in (("table", table), ("config", config)):
        if not _NAME.fullmatch(value):
            raise SettingsError(
                f"--retriever: {name}={value!r}: expected letters, digits and underscores"
            )
    query = urlencode(_SETTINGS | given, quote_via=quote)
    return urlunsplit(parts._replace(query=query)), table.lower(), config, encoder
