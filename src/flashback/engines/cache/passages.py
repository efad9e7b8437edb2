"""Keys and values of passages, kept while there is room: a passage that comes back costs nothing.

What a slot holds depends on nothing but the reader, the passage and where the slot ends.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from flashback.engines.cache.layers import States
from flashback.patterns.prompt import Ids

Key = tuple[Ids, int]
"""A passage with its frame, and R."""
Encode = Callable[[Ids, int], list[States]]
Find = Callable[[Ids], list[States] | None]

_FEW = 8
"""What is kept alive of a pass may be larger than what is wanted by one part in so many."""


@dataclass
class PassageCount:
    """What became of the passages that were asked for."""

    kept: int = 0
    """They were here."""
    encoded: int = 0
    read: int = 0
    """They were on disk."""
    dropped: int = 0
    """They were here, and had to go."""


class PassageCache:
    """Least recently used passages go first when the byte budget is spent."""

    def __init__(self, budget: int, find: Find | None = None) -> None:
        """Start empty.

        Args:
            budget: bytes of keys and values to keep at most; 0: keep nothing.
            find: where else a passage may be, such as on disk.
        """
        self.budget = budget
        self._find = find
        self.bytes = 0
        self.count = PassageCount()
        self._states: OrderedDict[Key, list[States]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._states)

    def get(self, passage: Ids, room: int, encode: Encode) -> tuple[list[States], bool]:
        """A passage's keys and values, layer by layer, and whether they were there already."""
        if (found := self.find(passage, room)) is not None:
            return found, True
        states = encode(passage, room)
        self.add(passage, room, states)
        return states, False

    def find(self, passage: Ids, room: int) -> list[States] | None:
        """A passage's keys and values, layer by layer, if they are here or on disk."""
        key = (passage, room)
        with self._lock:
            if (states := self._states.get(key)) is not None:
                self._states.move_to_end(key)
                self.count.kept += 1
                return states
        found = None if self._find is None else self._find(passage)
        if found is not None:
            with self._lock:
                self.count.read += 1
                self._keep(key, found)
        return found

    def add(self, passage: Ids, room: int, states: list[States]) -> None:
        """Keep what was encoded, if there is room; parts of something much larger are copied."""
        if size_of(states) <= self.budget:
            states = [(_without_rest(keys), _without_rest(values)) for keys, values in states]
        with self._lock:
            self.count.encoded += 1
            self._keep((passage, room), states)

    def forget(self) -> None:
        """Drop everything."""
        with self._lock:
            self._states.clear()
            self.bytes = 0

    def _keep(self, key: Key, states: list[States]) -> None:
        size = size_of(states)
        if key in self._states or size > self.budget:
            return
        self._states[key] = states
        self.bytes += size
        while self.bytes > self.budget:
            _, oldest = self._states.popitem(last=False)
            self.bytes -= size_of(oldest)
            self.count.dropped += 1


def _without_rest(part: Tensor) -> Tensor:
    """A tensor that keeps little else in memory."""
    held = part.untyped_storage().nbytes()
    return part if _FEW * (held - part.nbytes) <= part.nbytes else part.clone()


def size_of(states: list[States]) -> int:
    """Bytes of a passage's keys and values."""
    return sum(part.numel() * part.element_size() for layer in states for part in layer)
