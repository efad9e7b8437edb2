"""Frozen weights of a model in training on a CPU, packed once for both passes.

LoRA leaves a model's weights as they are: forwards a layer multiplies rows with W, backwards
gradients with Wᵀ, again and again with the same W. oneDNN rearranges a weight in every product
that is not given it packed. Layers are packed where that is faster on this processor (`choice.py`)
and gives the same (tested before it is used).
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from flashback.engines.kernels.linear import TOLERANCE, same
from flashback.engines.kernels.products import PACKED, PackedProduct, PlainProduct, Product

_ROWS = 64
"""Rows that are multiplied to see that products agree."""
_SPARE = 1 << 31
"""Bytes that packed copies of a model's weights may take."""
_MISSING = (AttributeError, RuntimeError)
"""An operator is missing, or not for this processor."""

LayoutOf = Callable[[int, int, torch.dtype], str]
"""The layout for many rows, from a weight's outputs, inputs and dtype."""


@dataclass(frozen=True)
class Products:
    """Those of one weight W (O, I)."""

    forward: Product
    """Rows (..., I) with Wᵀ, and the bias."""
    backward: Product
    """Gradients (..., O) with W."""


class FrozenLinear(nn.Linear):
    """A linear layer that multiplies its frozen weight by `products`."""

    products: Products

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to (..., O)."""
        if x.dtype != self.weight.dtype or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        y: Tensor = _Multiply.apply(x, self.products)  # type: ignore[no-untyped-call]
        return y


class _Multiply(torch.autograd.Function):
    """The products as one function of the rows; the weight has no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, products: Products) -> Tensor:
        ctx.products = products
        return products.forward(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.products.backward(gradient.contiguous()), None


class FrozenWeights:
    """The frozen linear layers of one model, with packed copies of their weights."""

    @torch.no_grad()
    def __init__(self, model: nn.Module, layout_of: LayoutOf) -> None:
        """Pack what is faster packed, up to 2 GiB; the plain weights stay.

        Args:
            model: on any device; other than on a CPU nothing is packed.
            layout_of: chooses, for W as for Wᵀ.
        """
        self._packed: dict[nn.Linear, Products] = {}
        spare = _SPARE
        for layer in model.modules():
            if not _is_frozen(layer):
                continue
            assert isinstance(layer, nn.Linear)
            products, copied = _products(layer, layout_of, spare)
            if products is not None:
                self._packed[layer] = products
                spare -= copied

    def __len__(self) -> int:
        """How many layers have a packed weight."""
        return len(self._packed)

    @contextlib.contextmanager
    def packed(self) -> Iterator[None]:
        """Multiply with the packed copies; meanwhile weights must not change."""
        for layer, products in self._packed.items():
            layer.__class__ = FrozenLinear
            layer.products = products  # type: ignore[assignment]
        try:
            yield
        finally:
            for layer in self._packed:
                layer.__class__ = nn.Linear
                del layer.products


def _is_frozen(layer: nn.Module) -> bool:
    if type(layer) is not nn.Linear or "forward" in vars(layer):
        return False
    on_cpu = layer.weight.device.type == "cpu" and layer.weight.dtype in TOLERANCE
    return on_cpu and not any(one.requires_grad for one in layer.parameters())


def _products(layer: nn.Linear, layout_of: LayoutOf, spare: int) -> tuple[Products | None, int]:
    """The products of a layer, and the bytes of their copies; none if none is packed."""
    weight, bias, copied = layer.weight.detach(), layer.bias, 0
    found: list[Product] = []
    for own, added in ((weight, bias), (weight.t(), None)):
        product: Product = PlainProduct(own, added)
        size = own.numel() * own.itemsize
        if size <= spare - copied and layout_of(len(own), own.shape[1], own.dtype) == PACKED:
            with contextlib.suppress(*_MISSING):
                packed = PackedProduct(own, added)
                if same(packed, product, own, _ROWS, TOLERANCE[own.dtype]):
                    product, copied = packed, copied + size
        found.append(product)
    return (Products(found[0], found[1]) if copied else None), copied
