"""One new token per row, computed by few calls: a decode step of thin layers is mostly calls.

A model of transformers makes some forty calls a layer, of which seven multiply weights. Here a
layer takes about twenty: queries, keys and values are one product, as are the gate and what it
gates, and nothing is copied. For one row in float32 it takes a single one, if numba is installed
(`compiled_step.py`).

It takes models whose parts `layer_parts.py` knows. The steps are compared with the model's own
before they are used, so that a relative with a factor of its own is left to its own code.

Symbols: B rows, W width, H key-value heads, G query heads of each, D head size, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import DynamicCache, PreTrainedModel

from flashback.engines.kernels.layer_parts import BlockParts, Function, parts_of


class Block:
    """A layer, by calls of PyTorch."""

    def __init__(self, parts: BlockParts) -> None:
        self._parts = parts
        self._attention_norm = _norm(parts.attention_norm)
        self._feed_forward_norm = _norm(parts.feed_forward_norm)

    def __call__(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None, cache: Any) -> Tensor:
        """(B, W) to (B, W); keys and values are appended to a layer's cache."""
        parts = self._parts
        found = self._attend(parts.project(self._attention_norm(x)), rotation, cache)
        x = x + parts.output(found)
        wide = parts.up(self._feed_forward_norm(x))
        if parts.gated:
            gates, wide = wide.chunk(2, -1)
            wide = parts.act(gates) * wide
        else:
            wide = parts.act(wide)
        added: Tensor = x + parts.down(wide)
        return added

    def _attend(
        self, projected: Tensor, rotation: tuple[Tensor, Tensor] | None, cache: Any
    ) -> Tensor:
        """(B, (H·G + 2 H) D) to (B, H·G·D)."""
        parts, rows = self._parts, len(projected)
        heads = projected.view(rows, -1, parts.size)
        turned, values = heads[:, : -parts.keys], heads[:, -parts.keys :]
        if parts.query_norm is not None and parts.key_norm is not None:
            own = parts.query_norm(turned[:, : parts.queries])
            turned = torch.cat((own, parts.key_norm(turned[:, parts.queries :])), 1)
        if rotation is not None:
            cosines, sines = rotation
            half = parts.size // 2
            swapped = torch.cat((-turned[..., half:], turned[..., :half]), -1)
            turned = torch.addcmul(turned * cosines, swapped, sines)
        keys, values = cache.update(turned[:, parts.queries :, None], values[:, :, None])
        # The query heads of a key head are rows: each key is read once.
        shared = turned[:, : parts.queries].reshape(rows, parts.keys, -1, parts.size)
        found = scaled_dot_product_attention(shared, keys, values, scale=parts.scale)
        return found.reshape(rows, -1)


Compute = Callable[[Tensor, tuple[Tensor, Tensor] | None, Any], Tensor]
"""All layers for one row, (1, W) to (1, W), given cosines and sines, and the cache's layers."""


@dataclass(frozen=True)
class SingleStep:
    """The steps of one model."""

    embed: Callable[[Tensor, Tensor], Tensor]
    """Ids and positions, (B, 1) each, to (B, 1, W)."""
    rotate: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None
    """Embeddings and positions to cosines and sines, (B, 1, D) each."""
    blocks: tuple[Block, ...]
    norm: Function
    head: Function
    compute: Compute | None = None
    """For one row, in place of the blocks."""

    def __str__(self) -> str:
        return "few calls a layer" if self.compute is None else "a compiled loop a layer"

    def __call__(self, ids: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
        """The logits of new tokens, (B, 1, V), each behind all that is in its row of the cache.

        Args:
            ids, positions: (B, 1) each.
            cache: grows by them.
        """
        embedded = self.embed(ids, positions)
        rotation = None if self.rotate is None else self.rotate(embedded, positions)
        x = embedded[:, 0]
        in_place = all(getattr(layer, "is_initialized", False) for layer in cache.layers)
        if self.compute is not None and len(x) == 1 and in_place:
            x = self.compute(x, rotation, cache.layers)
        else:
            for block, layer in zip(self.blocks, cache.layers, strict=True):
                x = block(x, rotation, layer)
        return self.head(self.norm(x))[:, None]


def single_steps(model: PreTrainedModel) -> Iterator[SingleStep]:
    """Ways to compute the steps of a model, the fastest first; none if it is built in another way.

    They are to be compared with the model's own passes before they are used.

    Args:
        model: in evaluation mode, with linear layers as `linear.py` leaves them.
    """
    if model.device.type != "cpu" or model.dtype is not torch.float32:
        return
    if (parts := parts_of(model)) is None:
        return
    blocks = tuple(map(Block, parts.blocks))
    step = SingleStep(parts.embed, parts.rotate, blocks, _norm(parts.norm), parts.head)
    if (compute := _compiled(parts.blocks)) is not None:
        yield replace(step, compute=compute)
    yield step


def _compiled(parts: Sequence[BlockParts]) -> Compute | None:
    """All layers by loops that numba compiles, where single rows are multiplied by them."""
    single = getattr(parts[0].down, "products", (None,))[0]
    if type(single).__name__ != "RowProduct":  # numba may not be installed
        return None
    from flashback.engines.kernels.compiled_step import CompiledBlock, compute

    try:
        return partial(compute, tuple(map(CompiledBlock, parts)))
    except (AttributeError, ValueError):
        return None


@torch.inference_mode()
def _norm(module: nn.Module) -> Function:
    """An RMS norm as one call, if it is one; else the module itself."""
    weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    if weight is None or eps is None:
        return module

    width = len(weight)
    least = torch.tensor(eps)

    def fused(x: Tensor) -> Tensor:
        # PyTorch's own is some ten calls on a CPU.
        length = torch.linalg.vector_norm(x, 2, -1, True)
        scale = torch.addcmul(least, length, length, value=1 / width).rsqrt_()
        found: Tensor = (x * scale).mul_(weight)
        return found

    x = torch.randn(2, len(weight), generator=torch.Generator().manual_seed(0))
    same = torch.allclose(fused(x), module(x), rtol=1e-5, atol=1e-6)
    return fused if same else module
