"""Keys and values of several sequences in one buffer, a row for each.

Symbols: B rows, A rows of a pass, H key-value heads, D head size, T new tokens of the longest row
of a pass.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from flashback.engines.cache.buffer import capacity_for
from flashback.engines.kernels.states import States


@dataclass(frozen=True)
class RowsPass:
    """Where the new tokens of A rows go, and which columns they look at."""

    rows: slice | Tensor
    """The places of the rows: a slice where they are neighbours, since that needs no copy."""
    columns: Tensor
    """(A, T): where each new token is written."""
    end: int
    """Columns from here on are seen by no row."""

    def write(self, buffer: Tensor, states: Tensor) -> None:
        """Put (A, H, T, D) into the buffer (B, H, capacity, D)."""
        places = torch.arange(len(buffer), device=buffer.device)[self.rows]
        buffer[places[:, None], :, self.columns] = states.transpose(1, 2)

    def view(self, buffer: Tensor) -> Tensor:
        """The columns of a buffer that the rows may see, (A, H, end, D)."""
        seen = buffer[:, :, : self.end]
        return seen[self.rows] if isinstance(self.rows, slice) else seen.index_select(0, self.rows)


class RowsLayer(DynamicLayer):
    """Keys and values of all rows, written where the pass that is running says."""

    def __init__(self, rows: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.running: RowsPass | None = None
        self._rows = rows
        self._buffers: States | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write (A, H, T, D) keys and values; everything that the rows of the pass may see."""
        assert self.running is not None
        held = self._enlarged((key_states, value_states), int(self.running.columns.max()) + 1)
        for buffer, states in zip(held, (key_states, value_states), strict=True):
            self.running.write(buffer, states)
        return self.running.view(held[0]), self.running.view(held[1])

    def put(self, place: int, end: int, states: States) -> None:
        """Write a passage (1, H, p, D) to the columns [end - p, end) of a row."""
        start = end - states[0].shape[-2]
        for buffer, part in zip(self._enlarged(states, end), states, strict=True):
            buffer[place, :, start:end] = part[0]

    def swap(self, one: int, other: int, end: int) -> None:
        """Exchange the columns [0, end) of two rows."""
        for buffer in self._buffers or ():
            kept = buffer[one, :, :end].clone()
            buffer[one, :, :end] = buffer[other, :, :end]
            buffer[other, :, :end] = kept

    def shift(self, place: int, start: int, end: int, by: int) -> None:
        """Move the columns [start, end) of a row to the right."""
        for buffer in self.reserve(end + by):
            buffer[place, :, start + by : end + by] = buffer[place, :, start:end].clone()

    def get_seq_length(self) -> int:
        """The longest row of the pass."""
        return 0 if self.running is None else self.running.end - self.running.columns.shape[1]

    @property
    def is_held(self) -> bool:
        """Whether there are buffers yet."""
        return self._buffers is not None

    def reserve(self, capacity: int) -> States:
        """The buffers, (B, H, capacity or more, D) each."""
        assert self._buffers is not None
        return self._enlarged(self._buffers, capacity)

    def _enlarged(self, states: States, capacity: int) -> States:
        """The buffers, larger if they have fewer columns than `capacity`."""
        held = self._buffers
        if held is None or held[0].shape[-2] < capacity:
            keys, values = (self._larger(at, part, capacity) for at, part in enumerate(states))
            self._buffers = held = keys, values
        return held

    def _larger(self, at: int, states: Tensor, capacity: int) -> Tensor:
        # Zeros: hidden columns weigh nothing, but nothing times not-a-number is not nothing.
        heads, size = states.shape[1], states.shape[3]
        larger = states.new_zeros((self._rows, heads, capacity_for(capacity), size))
        if self._buffers is not None:
            old = self._buffers[at]
            larger[:, :, : old.shape[-2]] = old
        return larger
