"""Which exact attention a pass takes, where PyTorch's own choice costs more than it gains.

Measured on an H100 (docs/lab-log.md, "On a GPU"):

    at fixed places     PyTorch's choice, on CUDA cuDNN's; for one token in float32 matrix products,
                        since no fused kernel for float32 divides the columns of a single row
    at changing ones    on CUDA not cuDNN's, which plans anew for every number of columns: tens of
                        milliseconds
"""

import contextlib
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

_WITHOUT_PLANS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
_KERNELS = threading.RLock()
"""PyTorch's choice of kernels is the process's: one thread at a time changes it, and back."""


class Attention:
    """The choice for the passes of one model, of which one runs at a time."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._usual = model.config._attn_implementation

    def for_pass(self, tokens: int, *, fixed: bool) -> AbstractContextManager[object]:
        """Choose for one pass over so many new tokens of a row.

        Args:
            fixed: the pass is one of `fixed_passes.py`.
        """
        if not fixed and self._model.device.type == "cuda":
            return _without_plans()
        if fixed and tokens == 1 and self._model.dtype == torch.float32:
            return self._matrix_products()
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def _matrix_products(self) -> Iterator[None]:
        self._model.config._attn_implementation = "eager"
        try:
            yield
        finally:
            self._model.config._attn_implementation = self._usual


class UsualAttention(Attention):
    """What PyTorch and transformers choose by themselves."""

    def for_pass(self, tokens: int, *, fixed: bool) -> AbstractContextManager[object]:
        """Change nothing."""
        return contextlib.nullcontext()


def causal_mask(tokens: int, columns: int, device: torch.device) -> Tensor | None:
    """What each of the last tokens sees of all columns, (1, 1, T, K); None: everything."""
    if tokens == 1:
        return None
    seen = torch.ones(tokens, columns, dtype=torch.bool, device=device)
    return seen.tril(columns - tokens)[None, None]


@contextlib.contextmanager
def _without_plans() -> Iterator[None]:
    with _KERNELS, sdpa_kernel(_WITHOUT_PLANS):
        yield
