"""What a file format is: a function from a file to documents, and what it needs.

A format reads one file. It names a bad record in the report and goes on; for a file of which it can
make nothing it raises `Unreadable`, or lets its library's exception pass: either becomes one line.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from flashback.corpus.documents import Advance, CorpusReport, Document
from flashback.corpus.formats.file_settings import FileSettings

MOST_FILE_BYTES = 64 << 20
"""Of a file that is parsed as a whole, such as HTML."""
MOST_LINE_BYTES = 64 << 20
"""Of a record on a line."""


class Unreadable(Exception):
    """A file of which nothing can be read; the message says why."""


@dataclass(frozen=True)
class Source:
    """One file (or standard input) of a corpus."""

    path: Path | None
    name: str
    """Its path as the user would write it: names bad records, and is the id of its document."""
    title: str
    """Of the document of a file that is one."""
    bytes: int

    def open(self) -> contextlib.AbstractContextManager[BinaryIO]:
        """The raw bytes, before any decompression; standard input is left open afterwards."""
        if self.path is None:
            return contextlib.nullcontext(sys.stdin.buffer)
        return open(self.path, "rb")


def content_of(source: Source) -> bytes:
    """All of a file.

    Raises:
        Unreadable: it is too large to be parsed as a whole.
    """
    if source.bytes > MOST_FILE_BYTES:
        raise Unreadable(f"{source.bytes:,} bytes; expected at most {MOST_FILE_BYTES:,}")
    with source.open() as raw:
        return raw.read(MOST_FILE_BYTES)


@dataclass(frozen=True)
class Reading:
    """What all files of a corpus are read with."""

    report: CorpusReport = field(default_factory=CorpusReport)
    advance: Advance = lambda _: None
    settings: FileSettings = FileSettings()


@dataclass(frozen=True)
class Format:
    """A file format."""

    name: str
    """As its users call it."""
    read: Callable[[Source, Reading], Iterator[Document]]
    needs: tuple[str, ...] = ()
    """The modules of the extra `files` that read it."""
    records: bool = False
    """Whether a file has many documents, with fields."""

    @property
    def missing(self) -> str | None:
        """What to do before such a file can be read; None: nothing."""
        absent = [name for name in self.needs if find_spec(name) is None]
        if not absent:
            return None
        return (
            f"{self.name} needs {' and '.join(absent)}; pip install '.[files]' in a clone of the "
            "project"
        )
