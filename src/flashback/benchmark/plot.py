"""The run-time figure: seconds per stride and speed-up against context length."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flashback.benchmark.arms import arm_named
from flashback.benchmark.results import Measured, Results
from flashback.evaluation.figures import check_plot, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_runtime(results: Results, title: str, path: Path) -> None:
    """Write the figure; its format is the path's suffix.

    Strides that begin with an empty cache are left out: they would hide the others.

    Raises:
        SettingsError: see `check_plot`.
    """
    check_plot(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    seconds, speedup = figure.subplots(1, 2)
    base = "append" if "append" in results.arms else results.arms[0]
    against = [row.stride_seconds for row in _later(results, base)]
    expected = [row.predicted_seconds for row in _later(results, base)]
    for at, arm in enumerate(results.arms):
        own = _later(results, arm)
        measured = [row.stride_seconds for row in own]
        predicted = [row.predicted_seconds for row in own]
        bound = [row.bound_seconds for row in own]
        lines = [(measured, "-"), (predicted, "--"), (bound, ":")]
        _draw(seconds, own, lines, at, arm_named(arm).title)
        lines = [(_ratios(measured, against), "-"), (_ratios(predicted, expected), "--")]
        _draw(speedup, own, lines, at, None)
    seconds.set(xlabel="context, tokens", ylabel="seconds per stride", ylim=(0, None))
    speedup.set(
        xlabel="context, tokens",
        ylabel=f"times the seconds of {arm_named(base).title}",
        ylim=(0, None),
    )
    figure.legend(loc="outside lower center", ncols=len(results.arms), fontsize="small")
    figure.suptitle(f"{title}\ndashed: predicted; dotted: the machine's bound", fontsize="medium")
    save_figure(figure, path, dpi=120)


def _draw(
    axes: "Axes",
    rows: Sequence[Measured],
    lines: Sequence[tuple[list[float], str]],
    color: int,
    label: str | None,
) -> None:
    """An arm's lines against context length in one colour, the first with a label."""
    lengths = [row.length for row in rows]
    for values, style in lines:
        axes.plot(lengths, values, style, color=f"C{color}", label=label)
        label = None


def _ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(above, below, strict=True)]


def _later(results: Results, arm: str) -> list[Measured]:
    """All but the first stride, by length."""
    return results.of(arm)[1:]
