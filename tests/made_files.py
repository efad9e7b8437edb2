"""Small files of every format that is read, made for tests."""

import csv
import html
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

OLD_WORD = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504)
"""The beginning of an encrypted DOCX, which is no ZIP archive."""
SCRIPTS_ONLY = (
    b"<html><head><title>App</title><script>var a = 'text';</script></head>"
    b"<body><noscript>Turn JavaScript on.</noscript><script>render()</script></body></html>"
)
Section = tuple[str, str]
"""A heading and the text below it."""


def pdf(pages: Sequence[str], *, encrypted: bool = False) -> bytes:
    """A PDF with a line of Helvetica for every line of each page."""
    count = len(pages)
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(count))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {count} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, page in enumerate(pages):
        lines = "".join(f"({_escaped(line)}) Tj T*\n" for line in page.split("\n"))
        content = f"BT /F1 11 Tf 14 TL 50 780 Td\n{lines}ET".encode("latin-1")
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents {5 + 2 * number} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>".encode()
        )
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content))
    key = b"/ID [<00> <00>]"
    if encrypted:
        blank = b"00" * 32
        objects.append(b"<< /Filter /Standard /V 1 /R 2 /O <%s> /U <%s> /P -4 >>" % (blank, blank))
        key += b" /Encrypt %d 0 R" % len(objects)
    return _pdf_file(objects, key)


def _escaped(line: str) -> str:
    return line.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")


def _pdf_file(objects: Sequence[bytes], key: bytes) -> bytes:
    out = io.BytesIO(b"%PDF-1.4\n")
    out.seek(0, io.SEEK_END)
    places = []
    for number, one in enumerate(objects, 1):
        places.append(out.tell())
        out.write(b"%d 0 obj\n%s\nendobj\n" % (number, one))
    start = out.tell()
    out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
    out.writelines(b"%010d 00000 n \n" % place for place in places)
    out.write(b"trailer << /Size %d /Root 1 0 R %s >>\n" % (len(objects) + 1, key))
    out.write(b"startxref\n%d\n%%%%EOF\n" % start)
    return out.getvalue()


def page(sections: Sequence[Section]) -> bytes:
    """An HTML page."""
    body = "".join(
        f"<h2>{html.escape(title)}</h2><p>{html.escape(text)}</p>" for title, text in sections
    )
    return f"<!doctype html><html><head><title>x</title></head><body>{body}</body></html>".encode()


def docx(sections: Sequence[Section], table: Sequence[Sequence[str]] = ()) -> bytes:
    """A Word file, with a table at its end."""
    from docx import Document

    made = Document()
    for title, text in sections:
        made.add_heading(title, level=1)
        made.add_paragraph(text)
    if table:
        cells = made.add_table(len(table), len(table[0]))
        for row, values in zip(cells.rows, table, strict=True):
            for cell, value in zip(row.cells, values, strict=True):
                cell.text = value
    out = io.BytesIO()
    made.save(out)
    return out.getvalue()


def epub(chapters: Sequence[bytes], members: Mapping[str, bytes] | None = None) -> bytes:
    """A book of HTML pages; `members` replace or join those of the archive."""
    names = [f"text/chapter {n}.xhtml" for n in range(len(chapters))]
    items = "".join(
        f'<item id="c{n}" href="{name.replace(" ", "%20")}" media-type="application/xhtml+xml"/>'
        for n, name in enumerate(names)
    )
    spine = "".join(f'<itemref idref="c{n}"/>' for n in range(len(names)))
    package = f"<package xmlns='http://www.idpf.org/2007/opf'><manifest>{items}</manifest>"
    files = {
        "mimetype": b"application/epub+zip",
        "META-INF/container.xml": b"<container xmlns='urn:oasis:names:tc:opendocument:xmlns:"
        b"container'><rootfiles><rootfile full-path='OPS/book.opf'/></rootfiles></container>",
        "OPS/book.opf": f"{package}<spine>{spine}</spine></package>".encode(),
        **{f"OPS/{name}": text for name, text in zip(names, chapters, strict=True)},
    }
    return zipped(files | dict(members or {}))


def zipped(files: Mapping[str, bytes]) -> bytes:
    """A ZIP archive."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in files.items():
            packed.writestr(name, data)
    return out.getvalue()


def notebook(cells: Sequence[tuple[str, str]]) -> bytes:
    """A notebook of (type, source)."""
    made = [
        {"cell_type": kind, "source": source.splitlines(keepends=True), "outputs": []}
        for kind, source in cells
    ]
    return json.dumps({"nbformat": 4, "cells": made}).encode()


def table(rows: Sequence[Sequence[str]], delimiter: str = ",") -> bytes:
    """CSV."""
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows(rows)
    return out.getvalue().encode()


def parquet(columns: Mapping[str, Sequence[object]]) -> bytes:
    """A Parquet file."""
    import pyarrow
    from pyarrow.parquet import write_table

    out = io.BytesIO()
    write_table(pyarrow.table(dict(columns)), out)
    return out.getvalue()


def write(path: Path, data: bytes | str) -> Path:
    """A file, in folders that are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path
