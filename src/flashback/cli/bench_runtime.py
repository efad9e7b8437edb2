"""`flashback bench runtime`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from flashback.benchmark.bench_settings import RuntimeSettings
from flashback.cli.console import for_results, notes, stride_progress
from flashback.cli.documents import Sources, open_sources
from flashback.cli.options import options_of, take

if TYPE_CHECKING:
    from flashback.benchmark.results import Results
    from flashback.benchmark.runtime import RealText, Runtime

TEXT = "python-docs:evaluation"
"""Real text that is on every machine."""

threads_option = click.option(
    "--threads", type=click.IntRange(1, 1024), help="CPU threads (default: PyTorch's choice)."
)


@click.command()
@options_of(RuntimeSettings)
@click.option("--index", type=Path, help="Read real text, with passages from this index folder.")
@click.option(
    "--text",
    multiple=True,
    help="The corpus whose first document that is long enough is read, as 'flashback index' takes "
    f"it (repeatable; default: {TEXT}).",
)
@threads_option
@click.option("--plot", type=Path, help="Write the figure to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def runtime(
    index: Path | None,
    text: tuple[str, ...],
    threads: int | None,
    plot: Path | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Run the paper's run-time test.

    \b
    flashback bench runtime --shape opt-125m --lengths 512:1024
    flashback bench runtime --shape gpt2 --sampled --json
    flashback bench runtime --shape opt-125m --index IDX --text my-texts/

    Random tokens, passages all different. The arms take turns: none, slot_cached (every passage's
    keys and values are kept from the start), slot, append, prepend (logits of the last position
    only) and authors_prepend (logits of every position, as the authors' code computes them). With
    --index, a document is read instead, and what the index finds for it. In both, the text is
    given, so that all arms have the same contexts and passages.

    Seconds are those of all strides. Boundary: the share of them that the boundary passes take.
    Growth: how many times as long the last boundary takes as the second. Bound: what the machine's
    memory bandwidth and matrix rate allow, as a share of what was measured. Predicted: likewise,
    after a calibration: the rates that a few decode steps and encoding passes of the reader reach
    at the first length, before anything else is measured.
    """
    from flashback.cli.quiet import quiet_transformers

    settings = take(RuntimeSettings, values)
    real = _real_text(index, text)
    quiet_transformers()
    import torch

    from flashback.benchmark.plot import plot_runtime
    from flashback.benchmark.record import runtime_record
    from flashback.benchmark.runtime import prepare
    from flashback.evaluation.figures import check_plot

    if plot is not None:
        check_plot(plot)  # now, not after minutes of measuring
    if threads is not None:
        torch.set_num_threads(threads)
    with notes.status("making the model, measuring the machine"):
        machine = prepare(settings, real)
    with stride_progress(machine.strides_to_measure) as on_stride:
        results = machine.run(on_stride)
    if as_json:
        click.echo(json.dumps(runtime_record(machine, results), indent=2))
    else:
        _print_table(machine, results)
        _print_figures(runtime_record(machine, results))
    if plot is not None:
        plot_runtime(results, _title(machine), plot)


def _real_text(index: Path | None, text: tuple[str, ...]) -> "RealText | None":
    """What `--index` and `--text` ask for.

    Raises:
        click.UsageError: text without an index.
        FlashBackError: one of them is missing or unusable.
    """
    from flashback.benchmark.runtime import RealText

    if index is None:
        if text:
            raise click.UsageError("--text is read with passages of an index; give --index, too")
        return None
    sources: Sources = open_sources(text or (TEXT,), index, retrieves=True)
    assert sources.retriever is not None
    return RealText(sources.corpus.read(lambda _: None), sources.retriever)


def _title(machine: "Runtime") -> str:
    placement, settings = machine.reader.placement, machine.settings
    return (
        f"{machine.reader.name}, {placement.dtype_name} on {placement.device}, "
        f"batch {settings.batch_size}, {machine.material.name}, "
        f"contexts {machine.lengths[0]} to {machine.lengths[-1]}, "
        f"s={settings.stride}, m={settings.passage_tokens}"
    )


def _print_table(machine: "Runtime", results: "Results") -> None:
    """All strides' seconds, the last stride's, and shares of the seconds measured."""
    table = Table(title=_title(machine))
    table.add_column("pattern")
    for heading in ("seconds", "spread", "boundary", "last, ms", "growth", "bound", "predicted"):
        table.add_column(heading, justify="right")
    for arm in results.arms:
        table.add_row(
            arm,
            f"{results.seconds(arm):.2f}",
            f"{results.spread(arm):.0%}" if len(results.runs) > 1 else "",
            f"{results.encode_seconds(arm) / results.seconds(arm):.0%}",
            f"{1000 * results.of(arm)[-1].stride_seconds:.0f}",
            f"{results.growth(arm):.2f} x",
            f"{results.bound_share(arm):.0%}",
            f"{results.predicted_share(arm):.2f} x",
        )
    for_results().print(table)


def _print_figures(record: dict[str, Any]) -> None:
    """The ratios, and what retrieval did on real text."""
    for name, value in record["ratios"].items():
        low, high = record["ratio_ranges"][name]
        spread = f" ({low:.2f} to {high:.2f})" if high > low else ""
        click.echo(f"{name}: {value:.2f}{spread}")
    if found := record.get("retrieval"):
        click.echo(
            f"retrieval: {1000 * found['p50_seconds']:.2f} ms a stride (p95 "
            f"{1000 * found['p95_seconds']:.2f} ms), not counted above; passages of "
            f"{found['passage_tokens']:.0f} tokens, {found['unchanged_share']:.0%} unchanged"
        )
    for arm, count in record.get("passage_cache", {}).items():
        click.echo(
            f"{arm}: {count['unchanged']} passages unchanged, {count['kept']} kept, "
            f"{count['encoded']} encoded"
        )
