"""`flashback bench engine`."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from flashback.benchmark.bench_settings import EngineBenchSettings
from flashback.cli.bench_runtime import threads_option
from flashback.cli.console import for_results, notes, stride_progress
from flashback.cli.options import options_of, take

if TYPE_CHECKING:
    from flashback.benchmark.engine import EngineBench, Results


@click.command()
@options_of(EngineBenchSettings)
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def engine(threads: int | None, as_json: bool, **values: Any) -> None:
    """This engine against transformers' own cache: tokens per second.

    \b
    flashback bench engine --shape opt-125m --lengths 512:1024
    flashback bench engine --shape gpt2 --pattern none --json

    The arms take turns, stride by stride: transformers' own cache with plain linear layers
    (dynamic) and this engine's cache with weights laid out for the processor (ours), in float32
    and bfloat16, and with 8-bit weights on CPU. Random tokens, passages all different. Other: the
    share of a stride that is not the model's own: choosing tokens, text, keeping books.
    """
    from flashback.cli.quiet import quiet_transformers

    settings = take(EngineBenchSettings, values)
    quiet_transformers()
    import torch

    from flashback.benchmark.engine import prepare

    if threads is not None:
        torch.set_num_threads(threads)
    with notes.status("making the model in every form"):
        machine = prepare(settings)
    with stride_progress(machine.strides) as on_stride:
        results = machine.run(on_stride)
    if as_json:
        click.echo(json.dumps(_record(machine, results), indent=2))
        return
    table = Table(title=_title(machine))
    table.add_column("engine")
    for heading in ("tokens/s", "spread", "other"):
        table.add_column(heading, justify="right")
    for row in map(results.row, results.arms):
        table.add_row(
            row.arm,
            f"{row.tokens_per_second:.1f}",
            f"{row.spread:.0%}",
            f"{results.other_share(row.arm):.1%}",
        )
    for_results().print(table)
    for name, value in results.ratios().items():
        click.echo(f"{name}: {value:.2f}")


def _title(machine: "EngineBench") -> str:
    settings, reader = machine.settings, next(iter(machine.readers.values()))
    return (
        f"{reader.name} on {reader.placement.device}, {settings.pattern}, contexts "
        f"{machine.lengths[0]} to {machine.lengths[-1]}, s={settings.stride}, "
        f"m={settings.passage_tokens}"
    )


def _record(machine: "EngineBench", results: "Results") -> dict[str, Any]:
    from flashback.benchmark.record import measured_on

    device = next(iter(machine.readers.values())).placement.device
    return {
        "settings": asdict(machine.settings),
        **measured_on(device),
        "rows": [
            asdict(row)
            | {
                "tokens_per_second": row.tokens_per_second,
                "spread": row.spread,
                "other_share": results.other_share(row.arm),
            }
            for row in map(results.row, results.arms)
        ],
        "ratios": results.ratios(),
    }
