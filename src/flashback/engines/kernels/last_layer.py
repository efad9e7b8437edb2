"""The last layer, at the positions whose logits are needed; before them, its keys and values alone.

Nothing else of the last layer is ever read there: neither its queries and attention nor its
feed-forward network. A prompt needs one position of the pass that prefills it; in training,
branches of 16 targets behind a passage of 128 tokens need one in nine. That leaves out most of a
layer's work, forwards and backwards, and changes no result.

It takes a layer that uses what it is given position by position, but for attention; the engine's
self-check finds out. The layer runs twice: on all positions, until a cache between has got its keys
and values and ends it, and then on the needed positions, where that cache answers with the keys and
values of all. The output at the other positions is zeros.

Symbols: B batch, T tokens of a pass, n of them needed, K keys, H key-value heads, D head size.
"""

import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from transformers import Cache

from flashback.engines.kernels.attention import causal_mask
from flashback.engines.kernels.states import KeysFirst, KeysKnown

_QUERY_AXES = {
    "hidden_states": 1,  # (B, T, width)
    "attention_mask": -2,  # (B, 1, T, K)
    "position_ids": -1,  # (B, T)
    "position_embeddings": -2,  # two of (B, T, D)
}
"""Arguments of a layer that have an entry for every position, and on which axis."""
_OTHER_TENSORS = {"alibi"}
"""Arguments that have none; a layer with others is left alone."""
_MASKED = ("sdpa", "eager")
"""Kinds of attention in which a mask says what a position sees."""
_REPLACING = threading.Lock()
"""A layer's `forward` is the model's, whichever thread replaces it."""
_SECOND_RUN: ContextVar[bool] = ContextVar("second run", default=False)
"""Whether this thread's pass is in its last layer, at the needed positions."""


def is_narrowed() -> bool:
    """Whether the pass of this thread is in its last layer, at the needed positions."""
    return _SECOND_RUN.get()


class LastLayer:
    """Narrows the last layer of one model, for as long as one asks for it."""

    def __init__(self, model: nn.Module) -> None:
        """Take a causal language model of transformers.

        Args:
            model: the model itself, not an adapter around it; LoRA layers may be inside.
        """
        config: Any = model.config
        count = config.get_text_config().num_hidden_layers
        stacks = [one for one in model.modules() if isinstance(one, nn.ModuleList)]
        self._layer = next((one[-1] for one in stacks if len(one) == count), None)
        self._attention = config._attn_implementation
        if self._layer is not None:
            self._names = tuple(inspect.signature(self._layer.forward).parameters)

    @contextlib.contextmanager
    def narrowed(self, needed: int) -> Iterator[None]:
        """Let passes of this thread compute their last `needed` positions only, if they can.

        A pass must be given a cache. Other threads may run the same model, narrowed or not.
        """
        layer = self._layer
        if layer is None or self._attention not in _MASKED:
            yield
            return
        thread = threading.get_ident()
        with _REPLACING:
            forward = vars(layer).get("forward")
            if not isinstance(forward, _Forward):
                forward = layer.forward = _Forward(layer, self._names, self._attention)
            before = forward.needed.get(thread)
            forward.needed[thread] = needed
        try:
            yield
        finally:
            with _REPLACING:
                if before is not None:
                    forward.needed[thread] = before
                else:
                    del forward.needed[thread]
                if not forward.needed:
                    forward.restore()


class _Forward:
    """Replaces a layer's `forward` while some thread narrows it."""

    def __init__(self, layer: nn.Module, names: tuple[str, ...], attention: str) -> None:
        self.needed: dict[int, int] = {}
        """Positions, by thread; others get all."""
        self._layer = layer
        self._names = names
        self._attention = attention
        self._before = vars(layer).get("forward")
        """None, unless the layer's own `forward` was replaced before."""
        self._whole: Callable[..., Any] = layer.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip(self._names, args, strict=False)) | kwargs
        needed = self.needed.get(threading.get_ident())
        if needed is not None and self._can_narrow(given, needed):
            return _narrowed(self._whole, given, needed)
        return self._whole(*args, **kwargs)

    def restore(self) -> None:
        """Leave the layer as it was found."""
        if self._before is not None:
            self._layer.forward = self._before
        else:
            del self._layer.forward

    def _can_narrow(self, given: dict[str, Any], needed: int) -> bool:
        """Whether it would save anything, and everything that has a position is known."""
        known = _QUERY_AXES.keys() | _OTHER_TENSORS
        mask, hidden = given.get("attention_mask"), given.get("hidden_states")
        return (
            isinstance(hidden, Tensor)
            and hidden.shape[1] > needed
            and len(_caches(given)) == 1
            and not any(
                _holds_tensors(value) and (name not in known or isinstance(value, dict))
                for name, value in given.items()
            )
            and (self._attention == "sdpa" if mask is None else mask.ndim == 4)
        )


class WholeLastLayer(LastLayer):
    """Leaves the last layer as it is."""

    @contextlib.contextmanager
    def narrowed(self, needed: int) -> Iterator[None]:
        """Change nothing."""
        yield


def _narrowed(forward: Callable[..., Any], given: dict[str, Any], needed: int) -> Any:
    """A layer's output (B, T, width) of these arguments, zeros but for the needed positions."""
    (name,) = _caches(given)
    cache = KeysFirst(given[name])
    try:
        # A layer that has no keys and values of its own asks no cache: it is left whole.
        return forward(**given | {name: cache})
    except KeysKnown:
        pass
    narrow = given | {name: cache}
    for name, axis in _QUERY_AXES.items():
        if _holds_tensors(given.get(name)):
            narrow[name] = _last(given[name], axis, needed)
    if given.get("attention_mask") is None:  # plainly causal, which the shape does not tell now
        narrow["attention_mask"] = causal_mask(needed, cache.keys.shape[-2], cache.keys.device)
    token = _SECOND_RUN.set(True)
    try:
        output = forward(**narrow)
    finally:
        _SECOND_RUN.reset(token)
    left_out = given["hidden_states"].shape[1] - needed
    if isinstance(output, tuple):
        return (nn.functional.pad(output[0], (0, 0, left_out, 0)), *output[1:])
    return nn.functional.pad(output, (0, 0, left_out, 0))


def _caches(given: dict[str, Any]) -> list[str]:
    """The names of the arguments that are caches; families differ in them."""
    return [name for name, value in given.items() if isinstance(value, Cache)]


def _holds_tensors(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_tensors, value.values()))
    if isinstance(value, tuple | list):
        return any(map(_holds_tensors, value))
    return isinstance(value, Tensor)


def _last(value: Any, axis: int, count: int) -> Any:
    """The last entries of a tensor, or of several, on an axis."""
    if isinstance(value, tuple | list):
        return tuple(_last(part, axis, count) for part in value)
    return value.narrow(axis, value.shape[axis] - count, count)
