"""PDF: a document of pages."""

import re
from collections.abc import Iterator
from typing import Any

from flashback.corpus.documents import Document
from flashback.corpus.formats.format import Reading, Source, Unreadable
from flashback.corpus.formats.whole import document
from flashback.corpus.place import Layout

SUFFIXES = (".pdf",)
NEEDS = ("pypdfium2",)
_HYPHEN = re.compile("[\x02\ufffe](?:\r?\n)?")
"""PDFium's marks of a word that is parted at the end of a line."""


def read(source: Source, reading: Reading) -> Iterator[Document]:
    """The text of all pages.

    Raises:
        Unreadable: it is encrypted, or has no text.
    """
    import pypdfium2

    try:
        pdf = pypdfium2.PdfDocument(source.path)
    except pypdfium2.PdfiumError as error:
        if "password" in str(error).lower():
            raise Unreadable("encrypted; save it without a password") from error
        raise
    try:
        text, pages = _text_of(pdf)
    finally:
        pdf.close()
    if not text.strip():
        raise Unreadable(
            f"no text on its pages ({len(pages)}); if they are scanned, recognise their text first"
        )
    yield document(source, text, Layout(pages=tuple(pages)))


def _text_of(pdf: Any) -> tuple[str, list[int]]:
    """The text, and where each page begins in it."""
    texts: list[str] = []
    begins: list[int] = []
    size = 0
    for page in pdf:
        textpage = page.get_textpage()
        text = _HYPHEN.sub("", textpage.get_text_range()).replace("\r\n", "\n").replace("\0", "")
        textpage.close()
        page.close()
        begins.append(size)
        texts.append(f"{text.rstrip()}\n")
        size += len(texts[-1])
    return "".join(texts), begins
