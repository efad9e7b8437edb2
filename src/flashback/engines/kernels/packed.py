"""Linear layers with weights laid out for the CPU's matrix kernels; for inference only.

A weight as PyTorch keeps it is rearranged by the matrix kernel in every pass. Here it is rearranged
once: oneDNN's layout for float32 and bfloat16, or 8-bit integers.

    packed    y = x Wᵀ + b, up to the order of additions
    int8      W = diag(v) Q, x = u q: y = u v (q Qᵀ) + b, with whole numbers Q in [-127, 127] and
              q in [-127, 127], or [-63, 63] where the processor's 16-bit sums would overflow

v belongs to an output, u to one row of x (a token): what a token computes does not depend on the
other tokens of the pass.

PyTorch's operators for both are private to its compiler. So every layer is tried before it is
replaced, and stays as it is where the operator is missing or computes something else.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

Product = Callable[[Tensor], Tensor]
"""Of a weight (O, I) and a single row, (..., I) to (..., O)."""
MakeProduct = Callable[[Tensor, Tensor, nn.Parameter | None], Product | None]
"""From a packed weight, the plain one (O, I) and its bias (O,); None: there is no such product."""

_ROWS = 16
"""Rows the layout is chosen for: it is good from a token to a passage (docs/lab-log.md)."""
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest difference to the plain layer, relative to the largest value (at least 1)."""
_INT8_TOLERANCE = 5e-2


class RepackedLinear(nn.Module, ABC):
    """A linear layer that keeps its weight in a layout of its own."""

    def __init__(self, bias: nn.Parameter | None, *, transposed: bool, owned: bool) -> None:
        """Begin without the weight.

        Args:
            bias: (O,), or none.
            transposed: the replaced layer kept its weight as (I, O).
            owned: the weight is no other module's; a tied head's is the embedding's.
        """
        super().__init__()
        self.bias = bias
        self.owned = owned
        self._transposed = transposed

    @abstractmethod
    def unpacked(self) -> Tensor:
        """The weight, (O, I)."""

    @property
    def weight(self) -> Tensor:
        """The weight as the replaced layer had it; computed at every access."""
        weight = self.unpacked()
        return weight.t() if self._transposed else weight


class PackedLinear(RepackedLinear):
    """A weight in oneDNN's layout."""

    def __init__(
        self, weight: Tensor, bias: nn.Parameter | None, *, transposed: bool, owned: bool
    ) -> None:
        """Pack a weight (O, I)."""
        super().__init__(bias, transposed=transposed, owned=owned)
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS)
        self.single_rows: Product | None = None
        """Multiplies single rows, if oneDNN does not."""

    def unpacked(self) -> Tensor:
        weight: Tensor = self._packed.to_dense()
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to (..., O)."""
        if self.single_rows is not None and x.numel() == x.shape[-1]:
            return self.single_rows(x)
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return y

    @torch.no_grad()
    def give_single_rows(self, make: MakeProduct) -> bool:
        """Let them be multiplied by another product; whether there is one that agrees."""
        weight = self.unpacked()
        product = make(self._packed, weight, self.bias)
        row = _random_rows(1, weight.shape[1], weight.dtype)
        if product is None or not _agrees(product, self, row, _TOLERANCE[weight.dtype]):
            return False
        self.single_rows = product
        return True


class Int8Linear(RepackedLinear):
    """Weights of 8 bits, one scale per output; inputs of 8 bits, one scale per row."""

    def __init__(
        self, weight: Tensor, bias: nn.Parameter | None, *, transposed: bool, owned: bool
    ) -> None:
        """Round a float32 weight (O, I)."""
        super().__init__(bias, transposed=transposed, owned=owned)
        scales = weight.abs().amax(1).clamp_min(1e-12) / 127
        self._rounded = torch.ops.onednn.qlinear_prepack(
            (weight / scales[:, None]).round().to(torch.int8).contiguous(), None
        )
        self._scales = scales
        self._zeros = torch.zeros(len(scales), dtype=torch.int32)
        self._least = torch.tensor(1e-12)
        self._levels = input_levels()
        self._half = torch.tensor(self._levels + 1.5)
        """Inputs are stored from 1 on, with levels + 1 for zero; cutting off then rounds."""

    def unpacked(self) -> Tensor:
        rounded: Tensor = self._rounded.to_dense().to(torch.float32).t()
        return rounded * self._scales[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to (..., O), float32."""
        largest = torch.linalg.vector_norm(x, float("inf"), -1, keepdim=True)
        scale = torch.add(self._least, largest, alpha=1 / self._levels)
        rounded = torch.addcdiv(self._half, x, scale).to(torch.uint8)
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            *(rounded, 1.0, self._levels + 1, self._rounded, self._scales, self._zeros, None),
            *(1.0, 0, torch.float32, "none", [], ""),
        )
        return y.mul_(scale) if self.bias is None else torch.addcmul(self.bias, y, scale)


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


def pack_weights(model: PreTrainedModel) -> int:
    """Replace the linear layers of a model on CPU, in place; how many there were.

    Plain weights are freed. A head that is tied to the embedding is packed beside it, which takes
    the embedding's size once more. On other devices, and where PyTorch cannot, layers stay.
    """
    if model.device.type != "cpu" or model.dtype not in _TOLERANCE:
        return 0
    return _replace(model, PackedLinear, _TOLERANCE[model.dtype])


def give_single_rows(model: PreTrainedModel, make: MakeProduct) -> int:
    """Let another product multiply single rows in the packed layers of a model; in how many."""
    layers = (layer for layer in model.modules() if isinstance(layer, PackedLinear))
    return sum(layer.give_single_rows(make) for layer in layers)


@torch.no_grad()
def packed_or_plain(layer: nn.Linear) -> nn.Module:
    """A layer with its weight packed; as it is where PyTorch cannot."""
    try:
        return PackedLinear(layer.weight, layer.bias, transposed=False, owned=True)
    except (AttributeError, RuntimeError):
        return layer


def quantize_weights(model: PreTrainedModel) -> int:
    """Replace the linear layers of a float32 model on CPU by ones of 8 bits, in place; how many.

    Weights of embeddings, norms and attention's products stay as they are.
    """
    return _replace(model, Int8Linear, _INT8_TOLERANCE)


def is_quantized(model: nn.Module) -> bool:
    """Whether some weights were rounded to 8 bits."""
    return any(isinstance(layer, Int8Linear) for layer in model.modules())


def named_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A model's parameters, as if none were packed."""
    yield from model.named_parameters()
    for name, layer in model.named_modules():
        if isinstance(layer, RepackedLinear) and layer.owned:
            yield f"{name}.weight", layer.weight


@torch.no_grad()
def _replace(model: PreTrainedModel, kind: Callable[..., RepackedLinear], tolerance: float) -> int:
    owned = {name for name, _ in model.named_parameters()}
    count = 0
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, nn.Linear | Conv1D):
            continue
        transposed = isinstance(layer, Conv1D)
        weight = layer.weight.detach()
        try:
            repacked = kind(
                weight.t() if transposed else weight,
                layer.bias,
                transposed=transposed,
                owned=f"{name}.weight" in owned,
            )
            rows = _random_rows(2, weight.shape[0 if transposed else 1], weight.dtype)
            agrees = _agrees(repacked, layer, rows, tolerance)
        except (AttributeError, RuntimeError):  # the operator is missing, or not for this processor
            continue
        if agrees:
            model.set_submodule(name, repacked.eval())
            count += 1
    return count


def _random_rows(count: int, width: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(1, count, width, generator=torch.Generator().manual_seed(0)).to(dtype)


def _agrees(found: Product, expected: Product, x: Tensor, tolerance: float) -> bool:
    y = expected(x).float()
    error = float((found(x).float() - y).abs().max())
    return error <= tolerance * max(1.0, float(y.abs().max()))
