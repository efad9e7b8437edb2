"""Tables of figures for people, in as many columns as fit the terminal."""

from collections.abc import Callable, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from flashback.cli.console import for_results
from flashback.evaluation.markdown import figure, passages_of, ratio_figure, summary_of

_GAP = 2
"""Characters between columns."""


def print_table(record: dict[str, Any], title: str) -> None:
    """Print a table's record (`flashback.evaluation.perplexity.Table.record`)."""
    print_columns(_columns(record["rows"]), title)
    results_console().print(summary_of(record))
    print_passages(record)


def print_passages(record: dict[str, Any]) -> None:
    """Print what was found out about the passages that were shown."""
    for line in passages_of(record):
        results_console().print(line)


def print_columns(columns: list[tuple[str, list[str]]], title: str) -> None:
    """Print headings and cells, the most important first; at least three columns."""
    console = results_console()
    while len(columns) > 3 and _width(columns) > console.width:
        columns.pop()
    printed = Table(
        title=title,
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, _GAP - 1, 0, 0),
    )
    for number, (heading, _) in enumerate(columns):
        printed.add_column(heading, justify="right" if number else "left", no_wrap=number > 0)
    for cells in zip(*(cells for _, cells in columns), strict=True):
        printed.add_row(*cells)
    console.print(printed)


def results_console() -> Console:
    """Where tables and what is said about them go, as it is."""
    return for_results(markup=False, emoji=False)


def _columns(rows: Sequence[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Headings and cells, the most important first."""

    def interval(one: dict[str, Any], shown: Callable[[float], str]) -> str:
        value = one["perplexity"] if "perplexity" in one else one["value"]
        return f"{shown(value)} ({shown(one['low'])}-{shown(one['high'])})"

    return [
        ("", [row["name"] for row in rows]),
        ("perplexity (95 %)", [interval(row, figure) for row in rows]),
        (
            "against the first",
            [interval(row["against_first_row"], ratio_figure) for row in rows],
        ),
        ("bits/\nbyte", [ratio_figure(row["bits_per_byte"]) for row in rows]),
        ("per\nword", [figure(row["word_perplexity"]) for row in rows]),
    ]


def _width(columns: Sequence[tuple[str, list[str]]]) -> int:
    lines = ([*heading.splitlines(), *cells] for heading, cells in columns)
    return sum(max(map(len, own)) for own in lines) + _GAP * (len(columns) - 1)
