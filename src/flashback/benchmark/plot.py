"""The run-time figure: seconds per stride and speed-up against context length."""

from collections.abc import Sequence
from pathlib import Path

from flashback.benchmark.runtime import Measured
from flashback.errors import SettingsError

_NAMES = {
    "none": "no retrieval",
    "slot": "slot",
    "append": "append (FlashBack)",
    "prepend": "prepend",
    "authors_prepend": "prepend, logits everywhere",
}


def check_plot(path: Path) -> None:
    """Whether a figure can be written there.

    Raises:
        SettingsError: matplotlib is not installed or does not know the suffix, or no such folder.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SettingsError(
            "--plot needs matplotlib; install it with pip install 'flashback-ralm[bench]'"
        ) from None
    known = Figure().canvas.get_supported_filetypes()
    if path.suffix[1:] not in known:
        raise SettingsError(f"--plot {path}: expected a name ending in one of {', '.join(known)}")
    if not path.absolute().parent.is_dir():
        raise SettingsError(f"--plot {path}: no such folder as {path.parent}")


def plot_runtime(rows: Sequence[Measured], title: str, path: Path) -> None:
    """Write the figure; its format is the path's suffix.

    Raises:
        SettingsError: see `check_plot`.
    """
    check_plot(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    seconds, speedup = figure.subplots(1, 2)
    by_arm: dict[str, list[Measured]] = {}
    for row in sorted(rows, key=lambda row: row.length):
        by_arm.setdefault(row.arm, []).append(row)
    for arm, own in by_arm.items():
        lengths = [row.length for row in own]
        (line,) = seconds.plot(lengths, [row.stride_seconds for row in own], label=_NAMES[arm])
        seconds.plot(lengths, [row.bound_seconds for row in own], ":", color=line.get_color())
        if arm != "append" and "append" in by_arm:
            ratios = [
                row.stride_seconds / base.stride_seconds
                for row, base in zip(own, by_arm["append"], strict=True)
            ]
            speedup.plot(lengths, ratios, color=line.get_color(), label=_NAMES[arm])
    seconds.set(xlabel="context, tokens", ylabel="seconds per stride", ylim=(0, None))
    seconds.set_title("dotted: the machine's bound", fontsize="small")
    speedup.axhline(1, color="gray", linewidth=0.5)
    speedup.set(xlabel="context, tokens", ylabel="times append's seconds", ylim=(0, None))
    seconds.legend()
    speedup.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
