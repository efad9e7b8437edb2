"""CSV and TSV with a line of column names: a document for every row."""

import csv
from collections.abc import Iterator, Sequence

from flashback.corpus.documents import BadRecord, Document
from flashback.corpus.formats import lines
from flashback.corpus.formats.fields import document_of, named
from flashback.corpus.formats.format import MOST_LINE_BYTES, Reading, Source, Unreadable

SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")


def read(source: Source, reading: Reading) -> Iterator[Document]:
    """Stream the rows of a table; no more than a row is in memory.

    Raises:
        Unreadable: no column has a name by which texts are known.
    """
    with source.open() as raw:
        texts = (text for _, text in lines.records(source, raw, reading))
        names = next(texts, "")
        rows = csv.reader(_from(names, texts), delimiter=_delimiter(source, names))
        header = _next_row(rows) or []
        check_columns(header, reading)
        while (row := _next_row(rows)) is not None:
            number = rows.line_num
            if not any(cell.strip() for cell in row):
                continue
            record = dict(zip(header, row, strict=False))
            found = document_of(record, f"{source.name}:{number}", number, reading.settings)
            if isinstance(found, Document):
                yield found
            else:
                reading.report.refuse(BadRecord(source.name, number, found))


def check_columns(header: Sequence[str], reading: Reading) -> None:
    """Refuse a table without texts.

    Raises:
        Unreadable: see `read`.
    """
    wanted = reading.settings.text_fields
    if not any(name in header for name in wanted):
        columns = ", ".join(map(repr, header[:20])) or "none"
        raise Unreadable(
            f"no column {named(wanted)}; found {columns}; name the one with the texts by "
            "--text-field"
        )


def _from(first: str, others: Iterator[str]) -> Iterator[str]:
    yield first
    yield from others


def _delimiter(source: Source, names: str) -> str:
    if source.name.lower().removesuffix(".gz").endswith(".tsv"):
        return "\t"
    return max(",;\t", key=names.count)


def _next_row(rows: Iterator[list[str]]) -> list[str] | None:
    """The next row; its fields may be as long as a line, which the library sets for all readers."""
    before = csv.field_size_limit(MOST_LINE_BYTES)
    try:
        return next(rows, None)
    except csv.Error as error:
        raise Unreadable(f"no readable CSV: {error}") from error
    finally:
        csv.field_size_limit(before)
