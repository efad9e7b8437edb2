"""Word's DOCX: paragraphs and tables, with headings."""

from collections.abc import Iterator, Sequence
from typing import Any

from flashback.corpus.documents import Document
from flashback.corpus.formats.archives import archive
from flashback.corpus.formats.format import Reading, Source
from flashback.corpus.formats.whole import document, joined
from flashback.corpus.place import Heading

SUFFIXES = (".docx",)
NEEDS = ("docx",)


def read(source: Source, reading: Reading) -> Iterator[Document]:
    """The text of a file, notes and margins left out.

    Raises:
        Unreadable: it is encrypted, a bomb, or has no text.
    """
    import docx

    with archive(source), source.open() as raw:
        opened = docx.Document(raw)
    parts = [_part(block) for block in opened.iter_inner_content()]
    text, layout = joined([part for part in parts if part[0].strip()], "\n\n")
    yield document(source, text, layout)


def _part(block: Any) -> tuple[str, Sequence[Heading]]:
    """The text of a paragraph or table, and the heading that it is."""
    if hasattr(block, "rows"):
        return "\n".join(map(_row, block.rows)), ()
    text = block.text
    style = "" if block.style is None else block.style.name or ""
    is_heading = style == "Title" or style.startswith("Heading")
    title = " ".join(text.split())
    return text, (Heading(0, len(text), title),) if is_heading and title else ()


def _row(row: Any) -> str:
    """The cells of a row; one that spans several columns once."""
    cells = {id(cell._tc): cell for cell in row.cells}
    return " | ".join(" ".join(cell.text.split()) for cell in cells.values())
