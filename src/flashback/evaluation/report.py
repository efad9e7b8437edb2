"""Tables as plain data and as a figure."""

import json
from collections.abc import Sequence
from pathlib import Path

from flashback.evaluation.perplexity import Table
from flashback.files import write_atomically


def write_documents(tables: Sequence[Table], path: Path) -> None:
    """One JSON line per document and table: its targets and every row's nats."""
    records = [
        {"settings": dict(table.settings), **record}
        for table in tables
        for record in table.document_records()
    ]
    write_atomically(path, "".join(json.dumps(record) + "\n" for record in records))


def plot_table(table: Table, title: str, path: Path) -> None:
    """Perplexities with their intervals, one bar per row.

    Raises:
        SettingsError: see `flashback.benchmark.plot.check_plot`.
    """
    from flashback.benchmark.plot import check_plot

    check_plot(path)
    from matplotlib.figure import Figure

    rows = table.rows[::-1]  # the first one on top
    figure = Figure(figsize=(8, 1.2 + 0.32 * len(rows)), layout="constrained")
    axes = figure.subplots()
    values = [row.perplexity.value for row in rows]
    spread = [
        [row.perplexity.value - row.perplexity.low for row in rows],
        [row.perplexity.high - row.perplexity.value for row in rows],
    ]
    colors = ["tab:blue" if row.arm.training == "lora" else "tab:gray" for row in rows]
    bars = axes.barh([row.arm.name for row in rows], values, xerr=spread, color=colors)
    axes.bar_label(bars, [f" {value:.2f}" for value in values], label_type="center", color="white")
    axes.set(xlabel="perplexity (95 % intervals over documents)", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def plot_sweep(tables: Sequence[Table], names: Sequence[str], path: Path) -> None:
    """Perplexity of every row against the settings swept, in their order.

    Raises:
        SettingsError: see `flashback.benchmark.plot.check_plot`.
    """
    from flashback.benchmark.plot import check_plot

    check_plot(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, row in enumerate(tables[0].rows):
        figures = [table.rows[number].perplexity for table in tables]
        axes.errorbar(
            names,
            [figure.value for figure in figures],
            yerr=[
                [figure.value - figure.low for figure in figures],
                [figure.high - figure.value for figure in figures],
            ],
            marker="o",
            capsize=3,
            label=row.arm.name,
        )
    axes.set(ylabel="perplexity (95 % intervals over documents)")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
