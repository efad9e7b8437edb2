"""EPUB: the pages of a book in the order in which they are read, with headings."""

import posixpath
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote
from zipfile import ZipFile

from flashback.corpus.documents import Document
from flashback.corpus.formats.archives import archive
from flashback.corpus.formats.format import Reading, Source, Unreadable
from flashback.corpus.formats.html import NEEDS as NEEDS
from flashback.corpus.formats.html import visible
from flashback.corpus.formats.whole import document, joined

SUFFIXES = (".epub",)
_CONTAINER = "META-INF/container.xml"
_ENCRYPTION = "META-INF/encryption.xml"


def read(source: Source, reading: Reading) -> Iterator[Document]:
    """The text of a book.

    Raises:
        Unreadable: it is encrypted, a bomb, no book, or has no text.
    """
    with archive(source) as packed:
        parts = [visible(_member(packed, name)) for name in _pages(packed)]
    text, layout = joined([part for part in parts if part[0].strip()], "\n\n")
    yield document(source, text, layout)


def _pages(packed: ZipFile) -> list[str]:
    """The members that are the book's pages, in their order."""
    roots = _values(packed, _CONTAINER, "rootfile", "full-path")
    if not roots:
        raise Unreadable(f"no book in it: {_CONTAINER} names none")
    package = _xml(packed, roots[0])
    files = {item.get("id"): item.get("href", "") for item in _named(package, "item")}
    spine = [files.get(item.get("idref"), "") for item in _named(package, "itemref")]
    folder = posixpath.dirname(roots[0])
    pages = [posixpath.normpath(posixpath.join(folder, unquote(one))) for one in spine if one]
    if _ENCRYPTION in packed.namelist():
        locked = {unquote(one) for one in _values(packed, _ENCRYPTION, "CipherReference", "URI")}
        if locked & set(pages):
            raise Unreadable("encrypted: its pages are protected by digital rights management")
    return pages


def _values(packed: ZipFile, member: str, tag: str, attribute: str) -> list[str]:
    found = (element.get(attribute) for element in _named(_xml(packed, member), tag))
    return [str(value) for value in found if value]


def _named(tree: Any, tag: str) -> Iterator[Any]:
    return iter(tree.iterfind(f".//{{*}}{tag}"))


def _xml(packed: ZipFile, member: str) -> Any:
    from lxml.etree import XMLParser, fromstring

    parser = XMLParser(resolve_entities=False, no_network=True)
    return fromstring(_member(packed, member), parser)


def _member(packed: ZipFile, name: str) -> bytes:
    try:
        return packed.read(name)
    except KeyError:
        raise Unreadable(f"damaged: {name} is missing") from None
