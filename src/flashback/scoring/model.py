"""A model as scoring runs it: logits, log-probabilities of targets, caches made of given states.

Symbols: B batch, T tokens of a pass, V vocabulary, H key-value heads, D size of a head.
"""

from collections import abc
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from flashback.engines.kernels.attention import Attention
from flashback.engines.kernels.last_layer import LastLayer
from flashback.engines.kernels.states import States
from flashback.engines.kernels.window_masks import masks_by_kind
from flashback.engines.support import support_of
from flashback.patterns.prompt import Ids

Result = TypeVar("Result")
Steps = abc.Generator[None, None, Result]
"""A computation of several forward passes that pauses after each; it returns its result."""


class ScoringModel:
    """Forward passes of a causal language model of transformers, or of a PEFT model around one."""

    def __init__(self, model: nn.Module) -> None:
        """Wrap a model.

        Args:
            model: in evaluation mode, or in training.
        """
        base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
        support = support_of(base)
        self.takes_positions = support.takes_positions
        self.can_have_slot = support.reserved_positions and support.every_layer_caches
        """Whether passages can stand at reserved positions."""
        self.window = support.window
        """See `Support.window`."""
        self._takes_keep = support.takes_logits_to_keep
        self.full_attention = support.full_attention_only and support.every_layer_caches
        """Whether every layer caches and attends to every position; False for sliding windows."""
        self.skips_columns = self.full_attention and support.skips_hidden_columns
        """Whether masked columns of a cache do not count as positions."""
        parameter = next(base.parameters())
        self.device, self._dtype = parameter.device, parameter.dtype
        self._last_layer = LastLayer(base)
        self._attention = Attention(base)
        self._model = model

    def logits(self, ids: Tensor, keep: int, inputs: dict[str, Any]) -> Tensor:
        """Run one forward pass.

        Args:
            ids: (B, T).
            keep: how many of the last positions get logits.
            inputs: further arguments of the model's `forward`.

        Returns:
            (B, keep, V).
        """
        if self._takes_keep:  # the vocabulary's rows are half of a small model's work
            # As positions, not as a number: a slice would not be contiguous, and PyTorch would
            # multiply every sequence with the vocabulary's matrix on its own.
            end = ids.shape[1]
            inputs = inputs | {"logits_to_keep": torch.arange(end - keep, end, device=ids.device)}
        if "past_key_values" not in inputs:  # the last layer is narrowed by means of one
            inputs = inputs | {"past_key_values": DynamicCache(), "use_cache": True}
        with self._attention_of(ids.shape[1]), self._last_layer.narrowed(keep):
            logits: Tensor = self._model(input_ids=ids, **inputs).logits
        return logits if logits.shape[1] == keep else logits[:, -keep:]

    def _attention_of(self, tokens: int) -> AbstractContextManager[object]:
        """The engine's choice on a CPU."""
        if self.device.type != "cpu":
            return nullcontext()
        return self._attention.for_pass(tokens, fixed=False)

    def extend(
        self, cache: DynamicCache, ids: Ids, position: int, keep: int, seen: Sequence[int] = ()
    ) -> Tensor:
        """Logits (1, keep, V) of `ids`, the first at `position`; the cache grows by them.

        Args:
            seen: positions of what the cache holds, where columns do not tell them.
        """
        inputs: dict[str, Any] = {"past_key_values": cache, "use_cache": True}
        if self.window is not None and seen:
            new = torch.arange(position, position + len(ids), device=self.device)
            keys = torch.cat((torch.tensor(seen, device=self.device), new))
            inputs["attention_mask"] = masks_by_kind(new, keys, keys, self.window, self._dtype)
        if self.takes_positions:
            positions = torch.arange(position, position + len(ids), device=self.device)
            inputs["position_ids"] = positions[None]
        return self.logits(torch.tensor([ids], device=self.device), keep, inputs)

    def log_probs(self, logits: Tensor, targets: Sequence[Ids], forbidden: Ids) -> Tensor:
        """Log-probabilities (B, keep) of the targets from logits (B, keep, V)."""
        wanted = torch.tensor(targets, device=logits.device)
        # With V last, nothing is copied.
        flat = without_forbidden(logits, forbidden).flatten(0, 1), wanted.flatten()
        return -nn.functional.cross_entropy(*flat, reduction="none").view_as(wanted)


def without_forbidden(logits: Tensor, forbidden: Ids) -> Tensor:
    """Logits (..., V) in float32, those of ids that are never written at minus infinity."""
    logits = logits.float()
    if not forbidden:
        return logits
    never = torch.tensor(forbidden, device=logits.device)
    return logits.index_fill(-1, never, float("-inf"))


class _GivenLayer(DynamicLayer):
    """A layer that begins with keys and values computed before."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values


def cache_of(layers: Sequence[States]) -> DynamicCache:
    """A cache that begins with given keys and values, layer by layer; nothing is copied."""
    cache = DynamicCache()
    cache.layers.extend(_GivenLayer(*states) for states in layers)
    return cache


def states_of(cache: DynamicCache) -> list[States]:
    """The keys and values of a cache, (B, H, positions, D) each, layer by layer."""
    found = []
    for layer in cache.layers:
        assert isinstance(layer, DynamicLayer)
        assert layer.keys is not None
        assert layer.values is not None
        found.append((layer.keys, layer.values))
    return found


def part(states: Sequence[States], positions: slice, row: int = 0) -> list[States]:
    """Some positions of one row, layer by layer; (1, H, positions, D) each."""
    rows = slice(row, row + 1)
    return [(keys[rows, :, positions], values[rows, :, positions]) for keys, values in states]


def joined(*parts: Sequence[States]) -> list[States]:
    """Keys and values behind one another, layer by layer; any of the parts may be empty."""
    given = [one for one in parts if one]
    if len(given) < 2:
        return list(given[0]) if given else []
    return [
        (torch.cat([keys for keys, _ in layers], 2), torch.cat([values for _, values in layers], 2))
        for layers in zip(*given, strict=True)
    ]
