"""The command line as a user meets it: run in this process or in one of its own."""

import contextlib
import io
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from flashback.cli.main import main

NOTES = {
    "moon.md": "The tides follow the moon, which pulls the water of the ocean towards it.",
    "net/socket.txt": "A socket reaches the network: it connects, sends, receives and closes.",
    "net/json.rst": "The json module encodes and decodes JSON, a format for exchanging data.",
    "snow.txt": "Snow is 雪 in Japanese; it falls in winter and melts in spring.",
}
"""A small corpus: file names and their texts."""


_PROGRESS = re.compile(r"^(loading .*|.+: step \d+ of \d+, .+)\n", re.MULTILINE)
"""What is said where there is no terminal; see `tests/cli/test_seen_at_once.py`."""


@dataclass(frozen=True)
class Outcome:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str
    """Without lines of progress."""

    @property
    def record(self) -> Any:
        """Standard output, parsed as JSON."""
        assert (self.code, self.err) == (0, "")
        return json.loads(self.out)


def run(
    *arguments: str | Path, input: bytes | None = b"", encoding: str = "utf-8", code: int = 0
) -> Outcome:
    """Run a command in this process, through the real entry; neither stream is a terminal.

    Args:
        input: standard input; None: it is closed.
        encoding: of standard output.
        code: the exit code that is expected.
    """
    written = io.BytesIO()
    out = io.TextIOWrapper(written, encoding=encoding, write_through=True)
    err = io.StringIO()
    stdin = None if input is None else io.TextIOWrapper(io.BufferedReader(io.BytesIO(input)))
    found: object = None
    with (
        patch.object(sys, "argv", ["flashback", *map(str, arguments)]),
        patch.object(sys, "stdin", stdin),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as error:
            found = error.code
    assert isinstance(found, int)
    told = without_progress(err.getvalue())
    outcome = Outcome(found, written.getvalue().decode(encoding), told)
    assert outcome.code == code, outcome
    return outcome


def without_progress(err: str) -> str:
    """Standard error without what loads, and the steps of a training."""
    return _PROGRESS.sub("", err)


def refused(*arguments: str | Path, input: bytes | None = b"", code: int = 2) -> str:
    """Run a command that must fail with one line and nothing else; return that line."""
    outcome = run(*arguments, input=input, code=code)
    assert outcome.out == ""
    assert outcome.err.startswith("flashback: ")
    assert outcome.err.count("\n") == 1
    assert outcome.err.endswith("\n")
    return outcome.err


def start(*arguments: str | Path, **options: Any) -> "subprocess.Popen[bytes]":
    """Start a command in a process of its own, with pipes unless `options` say otherwise."""
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    command = [sys.executable, "-m", "flashback", *map(str, arguments)]
    return subprocess.Popen(command, **pipes | options)


def write_notes(folder: Path) -> Path:
    """Write the small corpus into a new folder."""
    for name, text in NOTES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return folder


def index_notes(folder: Path) -> Path:
    """Index the small corpus in a new folder."""
    run("index", write_notes(folder / "notes"), "--out", folder / "IDX")
    return folder / "IDX"
