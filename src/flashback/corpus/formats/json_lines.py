"""JSON lines: a document for every line."""

import json
from collections.abc import Iterator

from flashback.corpus.documents import BadRecord, Document
from flashback.corpus.formats import lines
from flashback.corpus.formats.fields import document_of
from flashback.corpus.formats.format import Reading, Source

SUFFIXES = (".jsonl", ".jsonl.gz")


def read(source: Source, reading: Reading) -> Iterator[Document]:
    """Stream the records of a file; no more than a line is in memory."""
    with source.open() as raw:
        for number, line in lines.records(source, raw, reading):
            if not line.strip():
                continue
            document = _parse(line, source, number, reading)
            if isinstance(document, Document):
                yield document
            else:
                reading.report.refuse(BadRecord(source.name, number, document))


def _parse(line: str, source: Source, number: int, reading: Reading) -> Document | str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error})"
    if not isinstance(record, dict):
        return f"expected a JSON object, found {type(record).__name__}"
    return document_of(record, f"{source.name}:{number}", number, reading.settings)
