"""The lines of text files, whole or in pieces, whatever their length, and compressed or not."""

import codecs
import gzip
from collections.abc import Iterator
from typing import BinaryIO

from flashback.corpus.documents import BadRecord
from flashback.corpus.formats.format import MOST_LINE_BYTES, Reading, Source

Line = tuple[int, str]
"""Its number, from 1, and its text."""


def pieces(source: Source, raw: BinaryIO, limit: int, reading: Reading) -> Iterator[Line]:
    """Every line that is UTF-8; one over `limit` bytes comes in pieces. Binary data ends it."""
    lines = _Lines(source, raw, reading)
    for number, line in lines.read(limit):
        if b"\0" in line:
            lines.refuse(number, "binary data; expected UTF-8 text")
            break
        yield from lines.decoded(number, line)


def records(source: Source, raw: BinaryIO, reading: Reading) -> Iterator[Line]:
    """Every line that is UTF-8; the others, and those that are too long, are bad records."""
    lines = _Lines(source, raw, reading)
    is_rest = False
    for number, line in lines.read(MOST_LINE_BYTES):
        was_rest, is_rest = is_rest, not line.endswith(b"\n") and len(line) >= MOST_LINE_BYTES
        if is_rest and not was_rest:
            lines.refuse(number, f"a line of over {MOST_LINE_BYTES:,} bytes, which is the most")
        elif not is_rest and not was_rest and b"\0" in line:
            lines.refuse(number, "binary data; expected UTF-8 text")
        elif not is_rest and not was_rest:
            yield from lines.decoded(number, line)


class _Lines:
    """A file's lines, and how far its reading has come."""

    def __init__(self, source: Source, raw: BinaryIO, reading: Reading) -> None:
        self._source = source
        self._raw = raw
        self._reading = reading
        self._position = 0

    def read(self, limit: int) -> Iterator[tuple[int, bytes]]:
        """Lines of up to `limit` bytes, and pieces of longer ones; damaged data ends them."""
        is_packed = self._source.name.lower().endswith(".gz")
        data: BinaryIO = gzip.GzipFile(fileobj=self._raw) if is_packed else self._raw  # type: ignore[assignment]
        number = 1
        try:
            while line := _read_line(data, limit):
                yield number, line
                number += line.endswith(b"\n")
                if self._source.path is not None:
                    self._position, before = self._raw.tell(), self._position
                    self._reading.advance(self._position - before)
        except (EOFError, gzip.BadGzipFile, gzip.zlib.error) as error:  # type: ignore[attr-defined]
            self.refuse(number, f"damaged gzip data ({error})")

    def decoded(self, number: int, line: bytes) -> Iterator[Line]:
        """The line as text, if it is UTF-8."""
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            self.refuse(number, f"not UTF-8 at byte {error.start + 1} of the line")

    def refuse(self, number: int, reason: str) -> None:
        """Report a bad line."""
        self._reading.report.refuse(BadRecord(self._source.name, number, reason))


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
