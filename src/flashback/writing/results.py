"""Finished texts in an append-only file, resumable after an interruption.

    results    a line each, whole or absent, in the order in which texts end
    run file   beside the results: their prompts, weights and settings

The run file is there before the first result. A result is one line, on disk before the next is
begun; an interrupted line is cut off, and its text is written again.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from flashback.errors import PromptsError
from flashback.files import folder_locked, naming, write_atomically

NOTED = "versions"
"""In a run file, but no reason to refuse its results."""


class Results:
    """A file of results that is open for more."""

    def __init__(self, file: IO[bytes], done: frozenset[int]) -> None:
        self._file = file
        self.done = done
        """The lines of the prompts whose texts were there already."""

    def kept(self) -> list[dict[str, Any]]:
        """All results in the file."""
        lines = Path(self._file.name).read_bytes().split(b"\n")[:-1]
        return [dict(json.loads(line)) for line in lines]

    def append(self, record: dict[str, Any]) -> None:
        """Add a result, durably; `record["line"]` is its prompt's, or what else numbers it."""
        with naming(Path(self._file.name)):
            self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())


@contextlib.contextmanager
def open_results(path: Path, run: dict[str, Any], numbered: str = "line") -> Iterator[Results]:
    """Create a file of results, or resume one of the same run.

    Args:
        run: prompts, weights and settings, as plain data.
        numbered: the member of a result that tells it from the others, a whole number.

    Raises:
        PromptsError: the file belongs to another run or to none, is damaged, or is in use.
        OSError: it cannot be written.
    """
    if path.exists() and not path.is_file():
        raise PromptsError(f"--out={str(path)!r}: is no regular file; expected the name of one")
    with open(path, "ab") as file, folder_locked(path) as alone:
        if not alone:
            raise PromptsError(f"--out={str(path)!r}: another process is writing into it")
        _check_run(path, json.loads(json.dumps(run)))
        yield Results(file, _whole_lines(path, numbered))


def _check_run(path: Path, run: dict[str, Any]) -> None:
    """Write the run file; if there are results, compare it instead."""
    run_path = path.with_name(path.name + ".run.json")
    if path.stat().st_size == 0:
        write_atomically(run_path, json.dumps(run, indent=2, ensure_ascii=False) + "\n")
        return
    try:
        earlier = dict(json.loads(run_path.read_text("utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        raise PromptsError(
            f"--out={str(path)!r}: the file exists, but {run_path.name}, which says how it was "
            "made, is missing or damaged; give another --out"
        ) from None
    if difference := _difference("", earlier | {NOTED: None}, run | {NOTED: None}):
        raise PromptsError(f"--out={str(path)!r}: begun with {difference}; give another --out")


def _difference(name: str, earlier: Any, now: Any) -> str:
    """The first thing that differs, in words; empty if nothing does."""
    if isinstance(earlier, dict) and isinstance(now, dict):
        parts = (
            _difference(f"{name}.{key}", earlier.get(key), now.get(key))
            for key in sorted(earlier.keys() | now.keys())
        )
        return next(filter(None, parts), "")
    if earlier == now:
        return ""
    return f"{name.removeprefix('.')} {json.dumps(earlier)}, not {json.dumps(now)}"


def _whole_lines(path: Path, numbered: str) -> frozenset[int]:
    """The numbers of the prompts that have results; an interrupted line is cut off."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    done: set[int] = set()
    for number, line in enumerate(content[:whole].split(b"\n")[:-1], start=1):
        try:
            done.add(int(json.loads(line)[numbered]))
        except (ValueError, KeyError, TypeError, RecursionError):
            raise PromptsError(
                f"--out={str(path)!r}: line {number} is no result; the file is damaged, give "
                "another --out"
            ) from None
    if whole < len(content):
        os.truncate(path, whole)
    return frozenset(done)
