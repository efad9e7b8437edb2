"""Queries and which documents answer them, in BEIR's formats and in TREC's.

queries   JSON lines with "_id" (or "id") and "text"; or lines of id, tab, text
qrels     BEIR's lines of query, document, relevance, with tabs and a heading; or TREC's of
          query, iteration, document, relevance
"""

import json
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from flashback.errors import CorpusError

T = TypeVar("T", bound=Sized)

Judged = dict[str, dict[str, int]]
"""By query id and document id: how relevant a document is; 0 and less: not at all."""


@dataclass(frozen=True)
class Judgements:
    """Queries with judged documents."""

    queries: dict[str, str]
    """By id, only those with a relevant document, in the order of the file."""
    judged: Judged


def read_judgements(queries: Path, qrels: Path) -> Judgements:
    """Read both files.

    Raises:
        CorpusError: one is missing, malformed or empty, or a judged query is not in the other.
    """
    judged = read_qrels(qrels)
    texts = read_queries(queries)
    if missing := [name for name in judged if name not in texts]:
        raise CorpusError(
            f"{queries}: no query {missing[0]!r}, which {qrels} has judgements for ({len(missing)} "
            f"of {len(judged)} are missing); expected the queries of the same set"
        )
    return Judgements({name: text for name, text in texts.items() if name in judged}, judged)


def read_queries(file: Path) -> dict[str, str]:
    """Queries by id.

    Raises:
        CorpusError: the file is missing, malformed or empty.
    """
    found: dict[str, str] = {}
    for number, line in _lines(file):
        name, text = _query(file, number, line)
        if name in found:
            raise CorpusError(f"{file}:{number}: query {name!r} a second time; expected it once")
        found[name] = text
    return _some(found, file, "queries")


def _query(file: Path, number: int, line: str) -> tuple[str, str]:
    if not line.startswith("{"):
        name, tab, text = line.partition("\t")
        if not (tab and name.strip() and text.strip()):
            raise CorpusError(f"{file}:{number}: expected a query's id, a tab and its text")
        return name.strip(), text.strip()
    try:
        record = json.loads(line)
        name = record["_id"] if "_id" in record else record["id"]
        if isinstance(name, str | int) and isinstance(record["text"], str):
            return str(name), record["text"]
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise CorpusError(f'{file}:{number}: expected an object with "_id" and "text"')


def read_qrels(file: Path) -> Judged:
    """Relevant documents of queries that have any.

    Raises:
        CorpusError: the file is missing, malformed or empty.
    """
    found: Judged = {}
    for number, line in _lines(file):
        fields = line.split("\t") if line.count("\t") == 2 else line.split()
        if number == 1 and fields[-1].strip().lower() in ("score", "relevance"):
            continue
        try:
            query, document = fields[0], fields[{3: 1, 4: 2}[len(fields)]]
            relevance = int(float(fields[-1]))
        except (KeyError, ValueError, OverflowError):
            raise CorpusError(
                f"{file}:{number}: {line[:60]!r}; expected query, document and relevance with tabs "
                "between (BEIR), or query, iteration, document, relevance (TREC)"
            ) from None
        found.setdefault(query.strip(), {})[document.strip()] = relevance
    relevant = {query: own for query, own in found.items() if max(own.values()) > 0}
    return _some(relevant, file, "judgements of relevant documents")


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, numbered from 1."""
    try:
        with open(file, encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except OSError as error:
        raise CorpusError(f"{file}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise CorpusError(f"{file}: not UTF-8 ({error.reason}); expected text") from error


def _some(found: T, file: Path, what: str) -> T:
    if not found:
        raise CorpusError(f"{file}: no {what} in it")
    return found
