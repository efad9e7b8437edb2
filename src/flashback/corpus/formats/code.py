"""Source code: plain text; of Python, classes and functions are headings."""

import ast
import warnings
from collections.abc import Iterator

from flashback.corpus.documents import Document
from flashback.corpus.formats import plain
from flashback.corpus.formats.format import Reading, Source
from flashback.corpus.place import Heading

PYTHON_SUFFIXES = (".py", ".pyi")
_NAMES = (
    "c cc cpp cu cs dart erl ex exs f90 go h hpp hs java jl js jsx kt lua m ml mjs php pl ps1 "
    "r rb rs scala sh sql swift tcl ts tsx vb zig"
)
SUFFIXES = tuple(f".{name}" for name in _NAMES.split())


def read_python(source: Source, reading: Reading) -> Iterator[Document]:
    """Stream the blocks of a file, each with its classes and functions."""
    return plain.read(source, reading, headings)


def headings(text: str) -> tuple[Heading, ...]:
    """The classes and functions of a Python source, and their methods; none if it is no Python."""
    try:
        with warnings.catch_warnings():  # invalid escapes in other people's sources
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ()
    starts = [0]
    for line in text.split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    return tuple(_definitions(tree, "", starts))


def _definitions(
    tree: ast.Module | ast.ClassDef, prefix: str, starts: list[int]
) -> Iterator[Heading]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            title = f"{prefix}{node.name}"
            yield Heading(starts[first - 1], starts[node.lineno], title)
            if isinstance(node, ast.ClassDef):
                yield from _definitions(node, f"{title}.", starts)
