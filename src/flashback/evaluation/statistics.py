"""Perplexities with intervals: a bootstrap over documents, paired between rows.

Symbols: D documents, B resamples, T_d targets and L_d nats of document d. Everything a row states
is a ratio of sums, such as exp(ΣL/ΣT); documents are drawn with replacement, the same draw for
every row (Efron and Tibshirani 1993; Koehn 2004 for pairing).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_TOGETHER = 64
"""Resamples in a block."""
_LARGEST = 700.0
"""Nats; e to a larger power overflows."""


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float


def exponential(nats: float) -> float:
    """e to the power of `nats`, a perplexity; so large a one that it overflows is capped."""
    return math.exp(min(_LARGEST, nats))


class Bootstrap:
    """Resampled documents, the same for every figure."""

    def __init__(self, documents: int, resamples: int = 2000, seed: int = 0) -> None:
        """Draw.

        Args:
            documents: D, at least 1.
            resamples: B.
        """
        generator = np.random.default_rng(seed)
        chances = np.full(documents, 1 / documents)
        self._times = np.empty((resamples, documents), np.uint16)
        """(B, D): how often a document stands in a resample."""
        for block in self._blocks():
            block[:] = generator.multinomial(documents, chances, size=len(block))

    def quotient(self, sums: Array, units: Array) -> Interval:
        """Σ sums / Σ units: a mean per unit, from (D,) sums per document."""
        both = np.stack([sums, units], 1)
        drawn = np.concatenate([block.astype(np.float64) @ both for block in self._blocks()])
        low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
        return Interval(float(sums.sum() / units.sum()), float(low), float(high))

    def exponential(self, nats: Array, units: Array) -> Interval:
        """exp(Σ nats / Σ units): a perplexity per unit, from (D,) sums per document."""
        mean = self.quotient(nats, units)
        return Interval(*(exponential(one) for one in (mean.value, mean.low, mean.high)))

    def _blocks(self) -> list[NDArray[np.uint16]]:
        """A few resamples each, so that as floating-point numbers they need little memory."""
        return np.array_split(self._times, -(-len(self._times) // _TOGETHER))

    def ratio(self, nats: Array, other: Array, units: Array) -> Interval:
        """The perplexity of `nats` divided by that of `other` on the same units: paired."""
        return self.exponential(nats - other, units)
