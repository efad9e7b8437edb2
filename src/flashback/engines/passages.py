"""Keys and values of passages, kept while there is room: a passage that comes back costs nothing.

What a slot holds depends on nothing but the reader, the passage and where the slot ends.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from flashback.arrangement import Ids
from flashback.engines.cache import States

Key = tuple[Ids, int]
"""A passage with its frame, and R."""
Encode = Callable[[Ids, int], list[States]]
Find = Callable[[Ids], list[States] | None]


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
        key = (passage, room)
        with self._lock:
            if (found := self._states.get(key)) is not None:
                self._states.move_to_end(key)
                self.count.kept += 1
                return found, True
        found = None if self._find is None else self._find(passage)
        states = encode(passage, room) if found is None else found
        with self._lock:
            if found is None:
                self.count.encoded += 1
            else:
                self.count.read += 1
            self._keep(key, states)
        return states, found is not None

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


def size_of(states: list[States]) -> int:
    """Bytes of a passage's keys and values."""
    return sum(part.numel() * part.element_size() for layer in states for part in layer)
