"""Keys and values, and how a pass ends as soon as a layer has computed them."""

from typing import Any

from torch import Tensor

States = tuple[Tensor, Tensor]
"""Keys and values of one layer, (B, H, positions, D) each: batch, key-value heads, head size."""


class KeysKnown(Exception):
    """A layer's keys and values are cached; nothing else of the pass is needed."""


class KeysFirst:
    """A cache, or one of its layers, that ends the pass when it has been given keys and values.

    Asked again, it returns them.
    """

    def __init__(self, cache: Any) -> None:
        """Wrap a cache or a cache layer, which keeps the keys and values."""
        self._cache = cache
        self._states: States | None = None

    @property
    def keys(self) -> Tensor:
        """All keys in the cache, (B, H, K, D)."""
        assert self._states is not None, "a layer that narrows its attention asks its cache"
        return self._states[0]

    def update(self, keys: Tensor, values: Tensor, *where: Any, **more: Any) -> States:
        """Keys and values of all positions, (B, H, K, D) each.

        Raises:
            KeysKnown: the first time.
        """
        if self._states is None:
            self._states = self._cache.update(keys, values, *where, **more)
            raise KeysKnown
        return self._states

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)
