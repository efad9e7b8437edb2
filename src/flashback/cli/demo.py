"""`flashback demo`."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from flashback.cli.console import indexing_progress, notes
from flashback.cli.documents import counting

if TYPE_CHECKING:
    from flashback.cli.demonstration import Demo
    from flashback.retrieval.kinds import Index
    from flashback.retrieval.protocol import Hit
    from flashback.writing.generator import Generation

_TITLE_WIDTH = 34


@click.command(short_help="See it work on this Python's documentation.")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def demo(as_json: bool) -> None:
    """Index this Python's documentation and continue a held-out page of it, four ways.

    \b
    flashback demo
    flashback demo --json > table.json

    The index is kept in the user's cache folder, so that the next time begins at once.
    """
    from flashback.cli.quiet import begin_loading

    begin_loading("flashback-mini")
    from flashback.cli.demonstration import Demo, DemoSettings, open_or_build_index, score_patterns

    quiet = as_json and not notes.is_terminal
    console = Console(stderr=as_json, highlight=False, quiet=quiet)
    with indexing_progress() as progress:
        index, built = open_or_build_index(progress)
    _print_index(console, index, built)
    show = Demo(index, DemoSettings())
    show.warm_up()
    _print_append(console, show)
    for pattern in ("slot", "prepend", "none"):
        with notes.status(f"the same again: {pattern}"):
            for _ in show.run(pattern):
                pass
    _print_comparison(console, show)
    with counting("scoring windows") as start:
        table = score_patterns(index, start)
    _print_perplexity(console, table)
    if as_json:
        rows = [{"pattern": name, **_row(result)} for name, result in show.results.items()]
        record = {"prompt_tokens": len(show.prompt), "rows": rows, "perplexity": table["rows"]}
        click.echo(json.dumps(record))


def _print_index(console: Console, index: "Index", built: bool) -> None:
    counts = index.manifest.content.counts
    done = "Indexed" if built else "Opened the index of"
    console.print(
        f"{done} the documentation of this Python environment: {counts['documents']:,} modules, "
        f"{counts['passages']:,} passages ({counts['repeated_passages']:,} repeated ones stored "
        f"once), {index.manifest.bytes / 1e6:.1f} MB."
    )


def _print_append(console: Console, show: "Demo") -> None:
    from flashback.cli.demonstration import PAGE
    from flashback.writing.generator import StrideStart, TextPiece

    console.print(
        f"Continuing a page no training or index has seen, [bold]{PAGE}[/], after "
        f"{len(show.prompt):,} tokens; a passage is retrieved and appended every "
        f"{show.settings.stride} tokens (its title and score on the right):\n"
    )
    console.print(Text(f"… {show.prompt_end}\n", style="dim"))
    events = show.run("append")
    for start in events:
        assert isinstance(start, StrideStart)
        text = ""
        # Refreshed by hand: a refreshing thread would take time from the reader.
        with Live(console=console, auto_refresh=False) as live:
            for event in events:
                if not isinstance(event, TextPiece):
                    break
                text += event.text
                live.update(_stride_row(console, text, start.passages), refresh=True)
        if not console.is_terminal:  # where it prints only the last state, and no line's end
            console.line()


def _stride_row(console: Console, text: str, passages: Sequence["Hit"]) -> Table:
    titles = "\n".join(f"{hit.title} ({hit.score:.0f})" for hit in passages)
    row = Table.grid(padding=(0, 3))
    row.add_column(width=max(console.width - _TITLE_WIDTH - 3, 20))
    row.add_column(width=_TITLE_WIDTH, style="dim", overflow="ellipsis", no_wrap=True)
    row.add_row(Text(text.strip("\n")), titles or "no passage")
    return row


def _row(result: "Generation") -> dict[str, Any]:
    return {
        "seconds": result.seconds,
        "retrieve_seconds": sum(stride.retrieve_seconds for stride in result.strides),
        "prefilled": result.prefilled,
        "encoded": result.prefilled,  # the former name, for one version
        "reused": result.reused,
        "tokens": len(result.tokens),
        "tokens_per_second": result.tokens_per_second,
    }


def _print_comparison(console: Console, show: "Demo") -> None:
    table = Table(title="\nThe same prompt and settings, each from an empty cache")
    for heading in ("pattern", "seconds", "prompt tokens prefilled", "reused", "tokens/s"):
        table.add_column(heading, justify="left" if heading == "pattern" else "right")
    for pattern, result in show.results.items():
        table.add_row(
            pattern,
            f"{result.seconds:.2f}",
            f"{result.prefilled:,}",
            f"{result.reused:,}",
            f"{result.tokens_per_second:.1f}",
        )
    console.print(table)


def _print_perplexity(console: Console, record: dict[str, Any]) -> None:
    table = Table(
        title=f"\nHow well {record['tokens']:,} tokens of {record['documents']} other unseen pages "
        "are predicted (perplexity; lower is better)"
    )
    table.add_column("pattern")
    table.add_column("perplexity", justify="right")
    for row in record["rows"]:
        table.add_row(row["name"], f"{row['perplexity']:.2f}")
    console.print(table)
    console.print(
        "'(text)': the reader as it is, with words around passages. 'LoRA': with the adapter that "
        "was trained to read appended passages and that wrote the text above."
    )
