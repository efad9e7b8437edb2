"""The corpus `python-docs`: the documentation strings of the Python environment it runs in.

Real English that every machine has: the docstrings of the standard library and of the installed
packages, and the language reference's help topics. Sources are parsed, never imported or executed.
One document per module; its title is the module's dotted name.
"""

import ast
import contextlib
import os
import signal
import sysconfig
import warnings
from collections.abc import Callable, Generator, Iterator
from multiprocessing import get_context
from pathlib import Path

from flashback.corpus.documents import Advance, Document
from flashback.errors import CorpusError

NAME = "python-docs"
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idlelib"}
_SHORTEST = 200
"""Characters; a module that documents less is left out."""

_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


_MODULES_TOGETHER = 64
"""Handed to a worker at a time."""


def find_modules() -> list[tuple[str, Path]]:
    """(dotted name, file) of every module of this environment, sorted; our own excluded."""
    paths = sysconfig.get_paths()
    roots = dict.fromkeys(Path(paths[key]).resolve() for key in ("stdlib", "purelib", "platlib"))
    own_package = Path(__file__).resolve().parent.parent
    modules: dict[str, Path] = {}
    for root in roots:
        for folder, folders, files in os.walk(root):
            folders[:] = [
                name
                for name in folders
                if name not in _SKIPPED_FOLDERS and Path(folder, name) != own_package
            ]
            for file in files:
                path = Path(folder, file)
                if path.suffix == ".py" and path.is_file():
                    modules.setdefault(_module_name(path.relative_to(root)), path)
    return sorted(modules.items())


def read_python_docs(
    modules: list[tuple[str, Path]], advance: Advance = lambda _: None
) -> Generator[Document, None, None]:
    """Stream one document per module that says something; `advance` gets source bytes.

    Raises:
        CorpusError: a process that parses sources died.
    """
    # They take a while to import, also for --help.
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    sizes = [path.stat().st_size for _, path in modules]
    # Spawned, not forked: the parent may hold the threads of a loaded model.
    workers = min(os.cpu_count() or 1, 8)
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        with _interrupts_blocked():  # and so in the workers, which it starts
            documents = pool.map(read_module, modules, chunksize=_MODULES_TOGETHER)
        for size, document in zip(sizes, documents, strict=True):
            advance(size)
            if document is not None:
                yield document
    except BrokenProcessPool as error:  # workers import the program's main module
        raise CorpusError(
            "python-docs is read by worker processes, and one of them died; in a script of "
            'your own, start it below `if __name__ == "__main__":`'
        ) from error
    finally:  # a caller that stops reading waits for the modules being parsed, not for all
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Ctrl-C is for the parent: a worker that dies while it answers would leave it waiting."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def read_module(module: tuple[str, Path]) -> Document | None:
    """The documentation of one (dotted name, file); None if it says too little or is no Python."""
    name, path = module
    try:
        with warnings.catch_warnings():  # invalid escapes in other people's sources
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
        extract = _topics if name == "pydoc_data.topics" else _docstrings
        text = "\n\n".join(extract(tree))
        text.encode("utf-8")  # a docstring may hold lone surrogates
    except (SyntaxError, ValueError, RecursionError, MemoryError, OSError):
        return None
    return Document(f"{NAME}/{name}", name, text) if len(text) >= _SHORTEST else None


_Extract = Callable[[ast.Module], Iterator[str]]


def _docstrings(tree: ast.Module) -> Iterator[str]:
    """The module's docstring, then each documented class and function under its qualified name."""
    seen: set[str] = set()
    for heading, node in _documented(tree, ""):
        doc = ast.get_docstring(node)
        if doc and len(doc.split()) >= 3 and doc not in seen:
            seen.add(doc)
            yield f"{heading}\n{doc}" if heading else doc


def _documented(node: _Documented, prefix: str) -> Iterator[tuple[str, _Documented]]:
    yield prefix, node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _documented(child, f"{prefix}.{child.name}" if prefix else child.name)


def _topics(tree: ast.Module) -> Iterator[str]:
    """The texts of `pydoc`'s help topics: the one dictionary of strings in its module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            for value in node.values:
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield value.value.strip()
