"""A passage at reserved positions and the context tokens behind it, in one pass.

A passage is prefilled without the context, so it could have a pass of its own. But then the tokens
that are the first to see it, often a single one, take a second pass, in which every weight is read
once more. In one pass each layer multiplies the tokens of both by its matrices, and only attention
keeps them apart.

Symbols: B batch, H heads, D head size, p tokens of the sink and the passage behind it, b of the
sink, T context tokens of the pass, n those before them, K = p + n + T columns: the sink, the
passage, the context.

    passage token i     sees the columns [0, i]
    context token i     sees the columns [b, p + n + i]: all but the sink of what the model's own
                        mask says

It takes a model whose layers each ask transformers for its PyTorch attention once, which is a name
in the model's configuration; `has_joint_passes` finds out, and every pass counts the calls.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.masking_utils import sdpa_mask

from flashback.engines.kernels.attention import attend, causal_mask, replaced
from flashback.engines.kernels.last_layer import is_narrowed

_NAME = "flashback_passage_apart"


class PassageApart:
    """Attention of a pass whose first tokens see nothing but themselves."""

    def __init__(self, sink: int, passage: int, context: int) -> None:
        """Describe the pass.

        Args:
            sink: b, the first of the p.
            passage: p; they come first, in the pass and in the cache.
            context: T.
        """
        self._passage = passage
        self._sink = sink
        self._tokens = passage + context
        self.calls = 0
        """Of attention, until now."""

    @contextlib.contextmanager
    def of(self, config: PreTrainedConfig) -> Iterator[None]:
        """Take the place of a model's attention, in passes of this thread."""
        with replaced(config, _NAME):
            token = _ENTERED.set(self)
            try:
                yield
            finally:
                _ENTERED.reset(token)

    def attend(self, module: nn.Module, *given: Any, **more: Any) -> tuple[Tensor, None]:
        """Attend to the passage and to the context one after the other."""
        self.calls += 1
        # A narrowed last layer has context tokens only, in a shape of their own.
        way = self._behind if is_narrowed() else self._attend
        return way(module, *given, **more)

    def _attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **more: Any,
    ) -> tuple[Tensor, None]:
        """(B, p + T, H, D) of queries (B, H, p + T, D), and of keys and values (B, H, K, D)."""
        if query.shape[-2] != self._tokens:
            raise ValueError(f"attention has {query.shape[-2]} queries; expected {self._tokens}")
        own, rest = slice(self._passage), slice(self._passage, None)
        among_themselves, _ = attend(
            module, query[:, :, own], key[:, :, own], value[:, :, own], None, **more
        )
        behind = query[:, :, rest]
        if attention_mask is not None:
            mask: Tensor | None = attention_mask[:, :, rest]
        else:
            mask = causal_mask(behind.shape[-2], key.shape[-2], key.device)
        everything, _ = self._behind(module, behind, key, value, mask, **more)
        return torch.cat((among_themselves, everything), 1), None

    def _behind(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        **more: Any,
    ) -> tuple[Tensor, None]:
        """Attention of context tokens, from which the sink is hidden."""
        seen = slice(self._sink, None)
        mask = None if mask is None else mask[..., seen]
        return attend(module, query, key[:, :, seen], value[:, :, seen], mask, **more)


_ENTERED: ContextVar[PassageApart | None] = ContextVar("passage apart", default=None)
"""Of this thread's pass."""


def _attention(module: nn.Module, *given: Any, **more: Any) -> tuple[Tensor, None]:
    """The function that transformers calls; passes of other threads are not changed."""
    apart = _ENTERED.get()
    way = attend if apart is None else apart.attend
    return way(module, *given, **more)


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)
