"""Shared by the commands of `flashback bench`: options, running a benchmark, printing reports."""

import functools
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.table import Table

from flashback.cli.console import for_results, notes
from flashback.cli.documents import counting
from flashback.errors import FlashBackWarning
from flashback.readers.old_weights import weights_of

if TYPE_CHECKING:
    from flashback.benchmark.harness import Benchmark
    from flashback.benchmark.report import Report

Command = Callable[..., Any]
BenchT = TypeVar("BenchT", bound="Benchmark[Any]")

json_option = click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")


@dataclass(frozen=True)
class BenchOptions:
    """How a benchmark runs and what it prints."""

    threads: int | None
    as_json: bool

    def use_threads(self) -> None:
        """Load PyTorch, and let it use these threads."""
        from flashback.cli.quiet import begin_loading

        begin_loading("PyTorch")
        import torch

        if self.threads is not None:
            torch.set_num_threads(self.threads)

    def run(self, prepare: Callable[[], BenchT]) -> tuple[BenchT, Any]:
        """Prepare a benchmark, run it and print its report.

        Returns:
            the benchmark and its results.
        """
        with notes.status("preparing the models"):
            benchmark = prepare()
        with counting("measuring") as start:
            results = benchmark.run(start(benchmark.steps))
        print_report(benchmark.report(results), as_json=self.as_json)
        return benchmark, results


def bench_options(command: Command) -> Command:
    """`--threads` and `--json`, given to the command as `options`."""

    @functools.wraps(command)
    def run(threads: int | None, as_json: bool, **values: Any) -> Any:
        return command(options=BenchOptions(threads, as_json), **values)

    threads = click.option(
        "--threads", type=click.IntRange(1, 1024), help="CPU threads (default: PyTorch's choice)."
    )
    return threads(json_option(run))


def old_weights_option(command: Command) -> Command:
    """`--decode-kernel`: deprecated, says the same as `--weights`."""

    @functools.wraps(command)
    def run(decode_kernel: str | None, **values: Any) -> Any:
        values["weights"] = weights_of(values["weights"], None, decode_kernel)
        if decode_kernel is not None:
            new = f"--weights {values['weights']}"
            warnings.warn(
                f"--decode-kernel is deprecated; use {new}", FlashBackWarning, stacklevel=2
            )
        return command(**values)

    kernels = click.Choice(["pytorch", "numba"])
    return click.option("--decode-kernel", type=kernels, hidden=True)(run)


def print_report(report: "Report", *, as_json: bool) -> None:
    """Print a report as a table with notes, or as JSON."""
    if as_json:
        click.echo(json.dumps(report.record, indent=2))
        return
    if report.headings:
        first, *others = report.headings
        table = Table(title=report.title)
        table.add_column(first)
        for heading in others:
            table.add_column(heading, justify="right")
        for row in report.rows:
            table.add_row(*row)
        for_results().print(table)
    for note in report.notes:
        click.echo(note)
