"""Files to documents, one at a time, each format with its own reader.

Nothing here holds more in memory than a block of a text file, a record, or a file of a format that
is parsed as a whole. An exception of a parser is a bad record, whatever it is.
"""

import codecs
import contextlib
import io
import sqlite3
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b

from flashback.corpus.documents import Advance, BadRecord, CorpusReport, Document
from flashback.corpus.formats import json_lines, plain
from flashback.corpus.formats.file_settings import FileSettings
from flashback.corpus.formats.format import Format, Reading, Source, Unreadable
from flashback.corpus.formats.registry import format_of
from flashback.errors import CorpusError

Watch = Callable[[Source, Iterator[Document]], Iterator[Document]]
"""Given a file and its documents: the same documents."""


def read_documents(
    sources: Sequence[Source],
    report: CorpusReport,
    advance: Advance = lambda _: None,
    settings: FileSettings | None = None,
    watch: Watch = lambda _, documents: documents,
) -> Iterator[Document]:
    """Stream the documents of `sources`; bad records go to `report`.

    A document whose id another one has is a bad record, but for parts of one document, which follow
    each other in a file.

    Args:
        watch: sees all documents of each file, those whose id another one has included.

    Raises:
        CorpusError: a file cannot be opened, or a bad record was met in strict mode.
    """
    reading = Reading(report, advance, settings or FileSettings())
    with contextlib.closing(_Ids()) as ids:
        for source in sources:
            try:
                documents = watch(source, _read_source(source, reading))
                yield from ids.without_repeated(source, documents, report)
            except OSError as error:
                raise CorpusError(f"corpus {source.name}: {error.strerror or error}") from error


def _read_source(source: Source, reading: Reading) -> Iterator[Document]:
    if source.path is None:
        yield from (json_lines if _is_json(source) else plain).read(source, reading)
        return
    done = 0

    def advance(step: int) -> None:
        nonlocal done
        done += step
        reading.advance(step)

    known = format_of(source.name)
    assert known is not None
    yield from _guarded(known, source, replace(reading, advance=advance))
    advance(max(0, source.bytes - done))  # what was given up, or read at once


def _guarded(known: Format, source: Source, reading: Reading) -> Iterator[Document]:
    """The documents of a file; if there are none to be had, a bad record."""
    if known.needs:
        with source.open():  # a file that cannot be opened is no bad file
            pass
    try:
        yield from known.read(source, reading)
        return
    except CorpusError:
        raise
    except Unreadable as error:
        reason = str(error)
    except Exception as error:
        if isinstance(error, OSError) and not known.needs:
            raise
        found = " ".join(str(error).split()) or "no reason given"
        found = textwrap.shorten(found, 200, placeholder=" ...")
        reason = f"no readable {known.name}: {found} ({type(error).__name__})"
    reading.report.refuse(BadRecord(source.name, None, reason))


def _is_json(source: Source) -> bool:
    """Standard input has no suffix: JSON lines announce themselves with a brace."""
    with source.open() as raw:
        peek = raw.peek(1) if isinstance(raw, io.BufferedReader) else b""
    return peek.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"{"


class _Ids:
    """The ids of a corpus's documents, in a private file that SQLite makes if they are many."""

    def __init__(self) -> None:
        self._files: list[str] = []
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        off = "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF"
        table = "CREATE TABLE known (id BLOB PRIMARY KEY, file INTEGER) WITHOUT ROWID"
        self._db.executescript(f"{off}; {table}; BEGIN")

    def close(self) -> None:
        self._db.close()

    def without_repeated(
        self, source: Source, documents: Iterator[Document], report: CorpusReport
    ) -> Iterator[Document]:
        """The documents of a file whose ids are new; the report counts them, and the others."""
        self._files.append(source.name)
        previous = repeated = None
        for document in documents:
            if document.id not in (previous, repeated):
                first = self._first_file(document.id)
                if first is None:
                    previous, repeated = document.id, None
                    report.documents += 1
                else:
                    repeated = document.id
                    reason = f"id {repeated!r} is that of a document of {first} already"
                    report.refuse(BadRecord(source.name, document.layout.record, reason))
            if document.id == previous:
                yield document

    def _first_file(self, identifier: str) -> str | None:
        """The file that has a document of this id already."""
        key = blake2b(identifier.encode(), digest_size=16).digest()
        row = (key, len(self._files) - 1)
        if self._db.execute("INSERT OR IGNORE INTO known VALUES (?, ?)", row).rowcount:
            return None
        found = self._db.execute("SELECT file FROM known WHERE id = ?", [key]).fetchone()
        return self._files[int(found[0])]
