"""`flashback bench`: the project's claims of speed, rerun by anyone."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from flashback.benchmark.bench_settings import TrainingBenchSettings
from flashback.benchmark.retrieval import RetrievalBenchSettings, measure_retrieval
from flashback.cli.bench_runtime import runtime, threads_option
from flashback.cli.console import for_results, notes
from flashback.cli.options import options_of, take

if TYPE_CHECKING:
    from flashback.benchmark.training import Measured, Training


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


bench.add_command(runtime)


@bench.command()
@options_of(TrainingBenchSettings)
@threads_option
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


def _training_record(machine: "Training", rows: "Sequence[Measured]") -> dict[str, Any]:
    from flashback.benchmark.record import measured_on
    from flashback.benchmark.training import ratios

    return {
        "shape": machine.reader.name,
        **measured_on(machine.reader.placement.device),
        "dtype": machine.reader.placement.dtype_name,
        "settings": asdict(machine.settings),
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


def _print_training(machine: "Training", rows: "Sequence[Measured]") -> None:
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
    for_results().print(table)
