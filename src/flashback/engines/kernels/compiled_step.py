"""A layer of a decode step as one loop that numba compiles, for one row in float32.

A thin layer's time is half calls. Here there is one for a layer: norms, rotation and gating are
loops between the products of `one_row.py`, which read the packed weights, and keys and values are
written to the cache in place.

Imported only where numba is.

Symbols: W width, H key-value heads, G query heads of each, D head size.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from flashback.engines.kernels.layer_parts import BlockParts
from flashback.engines.kernels.linear import Joined, LaidOutLinear
from flashback.engines.kernels.loops import (
    GATED,
    RELU,
    Floats,
    HeadNorms,
    Norm,
    Weights,
    block_loop,
    same_threads,
)
from flashback.engines.kernels.one_row import RowProduct

_NOTHING = np.zeros(0, np.float32)


class CompiledBlock:
    """A layer."""

    def __init__(self, parts: BlockParts) -> None:
        """Read the weights of a layer where they lie.

        Raises:
            ValueError: there is no such loop for this layer.
        """
        products = (parts.project, parts.output, parts.up, parts.down)
        self._weights = tuple(map(_weights_of, products))
        self._norms = (
            _norm_of(parts.attention_norm),
            _norm_of(parts.feed_forward_norm),
            _head_norms_of(parts),
        )
        self._sizes = parts.queries, parts.keys, parts.size, np.float32(parts.scale)
        self._act = _act_of(parts)
        self._loop = block_loop(torch.from_numpy(self._weights[0][0]).dtype)
        self._memory: tuple[Tensor, Any, Any] | None = None

    def __call__(self, x: Floats, rotation: tuple[Floats, Floats], cache: Any) -> None:
        """Add what the layer computes to x (W), and the token's keys and values to its cache.

        Args:
            cache: a `BufferedLayer`.
        """
        cache.reserve(1)
        keys, values = cache.buffers
        memory = self._memory
        if memory is None or memory[0] is not keys:
            memory = keys, keys.view(-1).numpy(), values.view(-1).numpy()
            self._memory = memory
        columns = (*memory[1:], keys.shape[2], *cache.shown_columns)
        sizes = (*self._sizes, torch.get_num_threads())
        self._loop(x, rotation, columns, sizes, self._act, self._norms, self._weights)
        cache.advance(1)


def _weights_of(layer: Any) -> Weights:
    """The blocks of a layer whose single rows numba multiplies, and their scales and biases."""
    whole = layer.whole if isinstance(layer, Joined) else layer
    product = whole.products[0] if isinstance(whole, LaidOutLinear) else None
    if not isinstance(product, RowProduct):
        raise ValueError("single rows are not multiplied by compiled loops")
    return product.weight, product.terms


def _norm_of(norm: Any) -> Norm:
    """Weight, bias (empty: an RMS norm) and ε."""
    if isinstance(norm, torch.nn.LayerNorm):
        return _array(norm.weight), _array(norm.bias), np.float32(norm.eps)
    return _array(norm.weight), _NOTHING, np.float32(norm.variance_epsilon)


def _head_norms_of(parts: BlockParts) -> HeadNorms:
    if parts.query_norm is None or parts.key_norm is None:
        return _NOTHING, _NOTHING, np.float32(0)
    own = _norm_of(parts.query_norm)
    return own[0], _norm_of(parts.key_norm)[0], own[2]


def _act_of(parts: BlockParts) -> int:
    """The number of an activation: compared with what the loop computes."""
    x = torch.linspace(-4, 4, 9)
    expected, kinds = parts.act(x), (torch.nn.functional.silu(x), x.relu())
    wanted = GATED if parts.gated else RELU
    if not torch.allclose(expected, kinds[wanted]):
        raise ValueError("there is no loop for this activation")
    return wanted


def _array(weight: Tensor) -> Floats:
    found: Floats = weight.detach().contiguous().numpy()
    return found


def compute(
    blocks: tuple[CompiledBlock, ...],
    x: Tensor,
    rotation: tuple[Tensor, Tensor] | None,
    layers: Any,
) -> Tensor:
    """All layers of a step: (1, W) to (1, W).

    Args:
        rotation: cosines and sines of the token, (1, 1, D) each.
        layers: of the cache.
    """
    found = x[0].clone()
    row = found.numpy()
    turns = (_NOTHING, _NOTHING)
    if rotation is not None:
        turns = tuple(one.reshape(-1).numpy() for one in rotation)  # type: ignore[assignment]
    same_threads()
    for block, layer in zip(blocks, layers, strict=True):
        block(row, turns, layer)
    return found[None]
