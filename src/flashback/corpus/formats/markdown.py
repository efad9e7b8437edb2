"""Markdown: plain text with headings."""

import re
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

from flashback.corpus.documents import Document
from flashback.corpus.formats import plain
from flashback.corpus.formats.format import Reading, Source
from flashback.corpus.place import Heading

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

SUFFIXES = (".md", ".markdown")
_LINE_END = re.compile(r"\r\n|\r|\n")
_FRONT_MATTER = re.compile(r"---[ \t]*\n.*?\n(?:---|\.\.\.)[ \t]*\n", re.DOTALL)


def read(source: Source, reading: Reading) -> Iterator[Document]:
    """Stream the blocks of a file, each with its headings."""
    return plain.read(source, reading, headings)


def headings(text: str) -> tuple[Heading, ...]:
    """The headings of a text, those below front matter."""
    front = _FRONT_MATTER.match(text)
    begin = front.end() if front else 0
    body = text[begin:]
    starts = [0, *(end.end() for end in _LINE_END.finditer(body)), len(body)]
    tokens = _parser().parse(body)
    found = []
    for at, token in enumerate(tokens):
        if token.type == "heading_open" and token.map and token.level == 0:
            first, last = (begin + starts[min(one, len(starts) - 1)] for one in token.map)
            title = " ".join(tokens[at + 1].content.split())
            found.append(Heading(first, last, title))
    return tuple(found)


@cache
def _parser() -> "MarkdownIt":
    """Of blocks alone: what stands within a line is of no interest."""
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark").disable(["inline"])
