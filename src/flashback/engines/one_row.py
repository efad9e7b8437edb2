"""Products of a single row with a packed weight, by loops that numba compiles; on CPU.

A decode step reads every weight once, so that at best it takes as long as reading does. oneDNN's
products of one row reach two thirds of that, these loops all of it (docs/lab-log.md, "A kernel for
one row"). They read the weights where oneDNN keeps them for passes of several rows, in blocks of B
outputs:

    float32     (O / B, I, B)
    bfloat16    (O / B, I / 2, B, 2): the weights of two inputs side by side, in 32 bits

so that a block is read from front to back, into B sums. oneDNN's layout is its own affair: a weight
that does not lie like this in memory, number by number, is left to oneDNN.

Imported only where it was asked for: numba is an extra.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from itertools import accumulate, takewhile

import numba
import numpy as np
import torch
from numba import prange
from numpy.typing import NDArray
from torch import Tensor, nn

from flashback.errors import SettingsError

Floats = NDArray[np.float32]
Kernel = Callable[[NDArray[np.generic], NDArray[np.generic], Floats, Floats], None]

_PAIRS = {torch.float32: 1, torch.bfloat16: 2}
"""Inputs whose weights lie side by side."""
_WORDS = {torch.float32: torch.float32, torch.bfloat16: torch.uint32}
"""What a kernel reads weights and inputs as."""
_BLOCKS = range(8, 129)
"""Fewer outputs side by side would not fill a processor's registers."""
_ANY_ORDER = {"reassoc", "contract", "nsz"}
"""Sums may be taken in any order, as in every matrix product."""


class OneRow:
    """The product of one row with a packed weight (O, I): y = W x + b."""

    def __init__(self, packed: Tensor, weight: Tensor, blocks: Tensor, bias: Tensor | None) -> None:
        """Read a weight where it lies; see `one_row`.

        Args:
            packed: keeps the memory.
            blocks: that memory, (O / B, I, B) or (O / B, I / 2, B).
        """
        self._packed = packed
        self._outputs = len(weight)
        self._dtype = weight.dtype
        self._weight = blocks.numpy()
        self._kernel = kernel(weight.dtype)
        begin = torch.zeros(len(blocks) * blocks.shape[-1])
        if bias is not None:
            begin[: self._outputs] = bias.detach()
        self._bias = begin.reshape(len(blocks), -1).numpy()

    def __call__(self, x: Tensor) -> Tensor:
        """(..., I) of one row to (..., O)."""
        row = x.reshape(-1).view(_WORDS[self._dtype]).numpy()
        y = torch.empty(self._bias.shape)
        # The mask is the thread's own, and forgotten in a new one.
        numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
        self._kernel(self._weight, row, self._bias, y.numpy())
        return y.view(-1)[: self._outputs].to(self._dtype).view(*x.shape[:-1], self._outputs)


def one_row(packed: Tensor, weight: Tensor, bias: nn.Parameter | None) -> OneRow | None:
    """The product of one row with a weight; None where it does not lie as above.

    Args:
        packed: as oneDNN keeps it.
        weight: the same, (O, I).
        bias: (O,), or none.
    """
    blocks = _blocks(packed, weight)
    return None if blocks is None else OneRow(packed, weight, blocks, bias)


def _blocks(packed: Tensor, weight: Tensor) -> Tensor | None:
    """A packed weight's memory as a kernel reads it, if it is the weight."""
    outputs, inputs = weight.shape
    pairs = _PAIRS[weight.dtype]
    memory = _memory(packed, weight.dtype)
    first = weight[:, 0].tolist()
    along = memory[: _BLOCKS.stop * pairs : pairs].tolist()
    block = len(list(takewhile(bool, accumulate(map(float.__eq__, first, along), min))))
    if (
        block not in _BLOCKS
        or inputs % pairs
        or memory.numel() != -(-outputs // block) * block * inputs
    ):
        return None
    laid = memory.view(-1, inputs // pairs, block, pairs)
    if not torch.equal(laid.transpose(1, 2).reshape(-1, inputs)[:outputs], weight):
        return None
    return laid.flatten(2).view(_WORDS[weight.dtype])


def _memory(packed: Tensor, dtype: torch.dtype) -> Tensor:
    size = torch.ops.mkldnn._nbytes(packed)
    bytes_ = (ctypes.c_uint8 * size).from_address(torch.ops.mkldnn.data_ptr(packed))
    return torch.frombuffer(bytes_, dtype=dtype)


@cache
def kernel(dtype: torch.dtype) -> Kernel:
    """A compiled loop.

    Raises:
        SettingsError: numba has no OpenMP here, or it was started with other threads. Those would
            take turns with PyTorch's at every product.
    """
    numba.config.THREADING_LAYER = "omp"
    loop, words = {
        torch.float32: (_float32, "float32"),
        torch.bfloat16: (_bfloat16, "uint32"),
    }[dtype]
    types = f"void({words}[:,:,::1], {words}[::1], float32[:,::1], float32[:,::1])"
    try:
        compiled: Kernel = numba.njit(types, parallel=True, fastmath=_ANY_ORDER)(loop)
        layer: str = numba.threading_layer()
    except ValueError as error:
        layer = f"none ({str(error).splitlines()[0]})"
    if layer != "omp":
        raise SettingsError(
            f"--decode-kernel numba: numba's threads are {layer}; expected omp, OpenMP's, which "
            "PyTorch uses: install libgomp"
        )
    return compiled


def _float32(weight: Floats, x: Floats, bias: Floats, y: Floats) -> None:
    for block in prange(weight.shape[0]):
        sums = bias[block].copy()
        rows = weight[block]
        for i in range(rows.shape[0]):
            for o in range(rows.shape[1]):
                sums[o] += x[i] * rows[i, o]
        y[block] = sums


def _bfloat16(weight: NDArray[np.uint32], x: NDArray[np.uint32], bias: Floats, y: Floats) -> None:
    # The upper half of a float32 is a bfloat16: shifted or masked, it is one.
    for block in prange(weight.shape[0]):
        sums = bias[block].copy()
        rows = weight[block]
        for i in range(rows.shape[0]):
            even = np.uint32(x[i] << 16).view(np.float32)
            odd = np.uint32(x[i] & 0xFFFF0000).view(np.float32)
            for o in range(rows.shape[1]):
                sums[o] += even * np.uint32(rows[i, o] << 16).view(np.float32)
                sums[o] += odd * np.uint32(rows[i, o] & 0xFFFF0000).view(np.float32)
        y[block] = sums
