"""The harness of all benchmarks: arms take turns, work is repeated, medians count.

An *arm* is one way to do the same work. All arms do a piece of it before any does the next one, so
that a machine whose speed drifts treats them alike.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from flashback.benchmark.report import Report, ratio_lines

ArmT = TypeVar("ArmT")
TurnT = TypeVar("TurnT")
T = TypeVar("T")
ResultsT = TypeVar("ResultsT")

Pairs = Sequence[tuple[str, str]]
"""Names of arms that are compared: the first's figure by the second's."""


def nothing() -> None:
    """Do nothing: for callers that do not want to be called back."""


class Benchmark(Protocol[ResultsT]):
    """A model and its work, ready to be measured."""

    @property
    def steps(self) -> int:
        """Number of measurements that `run` keeps."""
        ...

    def run(self, on_step: Callable[[], None] = nothing) -> ResultsT:
        """Measure every arm, as often as the settings say; call `on_step` after each step."""
        ...

    def report(self, results: ResultsT) -> Report:
        """The results for people and for programs."""
        ...


def take_turns(
    arms: Iterable[ArmT],
    turns: Iterable[TurnT],
    measure: Callable[[ArmT, TurnT], T],
    on_step: Callable[[], None] = nothing,
) -> Iterator[tuple[ArmT, T]]:
    """Measure every arm at the first turn, then every arm at the second, and so on."""
    arms = list(arms)
    for turn in turns:
        for arm in arms:
            yield arm, measure(arm, turn)
            on_step()


def by_arm(measured: Iterable[tuple[ArmT, T]]) -> dict[ArmT, list[T]]:
    """Each arm's measurements, turn by turn."""
    found: dict[ArmT, list[T]] = {}
    for arm, one in measured:
        found.setdefault(arm, []).append(one)
    return found


def timed(work: Callable[[], T], wait: Callable[[], None] = nothing) -> tuple[float, T]:
    """Do some work.

    Args:
        wait: waits for the work that is queued on the device.

    Returns:
        its seconds; its result.
    """
    wait()
    started = time.perf_counter()
    result = work()
    wait()
    return time.perf_counter() - started, result


def spread(runs: Sequence[float], middle: float | None = None) -> float:
    """The slowest run less the fastest, as a share of the middle; None: of the median."""
    middle = statistics.median(runs) if middle is None else middle
    return (max(runs) - min(runs)) / middle


def ratios(pairs: Pairs, figures: Mapping[str, float]) -> dict[str, float]:
    """The first arm's figure by the second's, of the pairs of which both were measured."""
    return {
        f"{above}/{below}": figures[above] / figures[below]
        for above, below in pairs
        if {above, below} <= figures.keys()
    }


def ratio_ranges(
    pairs: Pairs, runs: Sequence[Mapping[str, float]]
) -> dict[str, tuple[float, float]]:
    """The lowest and the highest of each ratio over repeats."""
    of_runs = [ratios(pairs, run) for run in runs]
    return {
        name: (min(run[name] for run in of_runs), max(run[name] for run in of_runs))
        for name in of_runs[0]
    }


@dataclass(frozen=True)
class Series:
    """Result and seconds of one arm in each repeat."""

    unit: ClassVar[str] = "tokens"
    """The name of the units."""
    arm: str
    amount: int
    """Units of each repeat."""
    runs: tuple[float, ...]
    """Seconds of each repeat."""

    @property
    def seconds(self) -> float:
        """The median of the repeats."""
        return statistics.median(self.runs)

    @property
    def per_second(self) -> float:
        """Units per second."""
        return self.amount / self.seconds

    @property
    def spread(self) -> float:
        """See `spread`."""
        return spread(self.runs)

    @property
    def cells(self) -> dict[str, str]:
        """For a table, by heading."""
        return {
            "arm": self.arm,
            f"{self.unit}/s": f"{self.per_second:.1f}",
            "seconds": f"{self.seconds:.2f}",
            "spread": f"{self.spread:.0%}",
        }

    def record(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "arm": self.arm,
            self.unit: self.amount,
            "runs": self.runs,
            "seconds": self.seconds,
            f"{self.unit}_per_second": self.per_second,
            "spread": self.spread,
        }


SeriesT = TypeVar("SeriesT", bound=Series)


@dataclass(frozen=True)
class Comparison(Generic[SeriesT]):
    """All arms of a benchmark, side by side; ratios are of units per second."""

    rows: tuple[SeriesT, ...]
    pairs: Pairs

    @cached_property
    def ratios(self) -> dict[str, float]:
        """See `ratios`."""
        return ratios(self.pairs, {row.arm: row.per_second for row in self.rows})

    @cached_property
    def ratio_ranges(self) -> dict[str, tuple[float, float]]:
        """See `ratio_ranges`."""
        repeats = range(len(self.rows[0].runs))
        runs = [{row.arm: row.amount / row.runs[at] for row in self.rows} for at in repeats]
        return ratio_ranges(self.pairs, runs)

    def report(self, title: str, described: Mapping[str, Any]) -> Report:
        """A table of the rows, with the ratios below.

        Args:
            described: what was measured, and on which machine, for the record.
        """
        found = {
            "rows": [row.record() for row in self.rows],
            "ratios": self.ratios,
            "ratio_ranges": self.ratio_ranges,
        }
        return Report(
            {**described, **found},
            title,
            tuple(self.rows[0].cells),
            tuple(tuple(row.cells.values()) for row in self.rows),
            tuple(ratio_lines(self.ratios, self.ratio_ranges)),
        )
