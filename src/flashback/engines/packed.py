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
from functools import cache, partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

OneRow = Callable[[Tensor], Tensor]
"""The product of a single row, (..., I) to (..., O)."""
MakeOneRow = Callable[[Tensor, Tensor, nn.Parameter | None], OneRow | None]
"""That of a weight: as it was packed, as it was (O, I), and its bias (O,); None: none for it."""

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
        """The weight as the replaced layer had it; made anew at every look."""
        weight = self.unpacked()
        return weight.t() if self._transposed else weight


class PackedLinear(RepackedLinear):
    """A weight in oneDNN's layout."""

    def __init__(
        self,
        weight: Tensor,
        bias: nn.Parameter | None,
        *,
        transposed: bool,
        owned: bool,
        make_one_row: MakeOneRow | None = None,
    ) -> None:
        """Pack a weight (O, I).

        Args:
            make_one_row: how single rows are multiplied, if not by oneDNN; see `one_row.py`.
        """
        super().__init__(bias, transposed=transposed, owned=owned)
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS)
        self.one_row = make_one_row and make_one_row(self._packed, weight, bias)

    def unpacked(self) -> Tensor:
        weight: Tensor = self._packed.to_dense()
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to (..., O)."""
        if self.one_row is not None and x.numel() == x.shape[-1]:
            return self.one_row(x)
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return y


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


def pack_weights(model: PreTrainedModel, make_one_row: MakeOneRow | None = None) -> int:
    """Replace the linear layers of a model on CPU, in place; how many there were.

    Plain weights are freed. A head that is tied to the embedding is packed beside it, which takes
    the embedding's size once more. On other devices, and where PyTorch cannot, layers stay.

    Args:
        make_one_row: how single rows are multiplied, if not by oneDNN; see `one_row.py`.
    """
    if model.device.type != "cpu" or model.dtype not in _TOLERANCE:
        return 0
    packed = partial(PackedLinear, make_one_row=make_one_row)
    return _replace(model, packed, _TOLERANCE[model.dtype])


@cache
def packs(dtype: str) -> bool:
    """Whether PyTorch packs weights of this dtype for this processor."""
    try:
        torch.ops.mkldnn._reorder_linear_weight(torch.zeros(64, 64, dtype=getattr(torch, dtype)))
    except (AttributeError, RuntimeError):
        return False
    return True


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
            agrees = _agrees(repacked, layer, weight.shape[0 if transposed else 1], tolerance)
        except (AttributeError, RuntimeError):  # the operator is missing, or not for this processor
            continue
        if agrees:
            model.set_submodule(name, repacked.eval())
            count += 1
    return count


def _agrees(repacked: nn.Module, layer: nn.Module, width: int, tolerance: float) -> bool:
    generator = torch.Generator().manual_seed(0)
    dtype = next(layer.parameters()).dtype
    x = torch.randn(1, 2, width, generator=generator).to(dtype)
    expected = layer(x).float()
    found = repacked(x).float(), repacked(x[:, :1]).float()
    error = max(float((rows - expected[:, : rows.shape[1]]).abs().max()) for rows in found)
    return error <= tolerance * max(1.0, float(expected.abs().max()))
