"""Progress on standard error; silent where that is no terminal."""

import codecs
import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from flashback.corpus.documents import Advance, CorpusReport
from flashback.retrieval.index_settings import DENSE
from flashback.retrieval.indexing import ProgressStart

_WIDE = 160
"""Characters of a line in a file."""


def for_results(**options: Any) -> Console:
    """For tables on standard output: as wide as the terminal, or wide where there is none."""
    console = Console(highlight=False, **options)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _WIDE
    return console


notes = Console(stderr=True, highlight=False, soft_wrap=True)
"""Messages go to standard error, results to standard output."""


@contextlib.contextmanager
def indexing_progress() -> Iterator[ProgressStart]:
    """A bar of bytes read with the count and rate of passages."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[passages]:,} passages, {task.fields[rate]:,.0f}/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=notes, disable=not notes.is_terminal) as progress:

        def start(total: int) -> tuple[Advance, Callable[[], None]]:
            task = progress.add_task("indexing", total=total or None, passages=0, rate=0.0)
            passages = 0

            def on_passage() -> None:
                nonlocal passages
                passages += 1
                if passages % 100 == 0:
                    elapsed = progress.tasks[task].elapsed or 1e-9
                    progress.update(task, passages=passages, rate=passages / elapsed)

            return lambda size: progress.advance(task, size), on_passage

        yield start


Encoding = Callable[[int, int], Callable[[int], None]]
"""Given a number of passages and how many are encoded: what to call with how many more are."""


@contextlib.contextmanager
def encoding_progress() -> Iterator[tuple[ProgressStart, Encoding]]:
    """A bar of bytes read and one of passages encoded."""
    columns = Progress.get_default_columns()
    with Progress(*columns, console=notes, disable=not notes.is_terminal) as progress:

        def reading(total: int) -> tuple[Advance, Callable[[], None]]:
            task = progress.add_task("reading", total=total or None)
            return lambda size: progress.advance(task, size), lambda: None

        def encoding(total: int, ready: int) -> Callable[[int], None]:
            if ready:
                notes.print(f"going on with {ready:,} of {total:,} vectors of an interrupted build")
            task = progress.add_task("encoding", total=total)
            return lambda count: progress.advance(task, count)

        yield reading, encoding


@contextlib.contextmanager
def building_progress(kind: str) -> Iterator[tuple[ProgressStart, Encoding]]:
    """The bars of an index of a kind."""
    if kind == DENSE:
        with encoding_progress() as started:
            yield started
    else:
        with indexing_progress() as progress:
            yield progress, lambda *_: lambda _: None


def print_report(report: CorpusReport) -> None:
    """Name every skipped record and file; of very many, the first and how many more."""
    for record in report.examples:
        notes.print(f"skipped {record}", markup=False)
    if report.bad_records > len(report.examples):
        notes.print(f"more bad records, skipped: {report.bad_records - len(report.examples)}")
    for file in report.skipped[: report.KEPT]:
        notes.print(f"skipped {file}", markup=False)
    if report.ignored_files > report.KEPT:
        more = report.ignored_files - report.KEPT
        notes.print(f"more files, skipped: {more}; 'flashback index --json' lists them")


def read_standard_input() -> str:
    """All of standard input as text: without a byte order mark, lines ended by `\\n`.

    Raises:
        click.UsageError: it is closed, unreadable or not UTF-8.
    """
    if sys.stdin is None:
        raise click.UsageError("standard input is closed; expected text")
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise click.UsageError(
            f"standard input is not UTF-8 at byte {error.start + 1}; expected text"
        ) from None
    except OSError as error:
        raise click.UsageError(
            f"standard input cannot be read: {error.strerror}; expected text"
        ) from None


def at_terminal() -> bool:
    """Whether someone types standard input."""
    return sys.stdin is not None and sys.stdin.isatty()


def read_lines(prompt: str) -> Iterator[str]:
    """The lines of standard input as they come, without a byte order mark.

    Args:
        prompt: shown where someone types them.

    Raises:
        click.UsageError: it is closed or not UTF-8.
    """
    if sys.stdin is None:
        raise click.UsageError("standard input is closed; expected text")
    if not at_terminal():
        lines = iter(sys.stdin.buffer.readline, b"")
        for number, line in enumerate(lines, start=1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            yield _decoded(line, f"line {number}")
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives `input` keys to edit a line with
    with contextlib.suppress(EOFError):
        while True:
            yield _decoded(input(prompt).encode("utf-8", "surrogateescape"), "that line")
    click.echo()


def _decoded(line: bytes, name: str) -> str:
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise click.UsageError(
            f"standard input is not UTF-8 in {name} at byte {error.start + 1}; expected text"
        ) from None


@contextlib.contextmanager
def texts_progress(total: int, done: int) -> Iterator[Callable[[float], None]]:
    """A bar of finished texts; call what is yielded for each, with the tokens per second so far."""
    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[rate]:.1f} tokens/s"))
    with Progress(*columns, console=notes, disable=not notes.is_terminal) as progress:
        task = progress.add_task("writing", total=total, completed=done, rate=0.0)
        yield lambda rate: progress.update(task, advance=1, rate=rate)


def is_main_process() -> bool:
    """Whether this process is the one of a `torchrun` that prints."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def training_progress(title: str = "training") -> Iterator[Callable[[Any], None]]:
    """Optimizer steps with the loss and targets per second: a bar, or lines if that is no terminal.

    Call what is yielded after every step, with the training's `Progress`.
    """
    if not is_main_process():
        yield lambda _: None
    elif notes.is_terminal:
        with _bar_of_steps(title) as on_step:
            yield on_step
    else:
        yield _lines_of_steps(title)


def _lines_of_steps(title: str) -> Callable[[Any], None]:
    """A line after the first step, and whenever there is a new loss."""
    began, last = time.perf_counter(), 0.0

    def on_step(state: Any) -> None:
        nonlocal last
        if state.loss == last or (math.isnan(state.loss) and math.isnan(last)):
            return
        last = state.loss
        loss = "" if math.isnan(last) else f"loss {last:.3f}, "
        rate = state.targets / (time.perf_counter() - began)
        line = f"{title}: step {state.step} of {state.steps}, {loss}{rate:,.0f} targets/s"
        notes.print(line, markup=False)

    return on_step


@contextlib.contextmanager
def _bar_of_steps(title: str) -> Iterator[Callable[[Any], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}, {task.fields[rate]:,.0f} targets/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=notes) as progress:
        task = progress.add_task(title, total=None, loss=float("nan"), rate=0.0)
        began = time.perf_counter()

        def on_step(state: Any) -> None:
            rate = state.targets / (time.perf_counter() - began)
            progress.update(
                task, completed=state.step, total=state.steps, loss=state.loss, rate=rate
            )

        yield on_step
