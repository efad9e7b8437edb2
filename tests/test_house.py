"""The structure of the source: which room may import which, without circles, and in small pieces.

A room is a folder or a module of the package's root. Imports are read from the code, those inside
functions and under TYPE_CHECKING included.
"""

import ast
import statistics
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import flashback

ROOT = Path(flashback.__file__).parent
GROUND = {"declared", "errors", "files", "sampling", "settings", "version"}
MAY_IMPORT = {
    **{room: set[str]() for room in GROUND},
    "patterns": set(),
    "corpus": set(),
    "corpus.formats": {"corpus"},
    "wire": set(),
    "retrieval": {"corpus", "corpus.formats", "wire"},
    "engines.kernels": set(),
    "engines.cache": {"engines.kernels", "patterns"},
    "engines": {"engines.cache", "engines.kernels", "patterns", "wire"},
    "readers": {"engines", "engines.kernels", "patterns", "corpus.characters"},
    "writing": {"readers", "patterns", "engines.protocol", "retrieval.protocol"},
    "scoring": {
        "readers",
        "patterns",
        "corpus",
        "engines",
        "engines.kernels",
        "retrieval.protocol",
    },
    "evaluation": {"scoring", "readers", "patterns", "corpus", "retrieval.protocol"},
    "questions": {"evaluation", "writing", "scoring", "readers", "patterns", "corpus"}
    | {"retrieval.protocol", "engines"},
    "training": {"evaluation", "scoring", "readers", "patterns", "corpus"},
    "server": {"writing", "scoring", "readers", "patterns", "engines.protocol"}
    | {"retrieval.guard", "retrieval.protocol"},
    "loading": {"writing", "readers", "engines", "retrieval", "scoring"},
    "benchmark": {"loading", "evaluation", "scoring", "writing", "readers", "retrieval", "corpus"}
    | {"engines", "engines.cache", "engines.kernels", "patterns", "server.affinity"},
}
"""Rooms, or single modules of rooms, that a room imports besides itself and the ground.

`cli` may import everything; nothing but the entry points imports `cli`.
"""
ENTRY_POINTS = {"", "__main__"}
MOST_ROOMS, MOST_FLOORS, MOST_ROOT_MODULES = 26, 12, 9
LONGEST_FILE, LONGEST_FUNCTION, LONGEST_MEDIAN = 350, 50, 8


@cache
def modules() -> dict[str, Path]:
    """Every module with code in it, by its name in the package."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if path.read_text("utf-8").strip():
            found[name] = path
    return found


@cache
def imports() -> dict[str, set[str]]:
    """The modules that each module imports."""
    return {name: set(_imported(path)) - {name} for name, path in modules().items()}


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "flashback":
            assert node.level == 0
            module = str(node.module).removeprefix("flashback").removeprefix(".")
            for alias in node.names:
                inner = f"{module}.{alias.name}".removeprefix(".")
                yield inner if inner in modules() else module
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "flashback":
                    yield alias.name.removeprefix("flashback").removeprefix(".")


def room_of(module: str) -> str:
    """The folder of a module, or the module itself in the root."""
    folder = module.rpartition(".")[0]
    return folder if (ROOT / module.replace(".", "/")).is_dir() is False and folder else module


def test_rooms_import_what_they_may() -> None:
    wrong = []
    for module, imported in imports().items():
        room = room_of(module)
        if room in ENTRY_POINTS or room == "cli":
            continue
        allowed = MAY_IMPORT[room] | {room} | GROUND
        wrong += [
            f"{module} -> {other}"
            for other in sorted(imported)
            if room_of(other) not in allowed and other not in allowed
        ]
    assert not wrong


def test_nothing_imports_the_command_line() -> None:
    importers = {
        module
        for module, imported in imports().items()
        if any(room_of(other) == "cli" for other in imported)
    }
    assert {room_of(module) for module in importers} <= {"cli", "__main__"}


def test_no_circles() -> None:
    TopologicalSorter(imports()).prepare()  # raises on a circle
    TopologicalSorter(rooms()).prepare()


def rooms() -> dict[str, set[str]]:
    """The rooms that each room imports; the package's face, which is lazy, is none."""
    found: dict[str, set[str]] = {}
    for module, imported in imports().items():
        if module:
            own = found.setdefault(room_of(module), set())
            own |= {room_of(other) for other in imported if other} - {room_of(module)}
    return found


def floors() -> dict[str, int]:
    """The longest chain of imports below each room, itself counted."""
    below = rooms()
    found: dict[str, int] = {}
    for room in TopologicalSorter(below).static_order():
        found[room] = 1 + max((found[other] for other in below.get(room, ())), default=0)
    return found


def test_few_rooms_and_floors() -> None:
    assert len(floors()) + 1 <= MOST_ROOMS  # and the package's face
    assert max(floors().values()) <= MOST_FLOORS
    assert len(list(ROOT.glob("*.py"))) <= MOST_ROOT_MODULES


def test_files_and_functions_are_short() -> None:
    long, lengths = [], []
    for name, path in modules().items():
        text = path.read_text("utf-8")
        if text.count("\n") > LONGEST_FILE:
            long.append(name)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lengths.append((node.end_lineno or 0) - node.lineno + 1)
                if lengths[-1] > LONGEST_FUNCTION:
                    long.append(f"{name}.{node.name}")
    assert not long
    assert statistics.median(lengths) <= LONGEST_MEDIAN
