"""Keys and values in a buffer with spare capacity, which grows at its end and is cut by moving it.

Symbols: B batch, H key-value heads, D head size, p tokens of a passage.
"""

from torch import Tensor

from flashback.engines.kernels.states import States

_SPARE = 256
"""Spare positions of a new buffer, at least; it grows geometrically beyond that."""
_ALIGNED = 16
"""Buffers have a multiple of so many positions: kernels read masks of such lengths fastest."""


def capacity_for(positions: int) -> int:
    """The capacity of a buffer for so many positions, with spare ones so that it seldom grows."""
    wanted = positions + max(_SPARE, positions // 4)
    return -(-wanted // _ALIGNED) * _ALIGNED


class Buffer:
    """Keys and values (B, H, capacity, D) of the positions [first, end)."""

    def __init__(self) -> None:
        self.first = 0
        self.end = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor, droppable: int) -> None:
        """Write (B, H, new, D) at the end; in a full buffer, drop what precedes `droppable`."""
        new = keys.shape[-2]
        if self._keys is None or self.end - self.first + new > self._keys.shape[-2]:
            self._move((keys, values), new, max(self.first, droppable))
        self._write(self.end, keys, values)
        self.end += new

    def make_room(self, columns: int) -> None:
        """Hold at least so many columns before position 0."""
        if -columns >= self.first:
            return
        if self._keys is not None:
            self._move(self.held, 0, -columns)
        self.first = -columns

    def put(self, keys: Tensor, values: Tensor) -> None:
        """Write (B, H, p, D) right before position 0."""
        if self._keys is None:
            self._move((keys, values), 0, self.first)
        self._write(-keys.shape[-2], keys, values)

    @property
    def capacity(self) -> int:
        """Positions that the buffer can hold."""
        return 0 if self._keys is None else self._keys.shape[-2]

    @property
    def bytes(self) -> int:
        """Bytes of its capacity."""
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
        """Grow, if needed, for so many more positions."""
        if self.end - self.first + new > self.held[0].shape[-2]:
            self._move(self.held, new, self.first)

    def _move(self, like: States, new: int, first: int) -> None:
        held = self.end - first
        capacity = capacity_for(held + new)
        larger = [
            # Zeros: a mask hides by a weight of nothing, and nothing times not-a-number is not.
            states.new_zeros((*states.shape[:2], capacity, states.shape[3]))
            for states in like
        ]
        if self._keys is not None:
            kept = max(first, self.first)
            for buffer, states in zip(larger, self.view(kept), strict=True):
                buffer[:, :, kept - first : held] = states
        self._keys, self._values = larger
        self.first = first
