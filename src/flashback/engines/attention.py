"""Which exact attention a pass takes, where PyTorch's own choice costs more than it gains.

Measured on an H100 (docs/lab-log.md, "On a GPU"):

    at fixed places     PyTorch's choice, on CUDA cuDNN's; for one token in float32 matrix products,
                        since no fused kernel for float32 divides the columns of a single row
    at changing ones    on CUDA not cuDNN's, which plans anew for every number of columns: tens of
                        milliseconds
"""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

_WITHOUT_PLANS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def attention_for(
    model: PreTrainedModel, tokens: int, *, fixed: bool
) -> AbstractContextManager[object]:
    """Choose for one pass over so many new tokens of a row.

    Args:
        fixed: the pass is one of `fixed_passes.py`.
    """
    if fixed:
        single = tokens == 1 and model.dtype == torch.float32
        return _matrix_products(model) if single else contextlib.nullcontext()
    if model.device.type == "cuda":
        return sdpa_kernel(_WITHOUT_PLANS)
    return contextlib.nullcontext()


@contextlib.contextmanager
def _matrix_products(model: PreTrainedModel) -> Iterator[None]:
    before = model.config._attn_implementation
    model.config._attn_implementation = "eager"
    try:
        yield
    finally:
        model.config._attn_implementation = before
