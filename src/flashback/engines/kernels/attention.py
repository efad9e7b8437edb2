"""The choice of exact attention for a pass, where PyTorch's own choice costs more than it gains.

Measured on an H100 (docs/lab-log.md, "On a GPU"):

    at fixed places     PyTorch's choice, on CUDA cuDNN's; for one token in float32 matrix products,
                        since no fused kernel for float32 divides the columns of a single row
    at changing ones    on CUDA not cuDNN's, which plans anew for every number of columns: tens of
                        milliseconds

On a CPU (docs/lab-log.md, "A single query in bfloat16", "Attention of a boundary"):

    one token in bfloat16    in float32, unless heads share keys: PyTorch's kernel has no fast
                             product of one row in bfloat16
    many behind a context    as matrix products, a few heads at a time: PyTorch's kernel cuts the
                             queries into pieces that are too small for a long context
    rows with a mask         heads that share keys as queries of one head: transformers would repeat
                             the keys for each ("Heads that share keys")
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
_OURS = "flashback"
_CACHED_BYTES = 1 << 23
"""Keys and values in float32, or scores, at one time, which fit a processor's cache."""
_MANY = 96
"""Queries of a key head that are worth being multiplied at once."""


class Attention:
    """The choice for the passes of one model, of which one runs at a time."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        # Some families (Falcon) do not look a name up, and take any but PyTorch's for their own.
        usual = model.config._attn_implementation == "sdpa" and model._supports_attention_backend
        self._ours = usual and model.device.type == "cpu"
        config: Any = model.config.get_text_config()
        key_heads = getattr(config, "num_key_value_heads", None)
        self._grouped = key_heads is not None and key_heads < config.num_attention_heads

    def for_pass(
        self, tokens: int, *, fixed: bool, behind: bool = True
    ) -> AbstractContextManager[object]:
        """Choose for one pass over so many new tokens of a row.

        Args:
            fixed: the pass is one of `fixed_passes.py`.
            behind: there are others in the cache.
        """
        if not fixed and self._model.device.type == "cuda":
            return _without_plans()
        if fixed and tokens == 1 and self._model.dtype == torch.float32:
            return replaced(self._model.config, "eager")
        single = self._grouped or self._model.dtype == torch.bfloat16
        if self._ours and behind and not fixed and (single or tokens > 1):
            return replaced(self._model.config, _OURS)
        return contextlib.nullcontext()


class UsualAttention(Attention):
    """PyTorch's and transformers' own choice."""

    def for_pass(
        self, tokens: int, *, fixed: bool, behind: bool = True
    ) -> AbstractContextManager[object]:
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
    """PyTorch's attention as transformers calls it, computed in another way where that is faster.

    Args:
        query: (B, H, T, D).
        key, value: (B, key-value heads, K, D).
        attention_mask: (B or 1, H or 1, T, K), boolean or added.

    Returns:
        (B, T, H, D), and nothing.
    """
    given = query, key, value
    by_head = attention_mask is not None and attention_mask.shape[1] > 1
    unlike = any(more.get(name) is not None for name in ("position_bias", "softcap"))
    if by_head or unlike or query.device.type != "cpu":
        return sdpa_attention_forward(module, *given, attention_mask, **more)
    if heads := _single_heads_at_once(query, key):
        return _widened(module, *given, attention_mask, heads, **more), None
    if attention_mask is not None and (heads := _key_heads_at_once(query, key)):
        scale = more.get("scaling") or query.shape[-1] ** -0.5
        return _by_products(*given, attention_mask, scale, heads), None
    if attention_mask is not None and key.shape[1] < query.shape[1]:
        return _grouped(*given, attention_mask, **more), None
    return sdpa_attention_forward(module, *given, attention_mask, **more)


def _widened(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    heads: int,
    **more: Any,
) -> Tensor:
    """PyTorch's kernel in float32, a few heads at a time."""
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.float()
    found = []
    for some in zip(*(states.split(heads, 1) for states in (query, key, value)), strict=True):
        one, its_keys, its_values = (states.float() for states in some)
        output, _ = sdpa_attention_forward(module, one, its_keys, its_values, mask, **more)
        found.append(output)
    return torch.cat(found, 2).to(query.dtype)


def _single_heads_at_once(query: Tensor, key: Tensor) -> int:
    """How many heads to make wider at a time for a single query; 0: none.

    All at once, many keys would leave the cache before they are read.
    """
    heads = query.shape[1]
    if query.dtype != torch.bfloat16 or query.shape[-2] > 1 or key.shape[1] < heads:
        return 0
    return _at_once(heads, 2 * key[:, 0].numel())


def _by_products(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, heads: int
) -> Tensor:
    """Attention of one row as its formula says, a few key heads at a time; scores in float32."""
    _, _, tokens, size = query.shape
    shared = query.shape[1] // key.shape[1]
    added = _added(mask, torch.float32)[0, 0].repeat(shared, 1)
    # The heads that share a key are rows of one product.
    rows = query[0].reshape(-1, shared * tokens, size)
    found = []
    for some, its_keys, its_values in zip(
        rows.split(heads), key[0].split(heads), value[0].split(heads), strict=True
    ):
        columns = its_keys.float().transpose(1, 2)
        scores = torch.baddbmm(added, some.float(), columns, alpha=scale)
        found.append(torch.bmm(scores.softmax(-1).to(value.dtype), its_values))
    output = torch.cat(found).view(1, query.shape[1], tokens, -1)
    return output.transpose(1, 2).contiguous()


def _grouped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> Tensor:
    """PyTorch's kernel; the heads that share a key are queries of one head, and see alike."""
    rows, heads, tokens, size = query.shape
    shared = heads // key.shape[1]
    # A view, where it is of one token: then nothing is copied.
    seen = mask.expand(-1, -1, shared, -1) if tokens == 1 else mask.repeat(1, 1, shared, 1)
    together = query.reshape(rows, -1, shared * tokens, size)
    output = nn.functional.scaled_dot_product_attention(
        together, key, value, attn_mask=seen, dropout_p=dropout, scale=scaling
    )
    return output.view(rows, heads, tokens, -1).transpose(1, 2).contiguous()


def _key_heads_at_once(query: Tensor, key: Tensor) -> int:
    """How many key heads to multiply at a time for many queries of one row; 0: none."""
    rows, heads, tokens, _ = query.shape
    queries = tokens * heads // key.shape[1]
    if rows > 1 or tokens == 1 or queries < _MANY or query.requires_grad:  # would be kept
        return 0
    found = _at_once(key.shape[1], queries * key.shape[-2])
    return min(found, 2 * torch.get_num_threads())


def _at_once(heads: int, numbers: int) -> int:
    """How many heads of so many float32 numbers fit the cache, if all cores have one; else 0."""
    fit = min(_CACHED_BYTES // (numbers * torch.float32.itemsize), heads)
    return fit if fit >= min(heads, torch.get_num_threads()) else 0


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as numbers to be added to scores."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)


def _mask(*given: Any, **more: Any) -> Tensor | None:
    """PyTorch's mask as transformers makes it, as what it adds: once, not in every layer.

    That of rows of one token each stays boolean: a layer does not copy it (`_grouped`).
    """
    mask = sdpa_mask(*given, **more)
    if mask is None or (len(mask) > 1 and mask.shape[-2] == 1):
        return mask
    return _added(mask, more["dtype"])


def causal_mask(tokens: int, columns: int, device: torch.device) -> Tensor | None:
    """Which columns each of the last tokens sees, (1, 1, T, K); None: all of them."""
    if tokens == 1:
        return None
    seen = torch.ones(tokens, columns, dtype=torch.bool, device=device)
    return seen.tril(columns - tokens)[None, None]


@contextlib.contextmanager
def _without_plans() -> Iterator[None]:
    with _KERNELS, sdpa_kernel(_WITHOUT_PLANS):
        yield


AttentionInterface.register(_OURS, attend)
AttentionMaskInterface.register(_OURS, _mask)
