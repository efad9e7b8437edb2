"""The seconds of passes on a device: a roofline with three rates.

The kernels of a pass run one after another, so their times add: reading the weights, reading and
writing the cache, multiplying.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flashback.benchmark.devices import Device, Efficiency
from flashback.benchmark.flops import Shape, cache_bytes, pass_bytes, pass_operations
from flashback.patterns.cost import Pass

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rates:
    """What a device reaches; infinite: takes no time that a sweep could tell."""

    weight_bytes: float
    """Bytes per second, reading weights."""
    cache_bytes: float
    """Bytes per second, reading and writing keys and values."""
    operations: float
    """Operations per second."""

    @classmethod
    def of(cls, device: Device, dtype: str, efficiency: Efficiency) -> "Rates":
        """A device's peaks, each times a share.

        Raises:
            SettingsError: see `Device.rate`.
        """
        return cls(
            device.bytes_per_second * efficiency.weights,
            device.bytes_per_second * efficiency.cache,
            device.rate(dtype) * efficiency.matrices,
        )

    def times(self, devices: int) -> "Rates":
        """Of several devices that share a model, as if nothing were sent between them."""
        scaled = (self.weight_bytes, self.cache_bytes, self.operations)
        return Rates(*(devices * rate for rate in scaled))

    def seconds(self, shape: Shape, passes: Iterable[Pass]) -> float:
        """Of passes that run one after another."""
        rates = (self.weight_bytes, self.cache_bytes, self.operations)
        return sum(done / rate for done, rate in zip(work_of(shape, passes), rates, strict=True))


def work_of(shape: Shape, passes: Iterable[Pass]) -> tuple[float, float, float]:
    """Bytes of weights, bytes of the cache, and operations."""
    weights = cache = operations = 0.0
    for one in passes:
        own = cache_bytes(shape, one)
        weights += pass_bytes(shape, one) - own
        cache += own
        operations += pass_operations(shape, one)
    return weights, cache, operations


def fit(work: Sequence[tuple[float, float, float]], seconds: Sequence[float]) -> Rates:
    """The rates that explain measured seconds best: least squares of relative errors.

    Rates are not negative: of every choice of the three that has none, the best.

    Args:
        work: see `work_of`; at least three rows.
        seconds: of each row, above 0.
    """
    rows: Floats = np.array(work) / np.array(seconds)[:, None]
    best, least = np.zeros(3), np.inf
    for count in (1, 2, 3):
        for chosen in itertools.combinations(range(3), count):
            found = np.zeros(3)
            found[list(chosen)] = np.linalg.lstsq(rows[:, list(chosen)], np.ones(len(rows)))[0]
            error = float(((rows @ found - 1) ** 2).sum())
            if (found >= 0).all() and error < least:
                best, least = found, error
    with np.errstate(divide="ignore"):
        return Rates(*(1 / best).tolist())
