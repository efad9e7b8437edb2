"""A slot's passage and the context tokens behind it, in one pass.

A passage is encoded without the context, so it could have a pass of its own. But then the tokens
that are the first to see it, often a single one, take a second pass, in which every weight is read
once more. In one pass each layer multiplies the tokens of both by its matrices, and only attention
keeps them apart.

Symbols: B batch, H heads, D head size, p tokens of the passage, T context tokens of the pass, n
those before them, K = p + n + T columns: the passage, then the context.

    passage token i     sees the columns [0, i]
    context token i     sees the columns [0, p + n + i], which is what the model's own mask says

It needs no knowledge of the model but that its attention is PyTorch's.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode


class PassageApart(TorchFunctionMode):
    """While it is entered, the first tokens of this thread's passes see nothing but themselves."""

    def __init__(self, tokens: int, context: int) -> None:
        """Say what the tokens of a pass are.

        Args:
            tokens: p, of the passage; they come first, in the pass and in the cache.
            context: T.
        """
        super().__init__()
        self._passage = tokens
        self._tokens = tokens + context

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Attend to the passage and to the context one after the other."""
        given = kwargs or {}
        # A last layer may have its needed positions only: those are context tokens.
        if func is scaled_dot_product_attention and args[0].shape[-2] == self._tokens:
            return self._attend(*args, **given)
        return func(*args, **given)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **more: Any,
    ) -> Tensor:
        """(B, H, p + T, D) of queries of that shape, and of keys and values (B, H, K, D)."""
        own = slice(self._passage)
        among_themselves = scaled_dot_product_attention(
            query[:, :, own], key[:, :, own], value[:, :, own], is_causal=True, **more
        )
        behind = query[:, :, self._passage :]
        mask = None
        if behind.shape[-2] > 1:
            mask = _causal(behind, key) if attn_mask is None else attn_mask[:, :, self._passage :]
        everything = scaled_dot_product_attention(behind, key, value, attn_mask=mask, **more)
        parts = among_themselves.transpose(1, 2), everything.transpose(1, 2)
        return torch.cat(parts, 1).transpose(1, 2)  # as attention itself lays it out


def _causal(query: Tensor, key: Tensor) -> Tensor:
    """What each of the last tokens sees, (1, 1, T, K)."""
    tokens, columns = query.shape[-2], key.shape[-2]
    seen = torch.ones(tokens, columns, dtype=torch.bool, device=key.device)
    return seen.tril(columns - tokens)[None, None]
