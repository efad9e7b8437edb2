"""`flashback bench`: the project's claims of speed, rerun by anyone."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from flashback.benchmark.retrieval import RetrievalBenchSettings, measure_retrieval
from flashback.benchmark.settings import RuntimeSettings, TrainingBenchSettings
from flashback.cli.console import notes, stride_progress
from flashback.cli.options import options_of, take

if TYPE_CHECKING:
    from flashback.benchmark.runtime import Measured, Runtime
    from flashback.benchmark.training import Measured as MeasuredTraining
    from flashback.benchmark.training import Training


@click.group()
def bench() -> None:
    """Measure this machine's speed.

    \b
    flashback bench runtime --shape opt-125m --lengths 512:1024
    flashback bench runtime --shape opt-125m --lengths 512:2048 --sampled --plot speed.png
    flashback bench training --shape gpt2-6x512
    flashback bench retrieval my-texts/
    """


@bench.command()
@click.argument("corpus", nargs=-1, required=True)
@options_of(RetrievalBenchSettings)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def retrieval(corpus: tuple[str, ...], as_json: bool, **values: Any) -> None:
    """Index a corpus into a temporary folder and search it.

    \b
    flashback bench retrieval my-texts/ --queries 1000
    flashback bench retrieval corpus.jsonl.gz --json
    """
    with notes.status("indexing and searching"):
        figures = measure_retrieval(corpus, take(RetrievalBenchSettings, values))
    if as_json:
        click.echo(json.dumps(asdict(figures), indent=2))
        return
    click.echo(
        f"{figures.passages:,} passages in {figures.build_seconds:.1f} s "
        f"({figures.passages_per_second:,.0f}/s), {figures.index_megabytes:.1f} MB, opened in "
        f"{figures.open_milliseconds:.1f} ms"
    )
    for latency in figures.latencies:
        click.echo(f"k={latency.k}: p50 {latency.p50:.2f} ms, p95 {latency.p95:.2f} ms")
    click.echo(f"peak resident memory {figures.peak_resident_megabytes:.0f} MB")


_threads = click.option(
    "--threads", type=click.IntRange(1), help="CPU threads (default: PyTorch's choice)."
)


@bench.command()
@options_of(RuntimeSettings)
@_threads
@click.option("--plot", type=Path, help="Write the figure to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def runtime(threads: int | None, plot: Path | None, as_json: bool, **values: Any) -> None:
    """Run the paper's run-time test.

    \b
    flashback bench runtime --shape opt-125m --lengths 512:1024
    flashback bench runtime --shape gpt2 --sampled --json

    Random tokens, passages all different, batch 1. Five arms take turns: none, slot, append,
    prepend (logits of the last position only) and authors_prepend (logits of every position, as
    the authors' code computes them). The bound is what the measured memory bandwidth and matrix
    rate allow.
    """
    from flashback.cli.quiet import quiet_transformers

    settings = take(RuntimeSettings, values)
    quiet_transformers()
    import torch

    from flashback.benchmark.plot import check_plot, plot_runtime
    from flashback.benchmark.runtime import prepare, ratios

    if plot is not None:
        check_plot(plot)  # now, not after minutes of measuring

    if threads is not None:
        torch.set_num_threads(threads)
    with notes.status("making the model, measuring the machine"):
        machine = prepare(settings)
    with stride_progress(machine.strides_to_measure) as on_stride:
        rows = machine.run(on_stride)
    if as_json:
        click.echo(json.dumps(_record(machine, rows), indent=2))
    else:
        _print_table(machine, rows)
        for name, value in ratios(rows, machine.lengths).items():
            click.echo(f"{name}: {value:.2f}")
    if plot is not None:
        plot_runtime(rows, _title(machine), plot)


def _title(machine: "Runtime") -> str:
    placement, settings = machine.reader.placement, machine.settings
    return (
        f"{machine.reader.name}, {placement.dtype_name} on {placement.device}, "
        f"contexts {machine.lengths[0]} to {machine.lengths[-1]}, "
        f"s={settings.stride}, m={settings.passage_tokens}"
    )


def _record(machine: "Runtime", rows: "Sequence[Measured]") -> dict[str, Any]:
    from flashback.benchmark.runtime import ratios, total_seconds
    from flashback.records import versions

    return {
        "shape": machine.reader.name,
        "device": str(machine.reader.placement.device),
        "dtype": machine.reader.placement.dtype_name,
        "batch": 1,
        "versions": versions(),
        "ceilings": {
            "bytes_per_second": machine.ceilings.bytes_per_second,
            "operations_per_second": machine.ceilings.operations_per_second,
        },
        "rows": [
            {
                "pattern": row.arm,
                "length": row.length,
                "stride_seconds": row.stride_seconds,
                "encode_seconds": row.encode_seconds,
                "decode_seconds": row.decode_seconds,
                "bound_share": row.bound_share,
            }
            for row in rows
        ],
        "seconds": {
            arm: total_seconds(rows, arm, machine.lengths) for arm in machine.settings.arms
        },
        "ratios": ratios(rows, machine.lengths),
    }


def _print_table(machine: "Runtime", rows: "Sequence[Measured]") -> None:
    from flashback.benchmark.runtime import total_seconds

    table = Table(title=_title(machine))
    table.add_column("pattern")
    for heading in ("seconds", "first stride, ms", "last stride, ms", "share of the bound"):
        table.add_column(heading, justify="right")
    for arm in machine.settings.arms:
        own = sorted((row for row in rows if row.arm == arm), key=lambda row: row.length)
        share = sum(row.bound_seconds for row in own) / sum(row.stride_seconds for row in own)
        table.add_row(
            arm,
            f"{total_seconds(rows, arm, machine.lengths):.2f}",
            f"{1000 * own[0].stride_seconds:.0f}",
            f"{1000 * own[-1].stride_seconds:.0f}",
            f"{share:.0%}",
        )
    Console().print(table)


@bench.command()
@options_of(TrainingBenchSettings)
@_threads
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def training(threads: int | None, as_json: bool, **values: Any) -> None:
    """Train an adapter three ways: targets per second.

    \b
    flashback bench training --shape gpt2-6x512
    flashback bench training --shape opt-125m --windows 1 --json

    Random tokens, passages all different, appended; LoRA on the query and value projections and
    trained marks; forward and backward passes. Three arms take turns: padded (every stride a
    sequence of its own, as an ordinary Trainer runs them), sorted (by length, the targets' logits
    alone) and packed (the context once, branches on its cache). Their losses must agree.
    """
    from flashback.cli.quiet import quiet_transformers

    settings = take(TrainingBenchSettings, values)
    quiet_transformers()
    import torch

    from flashback.benchmark.training import prepare, ratios

    if threads is not None:
        torch.set_num_threads(threads)
    with notes.status("making the model"):
        machine = prepare(settings)
    with notes.status("training"):
        rows = machine.run()
    if as_json:
        click.echo(json.dumps(_training_record(machine, rows), indent=2))
    else:
        _print_training(machine, rows)
        for name, value in ratios(rows).items():
            click.echo(f"{name}: {value:.2f}")


def _training_record(machine: "Training", rows: "Sequence[MeasuredTraining]") -> dict[str, Any]:
    from flashback.benchmark.training import ratios
    from flashback.records import versions

    return {
        "shape": machine.reader.name,
        "device": str(machine.reader.placement.device),
        "dtype": machine.reader.placement.dtype_name,
        "settings": asdict(machine.settings),
        "versions": versions(),
        "rows": [
            {
                "arm": row.arm,
                "targets_per_second": row.targets_per_second,
                "seconds": row.seconds,
                "spread": row.spread,
                "loss": row.loss,
            }
            for row in rows
        ],
        "ratios": ratios(rows),
    }


def _print_training(machine: "Training", rows: "Sequence[MeasuredTraining]") -> None:
    placement, settings = machine.reader.placement, machine.settings
    table = Table(
        title=f"{machine.reader.name}, {placement.dtype_name} on {placement.device}, "
        f"{machine.targets} targets, N={settings.window_tokens}, s={settings.stride}, "
        f"m={settings.passage_tokens}, batches of {settings.batch_size}"
    )
    table.add_column("arm")
    for heading in ("targets/s", "seconds", "spread", "nats per target"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.arm,
            f"{row.targets_per_second:.1f}",
            f"{row.seconds:.2f}",
            f"{row.spread:.0%}",
            f"{row.loss:.4f}",
        )
    Console().print(table)
