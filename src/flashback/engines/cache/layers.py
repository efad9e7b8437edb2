"""KV cache layers that grow in place and are cut by moving a length.

transformers' own dynamic layers concatenate at every token, which copies the whole cache every
time. These keep keys and values in a buffer with room to spare.

Symbols: B batch, H key-value heads, D head size, n context tokens seen, W sliding window, R room
of the slot, p tokens of the passage in it.

    full attention     holds [-R, n): the slot, and behind it the context
    sliding window     holds [first, n); going on from n needs [n - (W-1), n)

**The slot.** A passage is written to [-p, 0), and the model is shown [-p, n): an ordinary cache of
p + n tokens, whatever p is, without holes and without a mask. Exchanging it moves nothing.

**How deep a cache can be cut.** Full attention: anywhere. Sliding windows: to L, if the W-1
positions before L are still held. A cut to L says that nothing below will be asked for soon, so
positions before L - (W-1) may be dropped when the buffer is full, and only then; nothing is ever
dropped between two cuts. `reaches` answers from what is held.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

_ROOM = 256
"""Spare positions of a new buffer, at least; it grows geometrically beyond that."""
_ALIGNED = 16
"""Buffers have a multiple of so many positions: kernels read masks of such lengths fastest."""


States = tuple[Tensor, Tensor]
"""Keys and values, (B, H, positions, D) each."""


def room_for(positions: int) -> int:
    """How large to make a buffer that must hold so many, so that it seldom grows."""
    wanted = positions + max(_ROOM, positions // 4)
    return -(-wanted // _ALIGNED) * _ALIGNED


class _Buffer:
    """Keys and values (B, H, capacity, D) of the positions [first, end)."""

    def __init__(self, room: int = 0) -> None:
        self.first = -room
        self.end = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor, droppable: int) -> None:
        """Write (B, H, new, D) at the end; if room is short, drop what precedes `droppable`."""
        new = keys.shape[-2]
        if self._keys is None or self.end - self.first + new > self._keys.shape[-2]:
            self._move((keys, values), new, max(self.first, droppable))
        self._write(self.end, keys, values)
        self.end += new

    def put(self, keys: Tensor, values: Tensor) -> None:
        """Write (B, H, p, D) right before position 0."""
        if self._keys is None:
            self._move((keys, values), 0, self.first)
        self._write(-keys.shape[-2], keys, values)

    @property
    def capacity(self) -> int:
        """Positions there is room for."""
        return 0 if self._keys is None else self._keys.shape[-2]

    @property
    def bytes(self) -> int:
        """With the room to spare."""
        held = (self._keys, self._values)
        return sum(part.numel() * part.element_size() for part in held if part is not None)

    def _write(self, start: int, keys: Tensor, values: Tensor) -> None:
        assert self._keys is not None
        assert self._values is not None
        at = slice(start - self.first, start - self.first + keys.shape[-2])
        self._keys[:, :, at] = keys
        self._values[:, :, at] = values

    def view(self, start: int, end: int | None = None) -> States:
        """Keys and values of the positions [start, end), to the last by default; not copied."""
        assert self._keys is not None
        assert self._values is not None
        held = slice(start - self.first, (self.end if end is None else end) - self.first)
        return self._keys[:, :, held], self._values[:, :, held]

    @property
    def held(self) -> States:
        """The buffers themselves, (B, H, capacity, D) each."""
        assert self._keys is not None
        assert self._values is not None
        return self._keys, self._values

    def reserve(self, new: int) -> None:
        """Make room for so many more positions."""
        if self.end - self.first + new > self.held[0].shape[-2]:
            self._move(self.held, new, self.first)

    def _move(self, like: States, new: int, first: int) -> None:
        held = self.end - first
        capacity = room_for(held + new)
        larger = [
            # Zeros: a mask hides by a weight of nothing, and nothing times not-a-number is not.
            states.new_zeros((*states.shape[:2], capacity, states.shape[3]))
            for states in like
        ]
        if self._keys is not None:
            for buffer, states in zip(larger, self.view(first), strict=True):
                buffer[:, :, :held] = states
        self._keys, self._values = larger
        self.first = first


class BufferedLayer(DynamicLayer):
    """Full attention, in a buffer."""

    def __init__(self, room: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._buffer = _Buffer(room)
        self._passage = 0
        """p: tokens of the passage in the slot."""
        self._awaited = 0
        """Tokens of the passage that the next keys and values begin with."""
        self._came: States | None = None
        """The passage as the last of these passes computed it."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Append (B, H, new, D) keys and values; everything that the new positions may see."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self._awaited:
            at, self._awaited = self._awaited, 0
            self._came = key_states[:, :, :at], value_states[:, :, :at]
            self.show(self._came)
            key_states, value_states = key_states[:, :, at:], value_states[:, :, at:]
        self._buffer.append(key_states, value_states, droppable=self._buffer.first)
        return self._buffer.view(-self._passage)

    def get_seq_length(self) -> int:
        """p + n."""
        return self._passage + self._buffer.end

    def show(self, states: States | None) -> None:
        """Exchange the passage in the slot; None: for nothing."""
        self._passage = 0
        if states is not None:
            if not self.is_initialized:
                self.lazy_initialization(*states)
            self._buffer.put(*states)
            self._passage = states[0].shape[-2]

    def await_passage(self, tokens: int) -> None:
        """Empty the slot; the first `tokens` of the next keys and values go there."""
        self.show(None)
        self._awaited, self._came = tokens, None

    def take_passage(self) -> States:
        """The passage that was awaited, (B, H, p, D) each: parts of what its pass computed."""
        assert self._came is not None, "there was no pass since the passage was awaited"
        came, self._came = self._came, None
        return came

    @property
    def shown(self) -> States:
        """Keys and values in the slot, (B, H, p, D) each; not copied."""
        return self._buffer.view(-self._passage, 0)

    @property
    def buffers(self) -> States:
        """Where keys and values are: column R + i holds the context's token i."""
        return self._buffer.held

    def reserve(self, new: int) -> None:
        """Make room for so many more positions, which may move the buffers."""
        self._buffer.reserve(new)

    def advance(self, new: int) -> None:
        """So many more positions were written to the buffers by someone else."""
        self._buffer.end += new

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last -`tokens_to_remove` positions (transformers' sign)."""
        self._buffer.end += tokens_to_remove

    def reaches(self, length: int) -> bool:
        """Whether the layer is exact after a cut to `length`."""
        return True

    @property
    def bytes(self) -> int:
        return self._buffer.bytes

    @property
    def capacity(self) -> int:
        return self._buffer.capacity


class _Enough(Exception):
    """The last layer's keys and values are there: nothing of the pass is needed any more."""


class _LastLayer(DynamicLayer):
    """Ends the pass once it has its keys and values."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep (B, H, new, D) keys and values.

        Raises:
            _Enough: always.
        """
        super().update(key_states, value_states)
        raise _Enough


class BufferedSlidingLayer(DynamicSlidingWindowLayer):
    """Sliding-window attention, in a buffer."""

    def __init__(self, sliding_window: int) -> None:
        super().__init__(sliding_window)
        self._buffer = _Buffer()
        self._droppable = 0
        """Positions before this one may go when room is short."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Append (B, H, new, D) keys and values; the last W-1 before them, and them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        visible = max(self._buffer.end - (self.sliding_window - 1), 0)
        self._buffer.append(key_states, value_states, self._droppable)
        self.cumulative_length = self._buffer.end
        return self._buffer.view(visible)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last -`tokens_to_remove` positions, and allow to drop what precedes W."""
        assert self.reaches(self._buffer.end + tokens_to_remove)
        self._buffer.end += tokens_to_remove
        self.cumulative_length = self._buffer.end
        self._droppable = max(self._buffer.end - (self.sliding_window - 1), 0)

    def reaches(self, length: int) -> bool:
        """Whether the layer is exact after a cut to `length`."""
        needed = max(length - (self.sliding_window - 1), 0)
        return needed >= self._buffer.first

    @property
    def bytes(self) -> int:
        return self._buffer.bytes

    @property
    def capacity(self) -> int:
        return self._buffer.capacity


_BUFFERED = (BufferedLayer, BufferedSlidingLayer)

CUTTABLE = (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer)
"""The types of layers that can be cut back; of others the model is refused."""


def new_cache(model: PreTrainedModel, room: int = 0) -> DynamicCache:
    """An empty cache of buffered layers for a model all of whose layers are cuttable.

    Args:
        room: R, positions of the slot; above 0 for full attention only.
    """
    cache = DynamicCache(config=model.config)
    cache.layers = [_buffered(layer, room) for layer in cache.layers]
    return cache


def states_alone(model: PreTrainedModel, forward: Callable[[DynamicCache], object]) -> list[States]:
    """Keys and values of a sequence that nothing is predicted from, (B, H, p, D) of each layer.

    The pass ends in the last layer, before its attention: without its matrices and the head's.

    Args:
        model: all of its layers have full attention.
        forward: runs the model on the sequence with this cache.
    """
    cache = DynamicCache(config=model.config)  # without buffers: it takes what it holds
    *_, last = (at for at, layer in enumerate(cache.layers) if isinstance(layer, DynamicLayer))
    cache.layers[last] = _LastLayer()  # type: ignore[no-untyped-call]
    with contextlib.suppress(_Enough):
        forward(cache)
    states = []
    for layer in cache.layers:
        if isinstance(layer, DynamicLayer):
            assert layer.keys is not None
            assert layer.values is not None
            states.append((layer.keys, layer.values))
    return states


def _buffered(layer: object, room: int) -> Any:
    if isinstance(layer, DynamicSlidingWindowLayer):
        assert room == 0
        return BufferedSlidingLayer(layer.sliding_window)
    return BufferedLayer(room) if isinstance(layer, DynamicLayer) else layer


def has_full_attention_only(model: PreTrainedModel) -> bool:
    """Whether every layer sees all positions, those of a slot included."""
    layers = DynamicCache(config=model.config).layers
    full = all(type(layer) in (DynamicLayer, DummyLayer) for layer in layers)
    return full and not has_hidden_windows(model)


def has_hidden_windows(model: PreTrainedModel) -> bool:
    """Whether layers look at a window of columns of a cache that holds everything (GPT-Neo)."""
    return "local" in getattr(model.config, "attention_layers", ())


def cache_reaches(cache: DynamicCache, length: int) -> bool:
    """Whether the whole cache is exact after a cut to `length` context tokens."""
    return all(layer.reaches(length) for layer in cache.layers if isinstance(layer, _BUFFERED))


def cache_bytes(cache: DynamicCache) -> int:
    """What a cache takes, the room to spare included."""
    return sum(layer.bytes for layer in cache.layers if isinstance(layer, _BUFFERED))


def cache_is_roomy(cache: DynamicCache, positions: int) -> bool:
    """Whether a cache takes much more than so many positions need."""
    layers = [layer for layer in cache.layers if isinstance(layer, _BUFFERED)]
    return any(layer.capacity > 2 * room_for(positions) for layer in layers)


def show_passage(cache: DynamicCache, states: Sequence[States] | None) -> None:
    """Exchange the passage in the slot of every layer, in place; None: for nothing."""
    layers = full_layers(cache)
    for at, layer in enumerate(layers):
        layer.show(None if states is None else states[at])


def full_layers(cache: DynamicCache) -> list[BufferedLayer]:
    """The layers with full attention, in order."""
    return [layer for layer in cache.layers if isinstance(layer, BufferedLayer)]
