"""The machine's two ceilings, memory bandwidth and matrix rate, and the time they allow."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from flashback.benchmark.flops import Shape, pass_bytes, pass_operations
from flashback.benchmark.harness import timed
from flashback.engines.kernels.products import PackedProduct
from flashback.patterns.cost import Pass
from flashback.readers.placement import Placement

_STREAM_BYTES = 1 << 29
"""Far more than any cache holds."""
_MATRICES = (256, 512, 1024, 2048, 4096, 8192)
"""Rows; the largest that takes no longer than `_LONG_PRODUCT` is measured."""
_LONG_PRODUCT = 0.25
"""Seconds; some processors multiply bfloat16 a hundred times slower than float32."""
_REPEATS = 5


@dataclass(frozen=True)
class Ceilings:
    """The best that one machine reaches, in one dtype."""

    bytes_per_second: float
    """Reading memory."""
    operations_per_second: float
    """Multiplying large matrices."""

    def or_better(self, other: "Ceilings") -> "Ceilings":
        """Each as the better of two measurements found it."""
        return Ceilings(
            max(self.bytes_per_second, other.bytes_per_second),
            max(self.operations_per_second, other.operations_per_second),
        )


@torch.inference_mode()
def measure_ceilings(placement: Placement) -> Ceilings:
    """Measure both on the device and in the dtype of a placement; seconds, not minutes.

    Memory is read by a sum, which is faster than any product with a vector; matrices are multiplied
    in several layouts, and the fastest counts.
    """
    memory = Memory(placement.device, placement.dtype)
    return Ceilings(memory.bytes_per_second(), operations_per_second(placement))


class Memory:
    """Memory to read: what machines share it with changes its rate from second to second."""

    def __init__(self, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        """Take a buffer far larger than any cache."""
        self._device = device
        self._stream = torch.zeros(_STREAM_BYTES // dtype.itemsize, dtype=dtype, device=device)

    @torch.inference_mode()
    def bytes_per_second(self, repeats: int = _REPEATS) -> float:
        """The rate of the fastest of some reads, after a first one."""
        return _STREAM_BYTES / _best_seconds(self._stream.sum, self._device, repeats)


@torch.inference_mode()
def operations_per_second(placement: Placement) -> float:
    """The matrix rate, of matrices as large as the processor multiplies in a reasonable time."""
    device, dtype = placement.device, placement.dtype
    rate = 0.0
    for size in _MATRICES:
        operations = 2 * size**3
        if rate and operations / rate > _LONG_PRODUCT:
            break
        # Not zeros: a GPU that multiplies them draws less power, and runs faster.
        left, right = torch.randn(2, size, size, dtype=dtype, device=device)
        products: list[Callable[[], object]] = [partial(torch.matmul, left, right)]
        if device.type == "cpu":
            with contextlib.suppress(AttributeError, RuntimeError):  # not for this processor
                products.append(partial(PackedProduct(right, None), left))
        rate = operations / min(_best_seconds(work, device) for work in products)
    return rate


def _best_seconds(
    work: Callable[[], object], device: torch.device, repeats: int = _REPEATS
) -> float:
    """The fastest of a few runs after a warm-up."""
    wait = partial(synchronize, device)
    return min([timed(work, wait)[0] for _ in range(repeats + 1)][1:])


def synchronize(device: torch.device) -> None:
    """Wait for all work that is queued on a device."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def bound_seconds(shape: Shape, one: Pass, ceilings: Ceilings) -> float:
    """The least time of a pass: whichever ceiling it meets first."""
    return max(
        pass_operations(shape, one) / ceilings.operations_per_second,
        pass_bytes(shape, one) / ceilings.bytes_per_second,
    )
