"""Tables as files: JSON lines for documents, figures."""

import json
from collections.abc import Sequence
from pathlib import Path

from flashback.evaluation.markdown import figure as figure_of
from flashback.evaluation.perplexity import Table
from flashback.evaluation.statistics import Interval
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
        SettingsError: see `flashback.evaluation.figures.check_plot`.
    """
    from flashback.evaluation.figures import check_plot, save_figure

    check_plot(path)
    from matplotlib.figure import Figure

    rows = table.rows[::-1]  # the first one on top
    figure = Figure(figsize=(8, 1.2 + 0.32 * len(rows)), layout="constrained")
    axes = figure.subplots()
    values = [row.perplexity.value for row in rows]
    spread = _spread([row.perplexity for row in rows])
    colors = ["tab:blue" if row.arm.training == "lora" else "tab:gray" for row in rows]
    bars = axes.barh([row.arm.name for row in rows], values, xerr=spread, color=colors)
    axes.bar_label(bars, [figure_of(value) for value in values], label_type="center", color="white")
    axes.set(xlabel="perplexity (95 % intervals over documents)", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def _spread(intervals: Sequence[Interval]) -> list[list[float]]:
    """Lengths of the intervals below and above the value, never negative."""
    below = [max(0.0, one.value - one.low) for one in intervals]
    above = [max(0.0, one.high - one.value) for one in intervals]
    return [below, above]


def plot_sweep(tables: Sequence[Table], names: Sequence[str], title: str, path: Path) -> None:
    """Perplexity of every row against the settings swept, in their order.

    Raises:
        SettingsError: see `flashback.evaluation.figures.check_plot`.
    """
    from flashback.evaluation.figures import check_plot, save_figure

    check_plot(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axes = figure.subplots()
    rows = len(tables[0].rows)
    for number, row in enumerate(tables[0].rows):
        perplexities = [table.rows[number].perplexity for table in tables]
        beside = (number - (rows - 1) / 2) * 0.4 / rows  # so that intervals do not hide each other
        axes.errorbar(
            [at + beside for at in range(len(tables))],
            [one.value for one in perplexities],
            yerr=_spread(perplexities),
            marker="o",
            capsize=3,
            label=row.arm.name,
        )
    axes.set_xticks(range(len(tables)), names)
    axes.set(ylabel="perplexity (95 % intervals over documents)", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside right upper")
    save_figure(figure, path)
