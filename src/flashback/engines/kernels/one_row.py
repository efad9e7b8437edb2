"""Products of a single row with a packed weight, by loops that numba compiles; on CPU.

A decode step reads every weight once, so that at best it takes as long as reading does. oneDNN's
products of one row reach two thirds of that, these loops nearly all of it (docs/lab-log.md, "A
kernel for one row"). They read the weights where oneDNN keeps them for passes of several rows, in
blocks of B outputs:

    float32     (O / B, I, B); 8 bits, too, in a copy
    bfloat16    (O / B, I / 2, B, 2): the weights of two inputs side by side, in 32 bits

so that a block is read from front to back, into B sums. oneDNN's layout is not documented: a weight
that does not lie like this in memory, number by number, is left to oneDNN.

Imported only where it is wanted: numba is an extra.
"""

import ctypes
from functools import cache

import torch
from torch import Tensor

from flashback.engines.kernels.loops import product_loop, same_threads

_PAIRS = {torch.float32: 1, torch.bfloat16: 2}
"""Inputs whose weights lie side by side."""
_WORDS = {torch.float32: torch.float32, torch.bfloat16: torch.uint32}
"""The type as which a loop reads weights and inputs."""
_BLOCKS = range(128, 0, -8)
"""Outputs side by side that fill a processor's registers."""
_INT8_BLOCK = 128
"""The same for weights of 8 bits, which no other product reads."""


class RowProduct:
    """The product of one row with a weight (O, I) in blocks: y = v (W x) + b."""

    def __init__(
        self,
        blocks: Tensor,
        shape: torch.Size,
        dtype: torch.dtype,
        *,
        scales: Tensor | None = None,
        bias: Tensor | None = None,
        memory: object = None,
    ) -> None:
        """Read a weight where it lies.

        Args:
            blocks: (O / B, I, B) or (O / B, I / 2, B).
            shape: (O, I).
            dtype: of rows.
            scales: v, (O,); None: ones.
            bias: (O,), or none; both are copied.
            memory: what the blocks are a part of, which is kept.
        """
        self._memory = memory
        self._outputs, self._inputs = shape
        self._dtype = dtype
        self.weight = blocks.numpy()
        self._loop = product_loop(blocks.dtype)
        terms = torch.zeros(2, len(blocks) * blocks.shape[-1])
        terms[0] = 1
        for row, given in zip(terms, (scales, bias), strict=True):
            if given is not None:
                row[: self._outputs] = given.detach()
        self.terms = terms.view(2, len(blocks), -1).numpy()

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
        y = torch.empty(self.terms.shape[1:], dtype=torch.float32)
        same_threads()
        self._loop(self.weight, row.view(_WORDS[self._dtype]).numpy(), self.terms, y.numpy())
        return y.view(-1)[: self._outputs].to(self._dtype).view(*x.shape[:-1], self._outputs)


def row_product(packed: Tensor, weight: Tensor, bias: Tensor | None) -> RowProduct | None:
    """The product of one row with a weight; None where it does not lie as above.

    Args:
        packed: as oneDNN keeps it.
        weight: the same, (O, I).
        bias: (O,), or none.
    """
    blocks = _blocks(packed, weight) if weight.dtype in _PAIRS else None
    if blocks is None:
        return None
    return RowProduct(blocks, weight.shape, weight.dtype, bias=bias, memory=packed)


def rounded_product(whole: Tensor, scales: Tensor, bias: Tensor | None) -> RowProduct:
    """The product of one row in float32 with a weight of 8 bits.

    Args:
        whole: (O, I), copied.
        scales: (O,).
        bias: (O,), or none.
    """
    outputs, inputs = whole.shape
    count = -(-outputs // _INT8_BLOCK)
    padded = torch.zeros(count * _INT8_BLOCK, inputs, dtype=torch.int8)
    padded[:outputs] = whole
    blocks = padded.view(count, _INT8_BLOCK, inputs).transpose(1, 2).contiguous()
    return RowProduct(blocks, whole.shape, torch.float32, scales=scales, bias=bias)


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
