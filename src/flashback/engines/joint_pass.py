"""A slot's passage and the context tokens behind it, in one pass.

A passage is encoded without the context, so it could have a pass of its own. But then the tokens
that are the first to see it, often a single one, take a second pass, in which every weight is read
once more. In one pass each layer multiplies the tokens of both by its matrices, and only attention
keeps them apart.

Symbols: B batch, H heads, D head size, p tokens of the passage, T context tokens of the pass, n
those before them, K = p + n + T columns: the passage, then the context.

    passage token i     sees the columns [0, i]
    context token i     sees the columns [0, p + n + i], which is what the model's own mask says

It takes a model whose layers each call PyTorch's attention once; `LocalEngine.joins_passages` finds
out, and every pass counts the calls.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from flashback.engines.attention import causal_mask
from flashback.engines.last_layer import is_narrowed


class PassageApart(TorchFunctionMode):
    """While it is entered, the first tokens of this thread's pass see nothing but themselves."""

    def __init__(self, passage: int, context: int) -> None:
        """Say what the tokens of the pass are.

        Args:
            passage: p; they come first, in the pass and in the cache.
            context: T.
        """
        super().__init__()
        self._passage = passage
        self._tokens = passage + context
        self.calls = 0
        """Of attention, until now."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Attend to the passage and to the context one after the other."""
        given = kwargs or {}
        if func is not scaled_dot_product_attention:
            return func(*args, **given)
        self.calls += 1
        # A narrowed last layer has context tokens only, in a shape of their own.
        return func(*args, **given) if is_narrowed() else self._attend(*args, **given)

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
        if query.shape[-2] != self._tokens:
            raise ValueError(f"attention has {query.shape[-2]} queries; expected {self._tokens}")
        own, rest = slice(self._passage), slice(self._passage, None)
        among_themselves = scaled_dot_product_attention(
            query[:, :, own], key[:, :, own], value[:, :, own], is_causal=True, **more
        )
        behind = query[:, :, rest]
        if attn_mask is not None:
            mask: Tensor | None = attn_mask[:, :, rest]
        else:
            mask = causal_mask(behind.shape[-2], key.shape[-2], key.device)
        everything = scaled_dot_product_attention(behind, key, value, attn_mask=mask, **more)
        parts = among_themselves.transpose(1, 2), everything.transpose(1, 2)
        return torch.cat(parts, 1).transpose(1, 2)  # as attention itself lays it out
