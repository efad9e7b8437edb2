"""Jupyter notebooks: the sources of their cells; headings are those of their Markdown."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from flashback.corpus.documents import Document
from flashback.corpus.formats import markdown
from flashback.corpus.formats.format import Reading, Source, Unreadable, content_of
from flashback.corpus.formats.whole import document, joined
from flashback.corpus.place import Heading

SUFFIXES = (".ipynb",)


def read(source: Source, reading: Reading) -> Iterator[Document]:
    """The text of a notebook, outputs left out.

    Raises:
        Unreadable: it is no notebook, too large, or has no text.
    """
    try:
        found = json.loads(content_of(source))
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"not JSON ({error})") from error
    parts = [_part(cell) for cell in _cells(found)]
    text, layout = joined([part for part in parts if part[0].strip()], "\n\n")
    yield document(source, text, layout)


def _cells(notebook: Any) -> list[Any]:
    """The cells; those of format 3 lie in worksheets."""
    if isinstance(notebook, dict):
        sheets = [notebook, *(notebook.get("worksheets") or ())]
        lists = [sheet["cells"] for sheet in sheets if isinstance(sheet, dict) and "cells" in sheet]
        if lists and all(isinstance(cells, list) for cells in lists):
            return [cell for cells in lists for cell in cells]
    raise Unreadable("no notebook: expected an object with a list 'cells'")


def _part(cell: Any) -> tuple[str, Sequence[Heading]]:
    """The source of a cell, and the headings in it."""
    if not isinstance(cell, dict):
        raise Unreadable(f"no notebook: a cell is {type(cell).__name__}, expected an object")
    lines = cell.get("source", cell.get("input", ""))
    text = "".join(map(str, lines)) if isinstance(lines, list) else str(lines or "")
    return text, markdown.headings(text) if cell.get("cell_type") == "markdown" else ()
