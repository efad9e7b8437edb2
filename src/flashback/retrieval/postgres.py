"""A table of PostgreSQL, searched by its own full text search.

    postgresql://user@host:5432/database?table=passages&config=english

Words are found by the stems of one of PostgreSQL's configurations and ranked by its `ts_rank`,
which is not BM25: how rare a word is does not count. The password may stand in the environment
(PGPASSWORD) or in ~/.pgpass, as for any client.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from flashback.corpus.passages import Passage
from flashback.errors import RetrieverError, SettingsError
from flashback.retrieval.protocol import Hit, check_search, missing_extra, storable
from flashback.retrieval.store import BufferedWrites, one_line, shown
from flashback.settings import SearchOptions

if TYPE_CHECKING:
    from psycopg import Connection

TABLE, CONFIG = "flashback_passages", "english"
_FIELDS = {"number", "id", "document", "title", "shown", "terms"}
_SETTINGS = {"connect_timeout": "3", "options": "-c statement_timeout=10s"}
"""Of every connection, unless the URL has others."""
_NAME = re.compile(r"[A-Za-z_]\w{0,62}", re.ASCII)
_CREATE = """
CREATE TABLE IF NOT EXISTS {0} (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, id text NOT NULL,
    document text NOT NULL, title text NOT NULL, shown text NOT NULL, terms tsvector NOT NULL);
CREATE INDEX IF NOT EXISTS {0}_terms ON {0} USING gin (terms);
CREATE INDEX IF NOT EXISTS {0}_document ON {0} (document);
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
_INSERT = """
INSERT INTO {0} (id, document, title, shown, terms)
VALUES (%s, %s, %s, %s, to_tsvector('{1}'::regconfig, %s))
"""


class PostgresRetriever(BufferedWrites):
    """A `Writable` in a table. Safe to share between threads; a commit is one transaction."""

    def __init__(self, url: str) -> None:
        """Connect.

        Raises:
            SettingsError: the URL is none, or the extra `postgres` is not installed.
            RetrieverError: the server cannot be reached or refuses; the table has other columns.
        """
        self._conninfo, self._table, self._config = _parts(url)
        try:
            import psycopg
            from psycopg_pool import ConnectionPool
        except ImportError as error:
            raise missing_extra("postgresql://", error.name, "postgres") from None
        self._failure = psycopg.Error
        super().__init__()
        parts = urlsplit(url)
        place = parts.netloc.rpartition("@")[2] + parts.path
        self._shown = f"retriever {parts.scheme}://{place}"
        with self._readable(), psycopg.connect(self._conninfo) as first:  # says why it fails
            self._check(first)
        self._pool = ConnectionPool(
            self._conninfo,
            min_size=1,
            max_size=8,
            open=True,
            timeout=10.0,
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
        asked = {
            "config": self._config,
            "queries": [_storable(query) for query in queries],
            "titles": [_storable(title) for title in options.forbid_titles],
            "documents": [_storable(name) for name in options.forbid_documents],
            "k": min(options.k, (1 << 31) - 1),
            "min_score": options.min_score,
        }
        found: list[list[Hit]] = [[] for _ in queries]
        with self._readable(), self._pool.connection() as connection:
            for place, *fields in connection.execute(self._sql(_SEARCH), asked):
                found[place - 1].append(Hit(*fields))
        return found

    def commit(self) -> None:
        """See `Writable`; the table is made if there is none.

        Raises:
            RetrieverError: nothing was changed; what is to be written is kept.
        """
        pending = self._pending
        with self._readable(), self._pool.connection() as connection, connection.transaction():
            connection.execute(self._sql(_CREATE))
            gone = [_storable(name) for name in pending.deleted]
            connection.execute(self._sql("DELETE FROM {0} WHERE document = ANY (%s)"), [gone])
            with connection.cursor() as cursor:
                cursor.executemany(self._sql(_INSERT), map(_row, pending.added))
        pending.clear()

    def refresh(self) -> None:
        """See `Writable`: every search sees what was committed before it."""

    def _sql(self, text: str) -> Any:
        """A statement about the table; both names were checked and hold letters and digits."""
        return text.format(self._table, self._config)

    def _check(self, connection: "Connection[Any]") -> None:
        """Refuse a table of something else, and a configuration that the server does not have."""
        connection.execute("SELECT %s::regconfig", [self._config])
        columns = "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0"
        found = {name for (name,) in connection.execute(columns, [self._table])}
        if found and not found >= _FIELDS:
            raise RetrieverError(
                f"{self._shown}: the table {self._table} has other columns "
                f"({', '.join(sorted(found))}); give another one: ?table=NAME"
            )

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


def _parts(url: str) -> tuple[str, str, str]:
    """A URL as libpq takes it, the table and the configuration.

    Raises:
        SettingsError: a name has other signs than letters, digits and underscores.
    """
    parts = urlsplit(url)
    given = dict(parse_qsl(parts.query))
    table, config = (given.pop(name, own) for name, own in (("table", TABLE), ("config", CONFIG)))
    for name, value in (("table", table), ("config", config)):
        if not _NAME.fullmatch(value):
            raise SettingsError(
                f"--retriever: {name}={value!r}: expected letters, digits and underscores"
            )
    query = urlencode(_SETTINGS | given, quote_via=quote)
    return urlunsplit(parts._replace(query=query)), table.lower(), config
