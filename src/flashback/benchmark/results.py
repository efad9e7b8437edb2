"""Results of a run-time test: medians over repeats, their spread, totals, ratios, predictions."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from flashback.benchmark.harness import Pairs, ratio_ranges, ratios, spread

RATIOS = (
    ("prepend", "append"),
    ("append", "none"),
    ("authors_prepend", "append"),
    ("slot", "none"),
    ("slot_cached", "none"),
    ("prepend", "slot"),
)
"""The comparisons that are reported, if both arms were measured."""


@dataclass(frozen=True)
class Measured:
    """One stride of one arm at one context length."""

    arm: str
    length: int
    """Context tokens at the boundary."""
    prefill_seconds: float
    """The boundary pass; with the passage's own, if that is isolated."""
    decode_seconds: float
    bound_seconds: float
    """Of the same stride at the machine's ceilings."""
    decode_bound_seconds: float
    """Likewise, the decoded tokens alone: the weights and the cache read once for each."""
    predicted_seconds: float
    """Of the same stride at the ceilings calibrated with this reader."""
    retrieve_seconds: float = 0.0
    passage_tokens: int = 0
    unchanged: bool = False
    """Whether the passage is that of the stride before."""
    cache_hit: bool = False
    """Whether it is another one, and its keys and values were in the passage cache."""
    spread: float = 0.0
    """Over repeats: the slowest less the fastest, as a share of the median."""

    @property
    def stride_seconds(self) -> float:
        """Without retrieval."""
        return self.prefill_seconds + self.decode_seconds

    @property
    def bound_share(self) -> float:
        """1 is the physical limit."""
        return self.bound_seconds / self.stride_seconds

    @property
    def prefills_passage(self) -> bool:
        """Whether an isolated passage had to be prefilled."""
        return self.passage_tokens > 0 and not (self.unchanged or self.cache_hit)


@dataclass(frozen=True)
class Results:
    """All repeats of a test; every repeat has the same rows in the same order."""

    lengths: range
    """Context tokens at the boundaries of the sweep."""
    runs: tuple[tuple[Measured, ...], ...]

    @cached_property
    def rows(self) -> tuple[Measured, ...]:
        """Medians over repeats, row by row."""
        return tuple(_median(rows) for rows in zip(*self.runs, strict=True))

    @cached_property
    def arms(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.arm for row in self.rows))

    def of(self, arm: str) -> list[Measured]:
        """An arm's rows by length."""
        return sorted((row for row in self.rows if row.arm == arm), key=lambda row: row.length)

    def seconds(self, arm: str) -> float:
        """Of the whole sweep, from the medians."""
        return _total_seconds(self.rows, arm, self.lengths)

    def prefill_seconds(self, arm: str) -> float:
        """Of all boundary passes of the sweep."""
        return _total(self.of(arm), self.lengths, lambda row: row.prefill_seconds)

    def spread(self, arm: str) -> float:
        """Of the whole sweep over repeats: slowest less fastest, as a share of `seconds`."""
        seconds = [_total_seconds(run, arm, self.lengths) for run in self.runs]
        return spread(seconds, self.seconds(arm))

    def ratios(self) -> dict[str, float]:
        """The comparisons of the paper, and the slot's, over the whole sweep."""
        return ratios(self._pairs, {arm: self.seconds(arm) for arm in self.arms})

    def ratio_ranges(self) -> dict[str, tuple[float, float]]:
        """The lowest and the highest of each over repeats."""
        runs = [
            {arm: _total_seconds(run, arm, self.lengths) for arm in self.arms} for run in self.runs
        ]
        return ratio_ranges(self._pairs, runs)

    @property
    def _pairs(self) -> Pairs:
        """`RATIOS`; an arm in none of them is set against no retrieval."""
        known = {arm for pair in RATIOS for arm in pair}
        return (*RATIOS, *((arm, "none") for arm in self.arms if arm not in known))

    def bound_share(self, arm: str) -> float:
        """Of the whole sweep; 1 is the physical limit."""
        return self._share(arm, lambda row: row.bound_seconds)

    def decode_bound_share(self, arm: str) -> float:
        """Of decoding alone, which memory bandwidth bounds; 1 is the physical limit."""
        decoded = _total(self.of(arm), self.lengths, lambda row: row.decode_seconds)
        return _total(self.of(arm), self.lengths, lambda row: row.decode_bound_seconds) / decoded

    def predicted_share(self, arm: str) -> float:
        """Predicted by measured seconds of the whole sweep; 1 is a perfect prediction."""
        return self._share(arm, lambda row: row.predicted_seconds)

    def _share(self, arm: str, seconds: Callable[[Measured], float]) -> float:
        return _total(self.of(arm), self.lengths, seconds) / self.seconds(arm)

    def growth(self, arm: str) -> float:
        """Time of the last stride boundary over that of the first with a full cache.

        Boundaries whose passage has not changed are left out, if any has.
        """
        later = self.of(arm)[1:]
        compared = [row for row in later if not row.unchanged] or later
        return compared[-1].prefill_seconds / compared[0].prefill_seconds

    def unchanged_share(self, arm: str) -> float:
        """Strides, from the second on, whose passage is that of the stride before."""
        return statistics.fmean(row.unchanged for row in self.of(arm)[1:])


def _median(rows: Sequence[Measured]) -> Measured:
    """One row over repeats, which differ in nothing but times."""
    seconds = [row.stride_seconds for row in rows]
    return replace(
        rows[0],
        prefill_seconds=statistics.median(row.prefill_seconds for row in rows),
        decode_seconds=statistics.median(row.decode_seconds for row in rows),
        retrieve_seconds=statistics.median(row.retrieve_seconds for row in rows),
        spread=spread(seconds),
    )


def _total_seconds(rows: Sequence[Measured], arm: str, lengths: Sequence[int]) -> float:
    """The seconds of all strides of an arm at `lengths`.

    The first stride, which begins with an empty cache, counts once; the others are interpolated
    between those that were measured.
    """
    return _total([row for row in rows if row.arm == arm], lengths, lambda row: row.stride_seconds)


def _total(
    rows: Sequence[Measured], lengths: Sequence[int], seconds: Callable[[Measured], float]
) -> float:
    first, *later = sorted((row.length, seconds(row)) for row in rows)
    known, values = zip(*later, strict=True)
    return first[1] + float(np.interp(lengths[1:], known, values).sum())
