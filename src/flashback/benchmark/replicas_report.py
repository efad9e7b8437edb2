"""The report and the figure of a simulation of replicas."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flashback.benchmark.replicas import Outcome, Served
from flashback.benchmark.replicas_settings import ReplicasSettings
from flashback.benchmark.report import Report
from flashback.evaluation.figures import check_plot, save_figure

AFTER = 60.0
"""Seconds from the death of a replica that are looked at apart."""
_BINS = 60
"""Of the figure."""
_HEADINGS = (
    *("route", "reused", "again, M tokens", "p50 ms", "p95 ms", "p99 ms", "busiest"),
    *("reused then", "p99 then", "moved", "broken"),
)


def replicas_report(settings: ReplicasSettings, outcomes: Sequence[Outcome]) -> Report:
    """A line for each route."""
    death = settings.death
    records = [_record(one, death) for one in outcomes]
    turns = len(outcomes[0].served)
    title = (
        f"{settings.conversations:,} conversations, {turns:,} turns, {settings.replicas} replicas "
        f"of {settings.cache_tokens:,} tokens"
    )
    notes = [
        "reused: of the tokens before a question, those cached where it was sent; again: those "
        "that were not; ms: to the first token; busiest: the most prefilling by the mean"
    ]
    if death is not None:
        notes.append(
            f"a replica dies after {death:,.0f} s and returns {settings.dead:g} s later; then: in "
            f"the {AFTER:g} s after its death; moved: requests sent again before their first "
            "token; broken: answers that broke off"
        )
    record = {"settings": asdict(settings), "turns": turns, "routes": records}
    return Report(record, title, _HEADINGS, tuple(map(_row, records)), tuple(notes))


def _record(one: Outcome, death: float | None) -> dict[str, Any]:
    then = [] if death is None else [turn for turn in one.served if 0 <= turn.began - death < AFTER]
    work = list(one.work.values())
    return {
        "route": one.route,
        "reused": reused_share(one.served),
        "tokens_again": sum(turn.history - turn.reused for turn in one.served),
        **{f"p{share}_seconds": percentile(one.served, share) for share in (50, 95, 99)},
        "busiest": max(work) / statistics.mean(work),
        "reused_then": reused_share(then),
        "p99_seconds_then": percentile(then, 99),
        "moved": one.moved,
        "broken": one.broken,
    }


def reused_share(served: Sequence[Served]) -> float | None:
    """Of all tokens before questions, those cached; None: there were none."""
    history = sum(turn.history for turn in served)
    return sum(turn.reused for turn in served) / history if history else None


def percentile(served: Sequence[Served], share: int) -> float | None:
    """Seconds to the first token that so many of a hundred turns do not exceed; None: no turns."""
    waited = sorted(turn.waited for turn in served)
    return waited[min(len(waited) * share // 100, len(waited) - 1)] if waited else None


def _row(record: dict[str, Any]) -> tuple[str, ...]:
    def percent(name: str) -> str:
        return "" if record[name] is None else f"{record[name]:.1%}"

    def milliseconds(name: str) -> str:
        return "" if record[name] is None else f"{1000 * record[name]:,.0f}"

    return (
        record["route"],
        percent("reused"),
        f"{record['tokens_again'] / 1e6:.2f}",
        *(milliseconds(f"p{share}_seconds") for share in (50, 95, 99)),
        f"{record['busiest']:.2f}",
        percent("reused_then"),
        milliseconds("p99_seconds_then"),
        str(record["moved"]),
        str(record["broken"]),
    )


def plot_replicas(settings: ReplicasSettings, outcomes: Sequence[Outcome], path: Path) -> None:
    """Write the figure: what is reused, and the slowest of a hundred first tokens, over time.

    Raises:
        SettingsError: see `check_plot`.
    """
    check_plot(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    shares, seconds = figure.subplots(1, 2)
    width = settings.conversations / settings.arrivals / _BINS
    for one in outcomes:
        bins: list[list[Served]] = [[] for _ in range(_BINS)]
        for turn in one.served:
            if turn.began < _BINS * width:
                bins[int(turn.began / width)].append(turn)
        times = [(at + 0.5) * width for at in range(_BINS)]
        # None is no point of a line to matplotlib.
        shares.plot(times, [reused_share(own) for own in bins], label=one.route)
        seconds.plot(times, [percentile(own, 99) for own in bins])
    for axes in (shares, seconds):
        if (death := settings.death) is not None:
            axes.axvspan(death, death + settings.dead, color="0.9")
        axes.set(xlabel="seconds; shaded: a replica is dead", ylim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
    shares.set_ylabel("share of the history that is cached")
    seconds.set_ylabel("seconds to the first token, 99 of 100")
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    save_figure(figure, path, dpi=110)
