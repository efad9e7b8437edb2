"""All file formats, by suffix. A new one is a file beside this one and a line here."""

from collections.abc import Callable, Iterator

from flashback.corpus.documents import Document
from flashback.corpus.formats import (
    code,
    docx,
    epub,
    html,
    json_lines,
    markdown,
    notebook,
    pages,
    parquet,
    plain,
    restructured,
    tables,
)
from flashback.corpus.formats.format import Format, Reading, Source
from flashback.declared import Registry

FORMATS: Registry[Format] = Registry("file format")
"""By suffix, in lower case, with its dot."""


def register(
    name: str,
    suffixes: tuple[str, ...],
    read: Callable[[Source, Reading], Iterator[Document]],
    needs: tuple[str, ...] = (),
    *,
    records: bool = False,
) -> None:
    """Add a format under its suffixes."""
    for suffix in suffixes:
        FORMATS.register(suffix, Format(name, read, needs, records))


register("text", plain.SUFFIXES, plain.read)
register("reStructuredText", restructured.SUFFIXES, restructured.read)
register("Markdown", markdown.SUFFIXES, markdown.read)
register("JSON lines", json_lines.SUFFIXES, json_lines.read, records=True)
register("CSV", tables.SUFFIXES, tables.read, records=True)
register("Parquet", parquet.SUFFIXES, parquet.read, parquet.NEEDS, records=True)
register("PDF", pages.SUFFIXES, pages.read, pages.NEEDS)
register("HTML", html.SUFFIXES, html.read, html.NEEDS)
register("DOCX", docx.SUFFIXES, docx.read, docx.NEEDS)
register("EPUB", epub.SUFFIXES, epub.read, epub.NEEDS)
register("notebook", notebook.SUFFIXES, notebook.read)
register("Python", code.PYTHON_SUFFIXES, code.read_python)
register("source code", code.SUFFIXES, plain.read)


def format_of(name: str) -> Format | None:
    """The format of a file of this name; None: no known one."""
    ends = (name.lower()[at:] for at, letter in enumerate(name) if letter == ".")
    return next((FORMATS[end] for end in ends if end in FORMATS), None)
