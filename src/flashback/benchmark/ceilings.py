"""The machine's two ceilings, memory bandwidth and matrix rate, and the time they allow."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from flashback.benchmark.flops import Pass, Shape, pass_bytes, pass_operations
from flashback.reader import Placement

_STREAM_BYTES = 1 << 29
"""Far more than any cache holds."""
_MATRIX = 2048
_REPEATS = 5


@dataclass(frozen=True)
class Ceilings:
    """What one machine can do at best, in one dtype."""

    bytes_per_second: float
    """Reading weights, as a decode step does."""
    operations_per_second: float
    """Multiplying large matrices."""


def measure_ceilings(placement: Placement) -> Ceilings:
    """Measure both on the device and in the dtype of a placement; seconds, not minutes."""
    device, dtype = placement.device, placement.dtype
    size = torch.empty((), dtype=dtype).element_size()
    rows = _STREAM_BYTES // size // _MATRIX
    weights = torch.zeros(rows, _MATRIX, dtype=dtype, device=device)
    one = torch.zeros(1, _MATRIX, dtype=dtype, device=device)
    stream = _best_seconds(lambda: torch.nn.functional.linear(one, weights), device)
    left, right = torch.zeros(2, _MATRIX, _MATRIX, dtype=dtype, device=device)
    product = _best_seconds(lambda: left @ right, device)
    return Ceilings(rows * _MATRIX * size / stream, 2 * _MATRIX**3 / product)


def _best_seconds(work: Callable[[], object], device: torch.device) -> float:
    """The fastest of a few runs after a warm-up."""
    seconds = []
    for _ in range(_REPEATS + 1):
        _synchronize(device)
        started = time.perf_counter()
        work()
        _synchronize(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def bound_seconds(shape: Shape, one: Pass, ceilings: Ceilings) -> float:
    """The least time of a pass: whichever ceiling it meets first."""
    return max(
        pass_operations(shape, one) / ceilings.operations_per_second,
        pass_bytes(shape, one) / ceilings.bytes_per_second,
    )
