"""What formats share whose files are parsed as a whole."""

from collections.abc import Sequence
from dataclasses import replace

from flashback.corpus.documents import Document
from flashback.corpus.formats.fields import is_storable
from flashback.corpus.formats.format import Source, Unreadable
from flashback.corpus.place import Heading, Layout


def document(source: Source, text: str, layout: Layout) -> Document:
    """The document of a file.

    Raises:
        Unreadable: there is no text, or it is no Unicode.
    """
    if not text.strip():
        raise Unreadable("no text in this file")
    if not is_storable(text):
        raise Unreadable("a lone surrogate (half of a pair), which is no character")
    return Document(source.name, source.title, text, layout)


def joined(parts: Sequence[tuple[str, Sequence[Heading]]], between: str) -> tuple[str, Layout]:
    """Texts as one, and their headings in it."""
    size = 0
    headings: list[Heading] = []
    for text, found in parts:
        headings += (replace(one, begin=one.begin + size, end=one.end + size) for one in found)
        size += len(text) + len(between)
    return between.join(text for text, _ in parts), Layout(headings=tuple(headings))
