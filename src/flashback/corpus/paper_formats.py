"""The files of the paper's data sets to texts: WikiText's Parquet and the Pile's JSON lines.

They are data: nothing in them is unpickled or executed. Nothing here holds more in memory than a
WikiText article, a batch of rows or a line of JSON. A damaged file raises OSError, ValueError or
NotImplementedError (pyarrow's errors are among them); a bad line of JSON goes to the report.
"""

import io
import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain, groupby, pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

from flashback.corpus.documents import Advance, BadRecord, CorpusReport
from flashback.errors import CorpusError

Record = tuple[int, str, str]
"""A document's number in its file, its title and its text."""

_HEADING = re.compile(r" = (?!= )(.+)(?<! =) = \n?")


def import_pyarrow() -> Any:
    """The optional library that reads Parquet and Zstandard.

    Raises:
        CorpusError: it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise CorpusError(
            f"the paper's data sets need pyarrow ({error}); pip install '.[train]' in a clone of "
            "the project"
        ) from error
    return pyarrow


def read_wikitext(path: Path, report: CorpusReport, advance: Advance) -> Iterator[Record]:
    """Stream the articles of a Parquet file with a row per line; `title` is the heading's."""
    for (number, title), lines in groupby(_headed(_rows(path, advance)), itemgetter(0, 1)):
        yield number, title, "".join(line for _, _, line in lines)


def _headed(rows: Iterator[str]) -> Iterator[Record]:
    """The number and the title of its article with every line, blank lines as once published.

    A heading stands between blank lines, unlike ` = 1 henry and capacitance C = `, a line of a
    sentence that was broken at its formulas.
    """
    number, title, before = -1, "", ""
    for row, after in pairwise(chain(rows, [""])):
        alone = not before.strip() and not after.strip()
        if alone and (heading := _HEADING.fullmatch(row)):
            number, title = number + 1, heading[1]
        elif number < 0 and row.strip():
            raise ValueError(f"expected ' = Title = ' at the start, found {row[:40]!r}")
        before = row
        if number >= 0:
            yield number, title, (row.removesuffix("\n") or " ") + "\n"


def _rows(path: Path, advance: Advance) -> Iterator[str]:
    size, done = path.stat().st_size, 0
    with import_pyarrow().parquet.ParquetFile(path) as file:
        columns = {field.name: str(field.type) for field in file.schema_arrow}
        if columns.get("text") not in ("string", "large_string"):
            raise ValueError("expected a column 'text' of strings")
        for batch in file.iter_batches(1024, columns=["text"]):
            yield from (row or "" for row in batch.column(0).to_pylist())
            step = size * batch.num_rows // file.metadata.num_rows
            done += step
            advance(step)
    advance(size - done)


def read_pile_subset(
    subset: str, path: Path, report: CorpusReport, advance: Advance
) -> Iterator[Record]:
    """Stream the texts of one subset of JSON lines (.jsonl, .jsonl.zst) that mix them all."""
    number = 0
    for line_number, line in enumerate(_lines(path, advance), 1):
        if subset.encode() not in line:  # much faster than to parse it
            continue
        try:
            text = _text_of(line, subset)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            kind = type(error).__name__
            reason = f"expected 'text' and 'meta': {{'pile_set_name'}}, found {kind}: {error}"
            report.refuse(BadRecord(str(path), line_number, reason))
            continue
        if text:
            yield number, "", text
            number += 1


def _text_of(line: bytes, subset: str) -> str:
    """The text of a record; empty if it has none or belongs to another subset."""
    record = json.loads(line)
    text = record["text"] if record["meta"]["pile_set_name"] == subset else ""
    text.encode()  # refuses lone surrogates, and what is no string
    return str(text) if text.strip() else ""


def _lines(path: Path, advance: Advance) -> Iterator[bytes]:
    position = 0
    with open(path, "rb") as raw:
        data: Iterable[bytes] = raw
        if path.suffix == ".zst":
            data = io.BufferedReader(import_pyarrow().CompressedInputStream(raw, "zstd"))
        for line in data:
            yield line
            position, before = raw.tell(), position
            advance(position - before)
    advance(path.stat().st_size - position)
