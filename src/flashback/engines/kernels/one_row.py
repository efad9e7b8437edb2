"""Products of a single row with a packed weight, by loops that numba compiles; on CPU.

A decode step reads every weight once, so that at best it takes as long as reading does. oneDNN's
products of one row reach two thirds of that, these loops nearly all of it (docs/lab-log.md, "A
kernel for one row"). They read the weights where oneDNN keeps them for passes of several rows, in
blocks of B outputs:

    float32     (O / B, I, B)
    bfloat16    (O / B, I / 2, B, 2): the weights of two inputs side by side, in 32 bits

so that a block is read from front to back, into B sums. oneDNN's layout is not documented: a weight
that does not lie like this in memory, number by number, is left to oneDNN.

Imported only where it was asked for: numba is an extra. Its threads are OpenMP's, the same as
PyTorch's; a process that has used them must not fork.
"""

import ctypes
from collections.abc import Callable
from functools import cache

import numba
import numpy as np
import torch
from numba import prange
from numpy.typing import NDArray
from torch import Tensor, nn

from flashback.errors import FlashBackError

Floats = NDArray[np.float32]
Loop = Callable[[NDArray[np.generic], NDArray[np.generic], Floats, Floats], None]

_PAIRS = {torch.float32: 1, torch.bfloat16: 2}
"""Inputs whose weights lie side by side."""
_WORDS = {torch.float32: torch.float32, torch.bfloat16: torch.uint32}
"""The type as which a loop reads weights and inputs."""
_BLOCKS = range(128, 0, -8)
"""Outputs side by side that fill a processor's registers."""
_ANY_ORDER = {"reassoc", "contract", "nsz"}
"""Sums may be taken in any order, as in every matrix product."""


class RowProduct:
    """The product of one row with a packed weight (O, I): y = W x + b."""

    def __init__(self, packed: Tensor, weight: Tensor, blocks: Tensor, bias: Tensor | None) -> None:
        """Read a weight where it lies; see `row_product`.

        Args:
            packed: keeps the memory.
            weight: (O, I), only looked at.
            blocks: that memory, (O / B, I, B) or (O / B, I / 2, B).
            bias: (O,), copied.
        """
        self._packed = packed
        self._outputs, self._inputs = weight.shape
        self._dtype = weight.dtype
        self._weight = blocks.numpy()
        self._loop = loop(weight.dtype)
        begin = torch.zeros(len(blocks) * blocks.shape[-1], dtype=torch.float32)
        if bias is not None:
            begin[: self._outputs] = bias.detach()
        self._bias = begin.view(len(blocks), -1).numpy()

    def __call__(self, x: Tensor) -> Tensor:
        """(..., I) of one row to (..., O).

        Raises:
            RuntimeError: x is no single row of I numbers in the weight's dtype.
        """
        # The loop trusts what it is given.
        if (x.dtype, x.shape[-1], x.numel()) != (self._dtype, self._inputs, self._inputs):
            raise RuntimeError(
                f"found a row {tuple(x.shape)} of {x.dtype}; expected {self._inputs} numbers of "
                f"{self._dtype}"
            )
        row = x.reshape(-1).contiguous()
        if row.storage_offset() % _PAIRS[self._dtype]:
            row = row.clone()  # else it does not begin with a whole word
        y = torch.empty(self._bias.shape, dtype=torch.float32)
        # This number is the thread's own, and forgotten in a new one.
        numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
        self._loop(self._weight, row.view(_WORDS[self._dtype]).numpy(), self._bias, y.numpy())
        return y.view(-1)[: self._outputs].to(self._dtype).view(*x.shape[:-1], self._outputs)


def row_product(packed: Tensor, weight: Tensor, bias: nn.Parameter | None) -> RowProduct | None:
    """The product of one row with a weight; None where it does not lie as above.

    Args:
        packed: as oneDNN keeps it.
        weight: the same, (O, I).
        bias: (O,), or none.
    """
    blocks = _blocks(packed, weight) if weight.dtype in _PAIRS else None
    return None if blocks is None else RowProduct(packed, weight, blocks, bias)


@cache
def reads(dtype: torch.dtype) -> bool:
    """Whether weights of this dtype are packed like this on this processor."""
    weight = torch.rand(256, 64).to(dtype)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        return _blocks(packed, weight) is not None
    except (AttributeError, RuntimeError):  # the operators are missing, or not for this processor
        return False


def _blocks(packed: Tensor, weight: Tensor) -> Tensor | None:
    """A packed weight's memory as a loop reads it, if that is the weight."""
    outputs, inputs = weight.shape
    pairs = _PAIRS[weight.dtype]
    memory = _memory(packed, weight.dtype)
    for block in _BLOCKS:
        if inputs % pairs or memory.numel() != -(-outputs // block) * block * inputs:
            continue
        laid = memory.view(-1, inputs // pairs, block, pairs)
        if all(map(_is_same, laid, weight.split(block))):
            return laid.flatten(2).view(_WORDS[weight.dtype])
    return None


def _is_same(laid: Tensor, weight: Tensor) -> bool:
    """Whether (I / pairs, B, pairs) are the rows (at most B, I) of a weight."""
    return torch.equal(laid.transpose(0, 1).flatten(1)[: len(weight)], weight)


def _memory(packed: Tensor, dtype: torch.dtype) -> Tensor:
    size = torch.ops.mkldnn._nbytes(packed)
    bytes_ = (ctypes.c_uint8 * size).from_address(torch.ops.mkldnn.data_ptr(packed))
    return torch.frombuffer(bytes_, dtype=dtype)


@cache
def loop(dtype: torch.dtype) -> Loop:
    """A compiled loop, for float32 or bfloat16.

    Raises:
        FlashBackError: numba has no OpenMP here, or was started with other threads. Those would
            spin beside PyTorch's and take turns with them at every product.
    """
    numba.config.THREADING_LAYER = "omp"
    python, words = {
        torch.float32: (_float32, "float32"),
        torch.bfloat16: (_bfloat16, "uint32"),
    }[dtype]
    types = f"void({words}[:,:,::1], {words}[::1], float32[:,::1], float32[:,::1])"
    threads = torch.get_num_threads()
    try:
        compiled: Loop = numba.njit(types, parallel=True, fastmath=_ANY_ORDER)(python)
        layer: str = numba.threading_layer()
    except ValueError as error:
        layer = f"none ({str(error).splitlines()[0]})"
    torch.set_num_threads(threads)  # starting OpenMP, numba sets it for all
    if layer != "omp":
        raise FlashBackError(
            f"--weights numba: numba's threads are {layer}; expected omp, OpenMP's, which "
            "PyTorch uses: install libgomp, or leave the option out"
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
