"""Plain text and all that is read like it: a document in blocks."""

from collections.abc import Callable, Iterator

from flashback.corpus.characters import best_break
from flashback.corpus.documents import BadRecord, Document
from flashback.corpus.formats import lines
from flashback.corpus.formats.format import Reading, Source
from flashback.corpus.place import Heading, Layout

SUFFIXES = (".txt",)
BLOCK_BYTES = 1 << 20
"""A text file becomes documents of about this size, which share its id."""

Headings = Callable[[str], tuple[Heading, ...]]
"""The headings of a block of text."""


def read(source: Source, reading: Reading, headings: Headings = lambda _: ()) -> Iterator[Document]:
    """Stream the blocks of a text file, of which more never is in memory."""
    refused = reading.report.bad_records
    pending = ""  # blank so far
    start, line = 0, 1
    found = False
    with source.open() as raw:
        found_lines = lines.pieces(source, raw, BLOCK_BYTES, reading)
        for block in _blocks(text for _, text in found_lines):
            pending += block
            if pending.strip():
                found = True
                layout = Layout(start, line, headings=headings(pending))
                yield Document(source.name, source.title, pending, layout)
                start += len(pending)
                line += pending.count("\n")
                pending = ""
    if not found and reading.report.bad_records == refused:
        reading.report.refuse(BadRecord(source.name, 1, "no text in this file"))


def _blocks(found: Iterator[str]) -> Iterator[str]:
    block: list[str] = []
    size = 0
    for line in found:
        block.append(line)
        size += len(line)
        if size >= BLOCK_BYTES:
            text = "".join(block)
            end = best_break(text)
            yield text[:end]
            block, size = [text[end:]], len(text) - end
    yield "".join(block)
