"""Where the commands that ask questions keep answers."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flashback.questions.run import Answers


@contextlib.contextmanager
def answers_in(out: Path | None, run: dict[str, Any]) -> "Iterator[Answers]":
    """Where answers are kept: in a file, or nowhere."""
    from flashback.questions.run import NUMBER, InMemory
    from flashback.writing.results import open_results

    if out is None:
        yield InMemory()
        return
    with open_results(out, run, NUMBER) as results:
        yield results
