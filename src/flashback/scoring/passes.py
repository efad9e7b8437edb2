"""Passes of one model: logits, log-probabilities of targets, caches to go on from.

Symbols: B batch, T tokens of a pass, V vocabulary, H key-value heads.
"""

import inspect
from collections.abc import Generator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from flashback.engines.cache.layers import States, has_hidden_windows
from flashback.engines.kernels.last_layer import LastLayer
from flashback.patterns.prompt import Ids

Result = TypeVar("Result")
Steps = Generator[None, None, Result]
"""A computation of several passes that stops after each of them; it returns its result."""

_BY_COLUMN = ("mpt",)
"""Models that measure distances in columns of the cache, hidden ones among them."""


class Passes:
    """Runs a causal language model of transformers, or an adapter around one."""

    def __init__(self, model: nn.Module) -> None:
        """Take a model: in evaluation mode, or in training."""
        base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
        self.takes_positions = takes_positions(base)
        self._takes_keep = "logits_to_keep" in inspect.signature(base.forward).parameters
        full = all(type(one) is DynamicLayer for one in DynamicCache(config=base.config).layers)
        self.full_attention = full and not has_hidden_windows(base)
        """Whether every layer sees every position; False for sliding windows."""
        self.skips_columns = self.full_attention and base.config.model_type not in _BY_COLUMN
        """Whether columns of a cache that a mask hides are as if they were not there."""
        self.device = next(base.parameters()).device
        self._last_layer = LastLayer(base)
        self._model = model

    def logits(self, ids: Tensor, keep: int, inputs: dict[str, Any]) -> Tensor:
        """Logits (B, keep, V) of the last `keep` positions of `ids`, (B, T)."""
        if self._takes_keep:  # the vocabulary's rows are half of a small model's work
            # As positions, not as a number: a slice would not be contiguous, and PyTorch would
            # multiply every sequence with the vocabulary's matrix on its own.
            end = ids.shape[1]
            inputs = inputs | {"logits_to_keep": torch.arange(end - keep, end, device=ids.device)}
        if "past_key_values" not in inputs:  # the last layer is narrowed by means of one
            inputs = inputs | {"past_key_values": DynamicCache(), "use_cache": True}
        with self._last_layer.narrowed(keep):
            logits: Tensor = self._model(input_ids=ids, **inputs).logits
        return logits if logits.shape[1] == keep else logits[:, -keep:]

    def behind(self, cache: DynamicCache, ids: Ids, position: int, keep: int) -> Tensor:
        """Logits (1, keep, V) of `ids`, from `position` on; the cache grows by them."""
        inputs: dict[str, Any] = {"past_key_values": cache, "use_cache": True}
        if self.takes_positions:
            positions = torch.arange(position, position + len(ids), device=self.device)
            inputs["position_ids"] = positions[None]
        return self.logits(torch.tensor([ids], device=self.device), keep, inputs)

    def log_probs(self, logits: Tensor, targets: Sequence[Ids], forbidden: Ids) -> Tensor:
        """Log-probabilities (B, keep) of the targets from logits (B, keep, V)."""
        logits = logits.float()
        if forbidden:
            never = torch.tensor(forbidden, device=logits.device)
            logits = logits.index_fill(-1, never, float("-inf"))
        wanted = torch.tensor(targets, device=logits.device)
        flat = logits.flatten(0, 1), wanted.flatten()  # with V last, nothing is copied
        return -nn.functional.cross_entropy(*flat, reduction="none").view_as(wanted)


def takes_positions(model: nn.Module) -> bool:
    """Whether a model is told where its tokens stand."""
    return "position_ids" in inspect.signature(model.forward).parameters


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
