"""`flashback bench batch`."""

import json
from dataclasses import asdict
from typing import Any

import click
from rich.table import Table

from flashback.benchmark.bench_settings import BatchBenchSettings
from flashback.cli.bench_runtime import threads_option
from flashback.cli.console import for_results, notes
from flashback.cli.options import options_of, take


@click.command()
@options_of(BatchBenchSettings)
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def batch(threads: int | None, as_json: bool, **values: Any) -> None:
    """Write several texts one by one and together: tokens per second.

    \b
    flashback bench batch --shape opt-125m --batch-size 8
    flashback bench batch --shape gpt2 --pattern none --json

    Random prompts of different lengths and random passages; both arms start from empty caches and
    take turns. In float32 their texts must be the same.
    """
    from flashback.cli.quiet import quiet_transformers

    settings = take(BatchBenchSettings, values)
    quiet_transformers()
    import torch

    from flashback.benchmark.batch import prepare
    from flashback.benchmark.record import measured_on

    if threads is not None:
        torch.set_num_threads(threads)
    with notes.status("writing one by one and together"):
        machine = prepare(settings)
        rows = machine.run()
    placement = machine.reader.placement
    ratio = rows[1].tokens_per_second / rows[0].tokens_per_second
    if as_json:
        record = {
            "settings": asdict(settings),
            **measured_on(placement.device),
            "dtype": placement.dtype_name,
            "rows": [
                asdict(row) | {"seconds": row.seconds, "tokens_per_second": row.tokens_per_second}
                for row in rows
            ],
            "ratios": {"batch/one_by_one": ratio},
        }
        click.echo(json.dumps(record, indent=2))
        return
    table = Table(title=f"{machine.reader.name}, {placement}, {settings.batch_size} texts")
    table.add_column("arm")
    for heading in ("tokens/s", "seconds", "spread"):
        table.add_column(heading, justify="right")
    for row in rows:
        figures = f"{row.tokens_per_second:.1f}", f"{row.seconds:.2f}", f"{row.spread:.0%}"
        table.add_row(row.arm, *figures)
    for_results().print(table)
    click.echo(f"batch/one_by_one: {ratio:.2f}")
