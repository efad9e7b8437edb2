"""reStructuredText: plain text with headings, which docutils finds (extra `files`).

Only section titles are taken from its tree, so an unknown role or directive, such as Sphinx's,
loses nothing: the text of a document is its file. Nothing that a document names is opened or run.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

from flashback.corpus.documents import Document
from flashback.corpus.formats import plain
from flashback.corpus.formats.format import Reading, Source
from flashback.corpus.place import Heading

SUFFIXES = (".rst",)
_SPACES = str.maketrans("\v\f", "  ")
"""What docutils takes for spaces, and `str.splitlines` for ends of lines."""
_NEVER = 5
"""The level of errors above all that there are."""


def read(source: Source, reading: Reading) -> Iterator[Document]:
    """Stream the blocks of a file, each with its headings; without docutils, it has none."""
    return plain.read(source, reading, headings if find_spec("docutils") else lambda _: ())


def headings(text: str) -> tuple[Heading, ...]:
    """The section titles of a text, with the lines that mark them; none if docutils gives up."""
    try:
        titles = _titles(text)
    except Exception:  # whatever a parser raises for a text that is none of its kind
        return ()
    lines = text.translate(_SPACES).splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    found: list[Heading] = []
    for title, under in titles:
        first, last = _marked(lines, title, under)
        if first < last and (not found or found[-1].end <= starts[first]):
            found.append(Heading(starts[first], starts[last], title))
    return tuple(found)


def _marked(lines: Sequence[str], title: str, under: int) -> tuple[int, int]:
    """The lines of a title with those above and below it, half-open, from 0; (0, 0): not found.

    Args:
        under: the line below the title, from 1, as docutils counts.
    """
    at = under - 2
    if not 0 <= at < len(lines) - 1 or " ".join(lines[at].split()) != title:
        return 0, 0
    over = at > 0 and lines[at - 1].strip() == lines[at + 1].strip()
    return at - over, at + 2


def _titles(text: str) -> list[tuple[str, int]]:
    """Each title, and the line below it."""
    from docutils import nodes, utils
    from docutils.parsers.rst import Parser

    document = utils.new_document("", _settings())
    Parser(inliner=_plain_inliner()).parse(text, document)
    return [
        (" ".join(section[0].rawsource.split()), section.line or 0)
        for section in document.findall(nodes.section)
    ]


@cache
def _settings() -> Any:
    from docutils import frontend
    from docutils.parsers.rst import Parser

    settings = frontend.get_default_settings(Parser)
    settings.report_level = settings.halt_level = _NEVER
    settings.warning_stream = False
    settings.file_insertion_enabled = settings.raw_enabled = False
    settings.syntax_highlight = "none"
    return settings


@cache
def _plain_inliner() -> Any:
    """What takes the text of a paragraph as it is: what stands within a line is of no interest."""
    from docutils import nodes
    from docutils.parsers.rst import states

    def parse(text: str, *_: Any) -> tuple[list[Any], list[Any]]:
        return [nodes.Text(text)], []

    inliner: Any = states.Inliner()  # its patterns are made of its own class's attributes
    inliner.parse = parse
    return inliner
