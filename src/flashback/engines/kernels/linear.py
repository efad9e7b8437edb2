"""A model's linear layers, replaced by ones whose weights are laid out for this processor.

Layers that are given the same input, such as a layer's queries, keys and values, are one product:
the first that is asked computes it, the others take their part. `choice.py` says which products a
layer takes for a single row, for a few and for many; `products.py` has them. Every layer is tried
before it replaces another, and stays as it is where nothing agrees with it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from flashback.engines.kernels.choice import FEW, Choice, Choose
from flashback.engines.kernels.products import (
    LAYOUT_OF,
    LAYOUTS,
    PLAIN,
    Int8Product,
    Kept,
    MakeRows,
    Product,
)

_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of layers that are given the same input."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest difference to the plain layer, relative to the largest value (at least 1)."""
_ROUNDED_TOLERANCE = 5e-2
_MISSING = (AttributeError, RuntimeError)
"""An operator is missing, or not for this processor."""


class LaidOutLinear(nn.Module):
    """A linear layer that takes one product for a single row, one for a few, one for many."""

    def __init__(
        self,
        kept: Kept,
        products: Sequence[Product],
        bias: nn.Parameter | None,
        *,
        transposed: bool,
        owned: bool,
    ) -> None:
        """Take products of the same weight (O, I).

        Args:
            kept: keeps it.
            products: for one row, a few, many.
            bias: (O,), or none; it is in the products.
            transposed: the replaced layer kept its weight as (I, O).
            owned: the weight is no other module's; a tied head's is the embedding's.
        """
        super().__init__()
        self.bias = bias
        self.owned = owned
        self.products = tuple(products)
        self.kept = kept
        self._transposed = transposed

    @property
    def weight(self) -> Tensor:
        """The weight as the replaced layer had it; computed at every access."""
        weight = self.kept.unpacked()
        return weight.t() if self._transposed else weight

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to (..., O)."""
        rows = x.numel() // x.shape[-1]
        single, few, many = self.products
        return single(x) if rows == 1 else few(x) if rows <= FEW else many(x)


class Joined:
    """Several layers of the same input as one."""

    def __init__(self, whole: LaidOutLinear, sizes: Sequence[int]) -> None:
        """Take the layer of all their outputs, and how many each of them has."""
        self.whole = whole
        self._sizes = list(sizes)
        self._held: tuple[Tensor, list[Tensor | None]] | None = None
        """An input and the outputs that were not asked for yet."""

    def __call__(self, x: Tensor) -> Tensor:
        """All outputs side by side, (..., O)."""
        y: Tensor = self.whole(x)
        return y

    def part(self, x: Tensor, at: int) -> Tensor:
        """The outputs of one of the layers; those of the others wait for the same input."""
        held = self._held  # another thread may replace it meanwhile
        found = None if held is None or held[0] is not x else held[1][at]
        if held is None or found is None:
            held = x, [*self(x).split(self._sizes, -1)]
            found = held[1][at]
        held[1][at] = None
        self._held = held if any(part is not None for part in held[1]) else None
        assert found is not None
        return found


class JoinedLinear(nn.Module):
    """One of several layers of the same input."""

    def __init__(self, joint: Joined, at: int, rows: slice, bias: nn.Parameter | None) -> None:
        """Take the number of the layer, and which outputs are its own."""
        super().__init__()
        self.bias = bias
        self.owned = True
        self.joint = joint
        self._at = at
        self._rows = rows

    @property
    def weight(self) -> Tensor:
        """The weight as the replaced layer had it; computed at every access."""
        return self.joint.whole.weight[self._rows]

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to (..., O of this layer)."""
        return self.joint.part(x, self._at)


def joined(module: Any, names: Sequence[str]) -> Callable[[Tensor], Tensor]:
    """The outputs of several layers of the same input, side by side."""
    layers = [getattr(module, name) for name in names]
    joints = {id(layer.joint) for layer in layers if isinstance(layer, JoinedLinear)}
    if len(joints) == 1 and all(isinstance(layer, JoinedLinear) for layer in layers):
        joint: Joined = layers[0].joint
        return joint
    return lambda x: torch.cat([layer(x) for layer in layers], -1)


@dataclass(frozen=True)
class _Group:
    """Layers that become one product."""

    names: tuple[str, ...]
    layers: tuple[Any, ...]

    @property
    def transposed(self) -> bool:
        return isinstance(self.layers[0], Conv1D)

    @property
    def weight(self) -> Tensor:
        """(O, I) of all; a single layer's is not copied."""
        weights = [layer.weight.detach() for layer in self.layers]
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        return weight.t() if self.transposed else weight

    @property
    def bias(self) -> nn.Parameter | None:
        """(O,) of all."""
        own = [layer.bias for layer in self.layers]
        if len(own) == 1 or own[0] is None:
            bias: nn.Parameter | None = own[0]
            return bias
        return nn.Parameter(torch.cat([one.detach() for one in own]), requires_grad=False)


def lay_out(model: PreTrainedModel, choose: Choose, rows: MakeRows | None = None) -> int:
    """Replace the linear layers of a model on CPU, in place; how many there were.

    Plain weights are freed, unless a layer multiplies them as they are or shares them with an
    embedding. On other devices, and where PyTorch cannot, layers stay.

    Args:
        choose: the products for a shape.
        rows: makes the compiled products of single rows, if they may be chosen.
    """
    if model.device.type != "cpu" or model.dtype not in TOLERANCE:
        return 0
    return _replace(model, choose, rows, TOLERANCE[model.dtype])


def quantize_weights(model: PreTrainedModel, choose: Choose, rows: MakeRows | None = None) -> int:
    """Replace the linear layers of a float32 model on CPU by ones of 8 bits, in place; how many.

    Weights of embeddings, norms and attention's products stay as they are.

    Args:
        choose, rows: see `lay_out`.
    """
    return _replace(model, choose, rows, _ROUNDED_TOLERANCE)


def is_quantized(model: nn.Module) -> bool:
    """Whether some weights were rounded to 8 bits."""
    layers = (one for one in model.modules() if isinstance(one, LaidOutLinear | JoinedLinear))
    wholes = (one.joint.whole if isinstance(one, JoinedLinear) else one for one in layers)
    return any(isinstance(one.kept, Int8Product) for one in wholes)


def named_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A model's parameters, as if none were laid out otherwise."""
    yield from model.named_parameters()
    for name, layer in model.named_modules():
        if isinstance(layer, LaidOutLinear | JoinedLinear) and layer.owned:
            yield f"{name}.weight", layer.weight


@torch.no_grad()
def _replace(
    model: PreTrainedModel, choose: Choose, rows: MakeRows | None, tolerance: float
) -> int:
    owned = {name for name, _ in model.named_parameters()}
    count = 0
    for group in [*_groups(model)]:
        weight, bias = group.weight, group.bias
        try:
            outputs, inputs = weight.shape
            choice = choose(outputs, inputs, weight.dtype)
            kept, products = _products(weight, bias, choice, rows, tolerance)
            whole = LaidOutLinear(
                kept,
                products,
                bias,
                transposed=group.transposed,
                owned=f"{group.names[0]}.weight" in owned,
            ).eval()
            parts = _parts(group, whole)
            agree = _agree(parts, group.layers, weight, tolerance)
        except _MISSING:
            continue
        if agree:
            count += len(parts)
            for name, part in zip(group.names, parts, strict=True):
                model.set_submodule(name, part.eval())
    return count


def _groups(model: nn.Module) -> Iterator[_Group]:
    """All linear layers, those of the same input together."""
    taken: set[int] = set()
    for name, module in model.named_modules():
        for names in _TOGETHER:
            layers = tuple(getattr(module, one, None) for one in names)
            if _alike(layers):
                taken.update(map(id, layers))
                yield _Group(tuple(f"{name}.{one}" for one in names), layers)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | Conv1D) and id(layer) not in taken:
            yield _Group((name,), (layer,))


def _alike(layers: Sequence[Any]) -> bool:
    if not all(type(layer) is nn.Linear for layer in layers):
        return False
    return len({(one.in_features, one.bias is None, one.weight.dtype) for one in layers}) == 1


def _parts(group: _Group, whole: LaidOutLinear) -> list[nn.Module]:
    if len(group.layers) == 1:
        return [whole]
    sizes = [len(layer.weight) for layer in group.layers]
    joint = Joined(whole, sizes)
    ends = pairwise(accumulate(sizes, initial=0))
    return [
        JoinedLinear(joint, at, slice(*rows), layer.bias)
        for at, (layer, rows) in enumerate(zip(group.layers, ends, strict=True))
    ]


def _products(
    weight: Tensor, bias: Tensor | None, choice: Choice, rows: MakeRows | None, tolerance: float
) -> tuple[Kept, tuple[Product, ...]]:
    """The product that keeps the weight, and those for one row, a few, and many."""
    layouts = {LAYOUT_OF.get(name, name) for name in choice}
    kept = {name: LAYOUTS[name](weight, bias) for name in sorted(layouts)}
    every: dict[str, Product] = dict(kept)
    for name in {*choice} - kept.keys():
        beside = kept[LAYOUT_OF[name]]
        made = None if rows is None else rows(name, beside, weight, bias)
        agrees = made is not None and same(made, beside, weight, 1, tolerance)
        every[name] = made if made is not None and agrees else beside
    holder = kept.get(PLAIN) or next(iter(kept.values()))
    return holder, tuple(every[name] for name in choice)


def _agree(
    parts: Sequence[nn.Module], layers: Sequence[nn.Module], weight: Tensor, tolerance: float
) -> bool:
    return all(
        same(part, layer, weight, rows, tolerance)
        for rows in (1, 2, 2 * FEW)
        for part, layer in zip(parts, layers, strict=True)
    )


def same(found: Product, expected: Product, weight: Tensor, rows: int, tolerance: float) -> bool:
    """Whether two products of a weight (O, I) give the same for random rows."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, rows, weight.shape[1], generator=generator).to(weight.dtype)
    y = expected(x).float()
    error = float((found(x).float() - y).abs().max())
    return error <= tolerance * max(1.0, float(y.abs().max()))
