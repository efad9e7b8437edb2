"""Which exact attention a pass takes, where PyTorch's own choice costs more than it gains.

Measured on an H100 (docs/lab-log.md, "On a GPU"):

    at fixed places     PyTorch's choice, on CUDA cuDNN's; for one token in float32 matrix products,
                        since no fused kernel for float32 divides the columns of a single row
    at changing ones    on CUDA not cuDNN's, which plans anew for every number of columns: tens of
                        milliseconds

On a CPU (docs/lab-log.md, "A single query in bfloat16"): a single token in bfloat16 is attended
to in float32, unless heads share keys. PyTorch's kernel has no fast product of one row in bfloat16:
it takes up to three times as long as with keys and values made wider.
"""

import contextlib
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_WITHOUT_PLANS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
_KERNELS = threading.RLock()
"""PyTorch's choice of kernels is the process's: one thread at a time changes it, and back."""
_REPLACING = threading.RLock()
"""A model's attention is its configuration's: one pass at a time replaces it, and puts it back."""
_WIDENED = "flashback_widened"
_WIDE_BYTES = 1 << 23
"""Keys and values in float32 at one time, which fit a processor's cache."""


class Attention:
    """The choice for the passes of one model, of which one runs at a time."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        usual = model.config._attn_implementation == "sdpa"
        self._widens = usual and model.device.type == "cpu" and model.dtype == torch.bfloat16

    def for_pass(self, tokens: int, *, fixed: bool) -> AbstractContextManager[object]:
        """Choose for one pass over so many new tokens of a row.

        Args:
            fixed: the pass is one of `fixed_passes.py`.
        """
        if not fixed and self._model.device.type == "cuda":
            return _without_plans()
        if fixed and tokens == 1 and self._model.dtype == torch.float32:
            return replaced(self._model.config, "eager")
        if tokens == 1 and self._widens:
            return replaced(self._model.config, _WIDENED)
        return contextlib.nullcontext()


class UsualAttention(Attention):
    """What PyTorch and transformers choose by themselves."""

    def for_pass(self, tokens: int, *, fixed: bool) -> AbstractContextManager[object]:
        """Change nothing."""
        return contextlib.nullcontext()


@contextlib.contextmanager
def replaced(config: PreTrainedConfig, attention: str) -> Iterator[None]:
    """Let a model whose attention is PyTorch's call another, registered with transformers."""
    with _REPLACING:
        usual = config._attn_implementation
        if usual == "sdpa":
            config._attn_implementation = attention
        try:
            yield
        finally:
            config._attn_implementation = usual


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **more: Any,
) -> tuple[Tensor, None]:
    """PyTorch's attention as transformers calls it, in float32 where that is faster.

    Args:
        query: (B, H, T, D).
        key, value: (B, key-value heads, K, D).
        attention_mask: (B or 1, H or 1, T, K), boolean or added.

    Returns:
        (B, T, H, D), and nothing.
    """
    heads = _heads_at_once(query, key)
    by_head = attention_mask is not None and attention_mask.shape[1] > 1
    if not heads or by_head or more.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **more)
    if attention_mask is not None and attention_mask.dtype != torch.bool:
        attention_mask = attention_mask.float()
    found = []
    for some in zip(*(states.split(heads, 1) for states in (query, key, value)), strict=True):
        one, its_keys, its_values = (states.float() for states in some)
        output, _ = sdpa_attention_forward(
            module, one, its_keys, its_values, attention_mask, **more
        )
        found.append(output)
    return torch.cat(found, 2).to(query.dtype), None


def _heads_at_once(query: Tensor, key: Tensor) -> int:
    """How many heads to make wider at a time; 0: none.

    All at once, many keys would leave the cache before they are read.
    """
    if query.dtype != torch.bfloat16 or query.device.type != "cpu":
        return 0
    heads = query.shape[1]
    if query.shape[-2] > 1 or key.shape[1] < heads:
        return 0
    fit = _WIDE_BYTES // (2 * key[:, 0].numel() * torch.float32.itemsize)
    # Each core takes a head.
    return min(fit, heads) if fit >= min(heads, torch.get_num_threads()) else 0


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


AttentionInterface.register(_WIDENED, attend)
AttentionMaskInterface.register(_WIDENED, sdpa_mask)
