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

from flashback.engines.kernels.linear import Joined, LaidOutLinear
from flashback.engines.kernels.loops import GATED, RELU, Floats, block_loop, same_threads
from flashback.engines.kernels.one_row import RowProduct
from flashback.engines.kernels.single_step import BlockParts

_NOTHING = np.zeros(0, np.float32)


class CompiledBlock:
    """A layer."""

    def __init__(self, parts: BlockParts) -> None:
        """Read the weights of a layer where they lie.

        Raises:
            ValueError: there is no such loop for this layer.
        """
        norms = [_norm_of(one) for one in (parts.attention_norm, parts.feed_forward_norm)]
        every = (parts.project, parts.output, parts.up, parts.down)
        products = [part for one in every for part in _weight_of(one)]
        heads = [
            _NOTHING if one is None else _norm_of(one)[0]
            for one in (parts.query_norm, parts.key_norm)
        ]
        head_eps = 0.0 if parts.query_norm is None else _norm_of(parts.query_norm)[2]
        self._keys = parts.keys
        self._size = parts.size
        self._sizes = parts.queries, parts.keys, parts.size, np.float32(parts.scale)
        self._given = *norms[0], *norms[1], *heads, np.float32(head_eps), *products
        self._act = _act_of(parts)
        self._loop = block_loop(torch.from_numpy(products[0]).dtype)
        self._memory: tuple[Tensor, Any, Any] | None = None

    def __call__(self, x: Floats, cosines: Floats, sines: Floats, cache: Any) -> None:
        """Add what the layer computes to x (W), and the token's keys and values to its cache.

        Args:
            cache: a `BufferedLayer`.
        """
        cache.reserve(1)
        keys, values = cache.buffers
        if self._memory is None or self._memory[0] is not keys:
            flat = (one.view(-1).numpy() for one in (keys, values))
            self._memory = (keys, *flat)
        first, end = cache.shown_columns
        columns = np.int64(keys.shape[2]), np.int64(first), np.int64(end)
        self._loop(
            *(x, cosines, sines, *self._memory[1:], *columns, *self._sizes, self._act),
            *(torch.get_num_threads(), *self._given),
        )
        cache.advance(1)


def _weight_of(layer: Any) -> tuple[Floats, Floats]:
    """The blocks of a layer whose single rows numba multiplies, and their scales and biases."""
    whole = layer.whole if isinstance(layer, Joined) else layer
    product = whole.products[0] if isinstance(whole, LaidOutLinear) else None
    if not isinstance(product, RowProduct):
        raise ValueError("single rows are not multiplied by compiled loops")
    return product.weight, product.terms


def _norm_of(norm: Any) -> tuple[Floats, Floats, np.float32]:
    """Weight, bias (empty: an RMS norm) and ε."""
    if isinstance(norm, torch.nn.LayerNorm):
        return _array(norm.weight), _array(norm.bias), np.float32(norm.eps)
    return _array(norm.weight), _NOTHING, np.float32(norm.variance_epsilon)


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
        block(row, *turns, layer)
    return found[None]
