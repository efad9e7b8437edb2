"""Where a passage stands in its document: page, heading, line and characters.

Offsets count characters (Unicode code points) of the document's text as it was read, half-open.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from heapq import merge
from typing import Any

_ENDS = re.compile(r"[.!?…。！？｡．؟۔।॥።။។][\"'”’»)\]」』）】]*\s*\Z")
"""The end of a page that ends with a sentence."""


@dataclass(frozen=True)
class Place:
    """Where a passage begins; what is not known is None."""

    page: int | None = None
    """From 1."""
    last_page: int | None = None
    """Where it ends, if that is another one."""
    heading: str | None = None
    """The nearest one above."""
    line: int | None = None
    """Of the file, from 1."""
    start: int | None = None
    end: int | None = None
    """Offsets in the document's text."""

    def __str__(self) -> str:
        """For people: `page 3`, `"Keeping time", line 12`; empty if nothing is known."""
        pages = f"page {self.page}" if self.page is not None else ""
        parts = (
            pages if self.last_page is None else f"pages {self.page} to {self.last_page}",
            f'"{self.heading}"' if self.heading else "",
            f"line {self.line}" if self.line is not None else "",
        )
        return ", ".join(filter(None, parts))

    def record(self) -> dict[str, Any]:
        """What is known, for JSON; `place_of` reads it."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def place_of(record: Mapping[str, Any]) -> Place:
    """The place that a record describes; fields of other names or types are left out."""
    heading = record.get("heading")
    counts = {
        name: value
        for name in ("page", "last_page", "line", "start", "end")
        if isinstance(value := record.get(name), int) and not isinstance(value, bool)
    }
    return Place(heading=heading if isinstance(heading, str) else None, **counts)


@dataclass(frozen=True)
class Heading:
    """A heading and where it stands in a text."""

    begin: int
    end: int
    """Behind its last character."""
    title: str


@dataclass(frozen=True)
class Layout:
    """What is known of where a text comes from."""

    start: int = 0
    """Where it begins in the document's text, of which it may be a part."""
    line: int | None = None
    """The line of the file that it begins on, if it is the file's own text."""
    pages: tuple[int, ...] = ()
    """Where each page begins in it."""
    headings: tuple[Heading, ...] = ()
    """In their order; none overlaps another."""
    record: int | None = None
    """The line or row of its file, if it is a field of a record."""


@dataclass(frozen=True)
class Section:
    """The text `[begin, end)` below a heading, the heading itself included."""

    begin: int
    end: int
    heading: str | None


def sections(text: str, layout: Layout) -> Iterator[Section]:
    """The sections of a text, which tile it; one that has only headings joins the next one.

    A section ends at a heading, and at the end of a page if a sentence ends there.
    """
    begin = reached = 0
    title = None
    ends = (Heading(at, at, "") for at in layout.pages if _ENDS.search(text, max(0, at - 20), at))
    for mark in merge(layout.headings, ends, key=lambda mark: mark.begin):
        if text[reached : mark.begin].strip():
            yield Section(begin, mark.begin, title)
            begin = mark.begin
        if mark.title:
            title, reached = mark.title, mark.end
    yield Section(begin, len(text), title)


class Places:
    """Places in one text, asked for from its beginning to its end."""

    def __init__(self, text: str, layout: Layout) -> None:
        """Begin at the first character."""
        self._text = text
        self._layout = layout
        self._line = layout.line
        self._counted = 0

    def place(self, begin: int, end: int, heading: str | None) -> Place:
        """The place of `text[begin:end]`."""
        layout = self._layout
        page, last = (bisect_right(layout.pages, at) or None for at in (begin, max(begin, end - 1)))
        other = last if last != page else None
        start, stop = layout.start + begin, layout.start + end
        return Place(page, other, heading, self._line_of(begin), start, stop)

    def _line_of(self, at: int) -> int | None:
        if self._line is not None:
            low, high = sorted((self._counted, at))  # an overlap steps back
            step = self._text.count("\n", low, high)
            self._line += step if at >= self._counted else -step
            self._counted = at
        return self._line
