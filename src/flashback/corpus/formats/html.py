"""HTML: what a reader of the page sees, with its headings. Nothing is run or fetched."""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from flashback.corpus.documents import Document
from flashback.corpus.formats.format import Reading, Source, content_of
from flashback.corpus.formats.whole import document
from flashback.corpus.place import Heading, Layout

SUFFIXES = (".html", ".htm", ".xhtml")
NEEDS = ("inscriptis",)
_UNSEEN = ("noscript", "template", "svg", "math", "iframe", "object", "select", "textarea")
_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
_PADDING = re.compile(r"(?<=\S) {3,}")
"""Between the columns of a table."""


def read(source: Source, reading: Reading) -> Iterator[Document]:
    """The text of a page.

    Raises:
        Unreadable: it is too large, or has no text.
    """
    text, headings = visible(content_of(source))
    yield document(source, text, Layout(headings=tuple(headings)))


def visible(data: bytes) -> tuple[str, list[Heading]]:
    """The text of a page, and its headings."""
    from inscriptis import Inscriptis
    from lxml.html import HTMLParser, document_fromstring

    if not data.strip():
        return "", []
    parser = HTMLParser(encoding=_encoding(data), no_network=True, huge_tree=True)
    rendered = Inscriptis(document_fromstring(data, parser=parser), _config())
    text = rendered.get_text()
    spans = sorted({(one.start, one.end) for one in rendered.get_annotations()})
    return _without_padding(text, spans)


def _encoding(data: bytes) -> str | None:
    """UTF-8 wherever that is possible; None: what the page says."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return "utf-8"


@cache
def _config() -> Any:
    from inscriptis.css_profiles import CSS_PROFILES
    from inscriptis.html_properties import Display
    from inscriptis.model.config import ParserConfig
    from inscriptis.model.html_element import HtmlElement

    hidden = {name: HtmlElement(display=Display.none) for name in _UNSEEN}
    rules = {name: ["heading"] for name in _HEADINGS}
    return ParserConfig(css=CSS_PROFILES["relaxed"] | hidden, annotation_rules=rules)


def _without_padding(text: str, spans: list[tuple[int, int]]) -> tuple[str, list[Heading]]:
    """The text with two spaces between columns, and what stands at `spans` as headings."""
    bounds = sorted({at for span in spans for at in span})
    moved: dict[int, int] = {}
    lost = 0
    for gap in [*_PADDING.finditer(text), None]:
        while bounds and (gap is None or bounds[0] <= gap.start()):
            at = bounds.pop(0)
            moved[at] = at - lost
        if gap is not None:
            lost += gap.end() - gap.start() - 2
    squeezed = _PADDING.sub("  ", text)
    headings: list[Heading] = []
    for begin, end in ((moved[one], moved[other]) for one, other in spans):
        title = " ".join(squeezed[begin:end].split())
        if title and (not headings or begin >= headings[-1].end):
            headings.append(Heading(begin, end, title))
    return squeezed, headings
