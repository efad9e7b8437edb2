"""Documents in: text files, JSON lines, folders of these and standard input, one at a time.

Knows file formats. Knows nothing of passages or of the index. Nothing here holds more in memory
than a block of a text file (`BLOCK_BYTES`) or a line of JSON, so a corpus may be larger than the
machine's memory.
"""

import codecs
import contextlib
import gzip
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from flashback.corpus.characters import best_break
from flashback.errors import CorpusError

TEXT_SUFFIXES = (".txt", ".md", ".rst")
JSON_SUFFIXES = (".jsonl", ".jsonl.gz")
BLOCK_BYTES = 1 << 20
"""A text file becomes documents of about this size, which share its id."""

Advance = Callable[[int], None]
"""Called with the number of bytes just consumed, for progress bars."""


@dataclass(frozen=True)
class Document:
    """A titled text. Consecutive documents with the same id are parts of one."""

    id: str
    title: str
    text: str


def name_of(document: Document) -> tuple[str, str]:
    """Id and title, which together identify a document: files may use the same ids."""
    return document.id, document.title


@dataclass(frozen=True)
class BadRecord:
    """A record that could not be used: where it stands and why."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


@dataclass
class CorpusReport:
    """Counts and bad records of a corpus; filled while it is read."""

    KEPT = 20

    strict: bool = False
    documents: int = 0
    bad_records: int = 0
    ignored_files: int = 0
    examples: list[BadRecord] = field(default_factory=list)
    """The first `KEPT` bad records."""

    def refuse(self, record: BadRecord) -> None:
        """Count a bad record; in strict mode raise CorpusError instead."""
        if self.strict:
            raise CorpusError(
                f"{record}; correct it, or leave out --strict=True to skip such records"
            )
        self.bad_records += 1
        if len(self.examples) < self.KEPT:
            self.examples.append(record)


@dataclass(frozen=True)
class Source:
    """One file (or standard input) of a corpus."""

    path: Path | None
    name: str
    """Its path as the user would write it: names bad records, and is a text file's id."""
    title: str
    """Of a text file's document."""
    bytes: int

    def open(self) -> contextlib.AbstractContextManager[BinaryIO]:
        """The raw bytes, before any decompression; standard input is left open afterwards."""
        if self.path is None:
            return contextlib.nullcontext(sys.stdin.buffer)
        return open(self.path, "rb")


def find_sources(names: Sequence[str], report: CorpusReport) -> list[Source]:
    """Expand files, folders and `-` into sources, in a stable order.

    Raises:
        CorpusError: a name is neither a file of a known format, nor a folder, nor `-`.
    """
    if "" in names:
        raise CorpusError("corpus '': expected a file, a folder or -, found an empty name")
    if "-" in names and sys.stdin is None:
        raise CorpusError("corpus -: standard input is closed")
    if names.count("-") > 1:
        raise CorpusError("corpus -: standard input can be read only once; name it once")
    sources: list[Source] = []
    for name in names:
        path = Path(name)
        if name == "-":
            sources.append(Source(None, "standard input", "standard input", 0))
        elif path.is_dir():
            sources.extend(_walk(path, report))
        elif not path.exists():
            raise CorpusError(f"corpus {name}: no such file or folder")
        elif not _has_suffix(name, TEXT_SUFFIXES + JSON_SUFFIXES):
            known = ", ".join(TEXT_SUFFIXES + JSON_SUFFIXES)
            raise CorpusError(f"corpus {name}: unknown format; expected one of {known}")
        else:
            size = path.stat().st_size
            sources.append(Source(path, _printable(name), _printable(path.name), size))
    return sources


def _walk(folder: Path, report: CorpusReport) -> Iterator[Source]:
    for root, folders, files in os.walk(folder, onerror=_refuse_folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in sorted(files):
            path = Path(root, file)
            if _has_suffix(file, TEXT_SUFFIXES + JSON_SUFFIXES) and path.is_file():
                title = _printable(path.relative_to(folder).as_posix())
                yield Source(path, _printable(path.as_posix()), title, path.stat().st_size)
            else:
                report.ignored_files += 1


def _has_suffix(name: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a file's name ends so, in upper or lower case."""
    return name.lower().endswith(suffixes)


def _refuse_folder(error: OSError) -> None:
    raise CorpusError(f"corpus {error.filename}: {error.strerror}") from error


def _printable(name: str) -> str:
    """A file's name with what is not UTF-8 replaced, so that it can be stored."""
    return os.fsencode(name).decode("utf-8", "replace")


def read_documents(
    sources: Sequence[Source], report: CorpusReport, advance: Advance = lambda _: None
) -> Iterator[Document]:
    """Stream the documents of `sources`; bad records go to `report`.

    Raises:
        CorpusError: a file cannot be opened, or a bad record was met in strict mode.
    """
    for source in sources:
        try:
            with source.open() as raw:
                yield from _read_source(source, raw, report, advance)
        except OSError as error:
            raise CorpusError(f"corpus {source.name}: {error.strerror or error}") from error


def _read_source(
    source: Source, raw: BinaryIO, report: CorpusReport, advance: Advance
) -> Iterator[Document]:
    if _is_json(source, raw):
        documents = _json_documents(source, _text_lines(source, raw, -1, report, advance), report)
    else:
        lines = _text_lines(source, raw, BLOCK_BYTES, report, advance)
        documents = _text_documents(source, lines, report)
    previous = None
    for document in documents:
        report.documents += document.id != previous
        previous = document.id
        yield document


def _is_json(source: Source, raw: BinaryIO) -> bool:
    if source.path is not None:
        return _has_suffix(source.name, JSON_SUFFIXES)
    # Standard input has no suffix: JSON lines announce themselves with a brace.
    peek = raw.peek(1) if isinstance(raw, io.BufferedReader) else b""
    return peek.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"{"


def _text_lines(
    source: Source, raw: BinaryIO, limit: int, report: CorpusReport, advance: Advance
) -> Iterator[tuple[int, str]]:
    """Yield (line number, text) of every line that is UTF-8; one over `limit` comes in pieces."""
    data: BinaryIO = gzip.GzipFile(fileobj=raw) if _has_suffix(source.name, (".gz",)) else raw  # type: ignore[assignment]
    number, position = 1, 0
    try:
        while line := _read_line(data, limit):
            if b"\0" in line:
                report.refuse(BadRecord(source.name, number, "binary data; expected UTF-8 text"))
                if _has_suffix(source.name, TEXT_SUFFIXES):
                    break
            else:
                yield from _decoded(source, number, line, report)
            number += line.endswith(b"\n")
            if source.path is not None:
                position, before = raw.tell(), position
                advance(position - before)
    except (EOFError, gzip.BadGzipFile, gzip.zlib.error) as error:  # type: ignore[attr-defined]
        report.refuse(BadRecord(source.name, number, f"damaged gzip data ({error})"))
    advance(max(0, source.bytes - position))  # what was given up


def _read_line(data: BinaryIO, limit: int) -> bytes:
    """The next line; of one over `limit` bytes, a piece that ends between two characters."""
    line = data.readline(limit)
    if len(line) == limit:
        for _ in range(3):
            tail = line[-4:]
            if codecs.utf_8_decode(tail, "ignore")[1] == len(tail):
                break
            line += data.readline(1)
    return line


def _decoded(
    source: Source, number: int, line: bytes, report: CorpusReport
) -> Iterator[tuple[int, str]]:
    try:
        yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 at byte {error.start + 1} of the line"
        report.refuse(BadRecord(source.name, number, reason))


def _text_documents(
    source: Source, lines: Iterator[tuple[int, str]], report: CorpusReport
) -> Iterator[Document]:
    refused = report.bad_records
    pending = ""  # blank so far
    found = False
    for block in _blocks(line for _, line in lines):
        pending += block
        if pending.strip():
            found = True
            yield Document(source.name, source.title, pending)
            pending = ""
    if not found and report.bad_records == refused:
        report.refuse(BadRecord(source.name, 1, "no text in this file"))


def _blocks(lines: Iterator[str]) -> Iterator[str]:
    block: list[str] = []
    size = 0
    for line in lines:
        block.append(line)
        size += len(line)
        if size >= BLOCK_BYTES:
            text = "".join(block)
            end = best_break(text)
            yield text[:end]
            block, size = [text[end:]], len(text) - end
    yield "".join(block)


def _json_documents(
    source: Source, lines: Iterator[tuple[int, str]], report: CorpusReport
) -> Iterator[Document]:
    for number, line in lines:
        if not line.strip():
            continue
        document = _parse_record(line, f"{source.name}:{number}")
        if isinstance(document, Document):
            yield document
        else:
            report.refuse(BadRecord(source.name, number, document))


def _parse_record(line: str, fallback_id: str) -> Document | str:
    """A document from our own, BEIR's (`_id`) or Pyserini's (`contents`) fields, or why not."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error})"
    if not isinstance(record, dict):
        return f"expected a JSON object, found {type(record).__name__}"
    text = record.get("text", record.get("contents"))
    title = record.get("title") or ""
    given = (record.get(name) for name in ("id", "_id"))
    identifier = next((value for value in given if value is not None), fallback_id)
    if not isinstance(text, str) or not text.strip():
        return "no text: expected a non-empty string in 'text' or 'contents'"
    if not isinstance(title, str):
        return f"'title' is {type(title).__name__}, expected a string"
    if not isinstance(identifier, str | int | float) or isinstance(identifier, bool):
        return f"'id' is {type(identifier).__name__}, expected a string or a number"
    if isinstance(identifier, float) and not math.isfinite(identifier):
        return f"'id' is {identifier}, expected a string or a finite number"
    try:
        f"{identifier} {title} {text}".encode()
    except UnicodeEncodeError:
        return "a lone surrogate (half of a \\uXXXX\\uXXXX pair), which is no character"
    return Document(str(identifier), title, text)
