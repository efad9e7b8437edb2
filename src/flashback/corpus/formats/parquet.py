"""Parquet, as the Hugging Face hub has it: a document for every row."""

from collections.abc import Iterator

from flashback.corpus.documents import BadRecord, Document
from flashback.corpus.formats.fields import document_of
from flashback.corpus.formats.format import Reading, Source
from flashback.corpus.formats.tables import check_columns

SUFFIXES = (".parquet",)
NEEDS = ("pyarrow",)
_ROWS = 1024
"""In memory at a time."""


def read(source: Source, reading: Reading) -> Iterator[Document]:
    """Stream the rows of a table.

    Raises:
        Unreadable: no column has a name by which texts are known.
    """
    from pyarrow.parquet import ParquetFile

    settings = reading.settings
    wanted = (*settings.text_fields, *settings.title_fields, *settings.id_fields)
    done, number = 0, 0
    with ParquetFile(source.path) as file:
        names = file.schema_arrow.names
        check_columns(names, reading)
        columns = [name for name in wanted if name in names]
        rows = file.metadata.num_rows
        for batch in file.iter_batches(_ROWS, columns=columns):
            for record in batch.to_pylist():
                number += 1
                found = document_of(record, f"{source.name}:{number}", number, settings)
                if isinstance(found, Document):
                    yield found
                else:
                    reading.report.refuse(BadRecord(source.name, number, found))
            step = source.bytes * number // rows - done
            done += step
            reading.advance(step)
