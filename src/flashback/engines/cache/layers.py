"""KV cache layers that grow in place and are cut by moving a length.

transformers' own dynamic layers concatenate at every token, which copies the whole cache every
time. These keep keys and values in a buffer with spare capacity.

Symbols: B batch, H key-value heads, D head size, n tokens of the text, W sliding window, R columns
before the text, p tokens of the passage there. Columns are not positions, which keys hold already.

    full attention     holds [-R, n): room for a passage, and behind it the text
    sliding window     holds [first, n); a token at n sees [n - (W-1), n)

**The passage.** It is written to [-p, 0), and the model is shown [-p, n): an ordinary cache of
p + n tokens, whatever p is, without holes and without a mask. Exchanging it moves nothing.

**How deep a cache can be cut.** Full attention: anywhere. Sliding windows: to L, if the W-1
positions before L are still held. After a cut to L, positions before L - (W-1) may be dropped when
the buffer is full, and only then; nothing is dropped between two cuts. `reaches` answers from what
is held.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from flashback.engines.cache.buffer import Buffer, capacity_for
from flashback.engines.kernels.states import States


class BufferedLayer(DynamicLayer):
    """Full attention, in a buffer."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._buffer = Buffer()
        self._passage = 0
        """p: tokens of the passage in view."""
        self._awaited = 0
        """Tokens of the sink and the passage that the next keys and values begin with."""
        self._sink = 0
        """Those of the sink among them."""
        self._prefilled: States | None = None
        """The passage as the last of these passes computed it."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Append (B, H, new, D) keys and values; everything that the new positions may see."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self._awaited:
            at, self._awaited = self._awaited, 0
            self.show((key_states[:, :, :at], value_states[:, :, :at]))
            passage = slice(self._sink, at)
            self._prefilled = key_states[:, :, passage], value_states[:, :, passage]
            key_states, value_states = key_states[:, :, at:], value_states[:, :, at:]
        self._buffer.append(key_states, value_states, droppable=self._buffer.first)
        return self._buffer.view(-self._passage)

    def get_seq_length(self) -> int:
        """p + n."""
        return self._passage + self._buffer.end

    def show(self, states: States | None) -> None:
        """Exchange the passage in view, (B, H, p, D) each; None: remove it."""
        self._passage = 0
        if states is not None:
            if not self.is_initialized:
                self.lazy_initialization(*states)
            self._buffer.put(*states)
            self._passage = states[0].shape[-2]

    def make_room(self, columns: int) -> None:
        """Hold at least so many columns for passages."""
        self._buffer.make_room(columns)

    def await_passage(self, tokens: int, sink: int = 0) -> None:
        """Show no passage; the next keys and values begin with one.

        Args:
            tokens: of sink and passage.
            sink: the first of them.
        """
        self.show(None)
        self._awaited, self._sink, self._prefilled = tokens, sink, None

    def hide_sink(self, tokens: int) -> None:
        """Show the passage without the sink that it was computed behind."""
        self._passage -= tokens

    def take_passage(self) -> States:
        """The passage that was awaited, (B, H, p, D) each: parts of what its pass computed."""
        assert self._prefilled is not None, "there was no pass since the passage was awaited"
        prefilled, self._prefilled = self._prefilled, None
        return prefilled

    @property
    def shown(self) -> States:
        """Keys and values of the passage in view, (B, H, p, D) each; not copied."""
        return self._buffer.view(-self._passage, 0)

    @property
    def buffers(self) -> States:
        """The buffers, (B, H, capacity, D) each: behind the room for passages, the text."""
        return self._buffer.held

    @property
    def shown_columns(self) -> tuple[int, int]:
        """The columns of the buffers that are in view, the last one not included."""
        return -self._passage - self._buffer.first, self._buffer.end - self._buffer.first

    def reserve(self, new: int) -> None:
        """Grow, if needed, for so many more positions, which may move the buffers."""
        self._buffer.reserve(new)

    def advance(self, new: int) -> None:
        """Count so many more positions, which a fixed pass has written to the buffers."""
        self._buffer.end += new

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last -`tokens_to_remove` positions (transformers' sign)."""
        self._buffer.end += tokens_to_remove

    def reaches(self, length: int) -> bool:
        """Whether the layer is exact after a cut to `length`."""
        return True

    def copy_beginning(self, empty: Any, length: int) -> None:
        """Write the first tokens of the text to an empty layer of this kind."""
        empty.update(*self._buffer.view(0, length))

    @property
    def bytes(self) -> int:
        """Bytes of the buffer, spare capacity included."""
        return self._buffer.bytes

    @property
    def capacity(self) -> int:
        """Positions that the buffer can hold."""
        return self._buffer.capacity


class BufferedSlidingLayer(DynamicSlidingWindowLayer):
    """Sliding-window attention, in a buffer."""

    def __init__(self, sliding_window: int) -> None:
        super().__init__(sliding_window)
        self._buffer = Buffer()
        self._droppable = 0
        """Positions before this one may be dropped from a full buffer."""
        self._passage: States | None = None
        """In view; a mask says how far."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Append (B, H, new, D) keys and values; the last W-1 before them, and them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        visible = max(self._buffer.end - (self.sliding_window - 1), 0)
        self._buffer.append(key_states, value_states, self._droppable)
        self.cumulative_length = self._buffer.end
        text = self._buffer.view(visible)
        if self._passage is None:
            return text
        keys, values = (torch.cat(pair, 2) for pair in zip(self._passage, text, strict=True))
        return keys, values

    def get_seq_length(self) -> int:
        """p + n."""
        passage = 0 if self._passage is None else self._passage[0].shape[-2]
        return passage + self._buffer.end

    def show(self, states: States | None) -> None:
        """Exchange the passage in view, (B, H, p, D) each; None: remove it."""
        self._passage = states

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last -`tokens_to_remove` positions, and allow to drop what precedes W."""
        assert self.reaches(self._buffer.end + tokens_to_remove)
        self._buffer.end += tokens_to_remove
        self.cumulative_length = self._buffer.end
        self._droppable = max(self._buffer.end - (self.sliding_window - 1), 0)

    def reaches(self, length: int) -> bool:
        """Whether the layer is exact after a cut to `length`."""
        return self._first_needed(length) >= self._buffer.first

    def copy_beginning(self, empty: Any, length: int) -> None:
        """Write what later tokens see of the first ones to an empty layer of this kind."""
        start = self._first_needed(length)
        empty._buffer.first = empty._buffer.end = start
        empty.update(*self._buffer.view(start, length))

    def _first_needed(self, length: int) -> int:
        """The first position that the tokens behind `length` see."""
        return max(length - (self.sliding_window - 1), 0)

    @property
    def bytes(self) -> int:
        """Bytes of the buffer, spare capacity included, and of the passage in view."""
        return self._buffer.bytes + sum(part.nbytes for part in self._passage or ())

    @property
    def capacity(self) -> int:
        """Positions that the buffer can hold."""
        return self._buffer.capacity


_BUFFERED = (BufferedLayer, BufferedSlidingLayer)


def copy_beginning(cache: DynamicCache, empty: DynamicCache, length: int) -> None:
    """Write the first `length` tokens of a text to an empty cache, whose buffers get their size.

    The cache must reach that far, see `cache_reaches`.
    """
    for layer, other in zip(cache.layers, empty.layers, strict=True):
        if length and isinstance(layer, _BUFFERED):
            layer.copy_beginning(other, length)


def new_cache(model: PreTrainedModel) -> DynamicCache:
    """An empty cache of buffered layers for a model all of whose layers are cuttable."""
    cache = DynamicCache(config=model.config)
    cache.layers = [_buffered(layer) for layer in cache.layers]
    return cache


def _buffered(layer: object) -> Any:
    if isinstance(layer, DynamicSlidingWindowLayer):
        return BufferedSlidingLayer(layer.sliding_window)
    return BufferedLayer() if isinstance(layer, DynamicLayer) else layer


def make_room(cache: DynamicCache, columns: int) -> None:
    """Hold at least so many columns for passages in layers with full attention."""
    for layer in full_layers(cache):
        layer.make_room(columns)


def cache_reaches(cache: DynamicCache, length: int) -> bool:
    """Whether the whole cache is exact after a cut to `length` tokens of the text."""
    return all(layer.reaches(length) for layer in cache.layers if isinstance(layer, _BUFFERED))


def cache_bytes(cache: DynamicCache) -> int:
    """The bytes of a cache's buffers, spare capacity and passages included."""
    return sum(layer.bytes for layer in cache.layers if isinstance(layer, _BUFFERED))


def cache_is_oversized(cache: DynamicCache, positions: int) -> bool:
    """Whether a cache's buffers are much larger than so many positions need."""
    layers = [layer for layer in cache.layers if isinstance(layer, _BUFFERED)]
    return any(layer.capacity > 2 * capacity_for(positions) for layer in layers)


def show_passage(cache: DynamicCache, states: Sequence[States] | None) -> None:
    """Exchange the passage in view of every layer, in place; None: remove it."""
    layers = [layer for layer in cache.layers if isinstance(layer, _BUFFERED)]
    for at, layer in enumerate(layers):
        layer.show(None if states is None else states[at])


def full_layers(cache: DynamicCache) -> list[BufferedLayer]:
    """The layers with full attention, in order."""
    return [layer for layer in cache.layers if isinstance(layer, BufferedLayer)]
