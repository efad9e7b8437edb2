"""Ways to multiply a weight on a CPU, for inference: a layout, and the products that read it.

    plain           as PyTorch keeps it
    packed          rearranged once for oneDNN, whose products else rearrange it in every pass
    compiled        of a single row: loops that numba compiles, which read the packed weight
    int8            W = diag(v) Q, x = u q: y = u v (q Qᵀ) + b, with whole numbers Q in
                    [-127, 127] and q in [-127, 127], or [-63, 63] where the processor's 16-bit
                    sums would overflow
    compiled int8   of a single row: y = v (x Qᵀ) + b; inputs are not rounded

v belongs to an output, u to one row of x (a token): what a token computes does not depend on the
other tokens of the pass. The first three are exact, up to the order of additions.

PyTorch's operators for packed and int8 are private to its compiler. So what they compute is
compared with the plain product before it is used.
"""

from collections.abc import Callable
from functools import cache
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear

PLAIN, PACKED, COMPILED, INT8, COMPILED8 = "plain", "packed", "compiled", "int8", "compiled int8"

_ROWS = 16
"""Rows the packed layout is made for: it is good from a token to a passage (docs/lab-log.md)."""


class Product(Protocol):
    """Multiplies rows with a weight that it keeps."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """(..., I) to (..., O)."""


class Kept(Product, Protocol):
    """One that can give its weight back."""

    def unpacked(self) -> Tensor:
        """The weight, (O, I)."""


class PlainProduct:
    """A weight as it is."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Keep a weight (O, I) and a bias (O,), or none."""
        self._weight = weight
        self._bias = bias

    def __call__(self, x: Tensor, /) -> Tensor:
        return linear(x, self._weight, self._bias)

    def unpacked(self) -> Tensor:
        return self._weight


class PackedProduct:
    """A weight in oneDNN's layout."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Pack a weight (O, I)."""
        self.memory = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS)
        self._bias = bias

    def __call__(self, x: Tensor, /) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.memory, self._bias, "none", [], "")
        return y

    def unpacked(self) -> Tensor:
        weight: Tensor = self.memory.to_dense()
        return weight


class Int8Product:
    """Weights of 8 bits, one scale per output; inputs of 8 bits, one scale per row."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Round a float32 weight (O, I)."""
        whole, self._scales = rounded(weight)
        self._rounded = torch.ops.onednn.qlinear_prepack(whole, None)
        self._bias = bias
        self._zeros = torch.zeros(len(weight), dtype=torch.int32)
        self._least = torch.tensor(1e-12)
        self._levels = input_levels()
        self._half = torch.tensor(self._levels + 1.5)
        """Inputs are stored from 1 on, with levels + 1 for zero; cutting off then rounds."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """(..., I) to (..., O), float32."""
        largest = torch.linalg.vector_norm(x, float("inf"), -1, keepdim=True)
        scale = torch.add(self._least, largest, alpha=1 / self._levels)
        whole = torch.addcdiv(self._half, x, scale).to(torch.uint8)
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            *(whole, 1.0, self._levels + 1, self._rounded, self._scales, self._zeros, None),
            *(1.0, 0, torch.float32, "none", [], ""),
        )
        return y.mul_(scale) if self._bias is None else torch.addcmul(self._bias, y, scale)

    def unpacked(self) -> Tensor:
        whole: Tensor = self._rounded.to_dense().to(torch.float32).t()
        return whole * self._scales[:, None]


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight (O, I) as whole numbers in [-127, 127], and the scale (O,) of each output."""
    scales = weight.abs().amax(1).clamp_min(1e-12) / 127
    return (weight / scales[:, None]).round().to(torch.int8).contiguous(), scales


@cache
def input_levels() -> int:
    """The largest whole number an 8-bit layer may round its inputs to: 127, or 63.

    Without the VNNI instructions two products are added in 16 bits, and 2 · 255 · 127 is too much.
    """
    size = 64
    weight = torch.full((size, size), 127, dtype=torch.int8)
    zeros = torch.zeros(size, dtype=torch.int32)
    largest: Tensor = torch.ops.onednn.qlinear_pointwise(
        torch.full((1, size), 255, dtype=torch.uint8),
        *(1.0, 128, torch.ops.onednn.qlinear_prepack(weight, None), torch.ones(size), zeros, None),
        *(1.0, 0, torch.float32, "none", [], ""),
    )
    return 127 if bool((largest == size * 127 * 127).all()) else 63


Make = Callable[[Tensor, Tensor | None], Kept]
"""From a weight (O, I) and a bias (O,), or none."""
LAYOUTS: dict[str, Make] = {
    PLAIN: PlainProduct,
    PACKED: PackedProduct,
    INT8: Int8Product,
}
"""Those that keep a weight."""
BYTES = {INT8, COMPILED8}
"""Those whose weights take a byte each."""
LAYOUT_OF = {COMPILED: PACKED, COMPILED8: INT8}
"""Compiled products of single rows, and what multiplies other rows beside them."""
MakeRows = Callable[[str, Kept, Tensor, Tensor | None], Product | None]
"""A compiled product, by name, from the product beside it, the weight (O, I) and its bias (O,);
None: there is none."""
