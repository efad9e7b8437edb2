"""Keys and values of passages, kept within a budget of bytes: a cache hit costs nothing.

They depend on nothing but the reader, the passage, the sink that it sees, and its positions.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from flashback.engines.cache.budget import Budget
from flashback.engines.kernels.states import States
from flashback.patterns.prompt import PlacedPassage

Prefill = Callable[[PlacedPassage], list[States]]
"""`Passes.prefill_passage`."""

_FEW = 8
"""A tensor that is part of a larger one is copied if the rest exceeds one part in so many."""


@dataclass
class PassageCount:
    """Counts of passages looked up, prefilled and evicted."""

    hits: int = 0
    prefilled: int = 0
    evicted: int = 0


class PassageCache:
    """Keys and values of passages.

    Not safe to use from several threads at once: hold `Passes.running`.
    """

    def __init__(self, budget: Budget) -> None:
        """Start empty.

        Args:
            budget: shared with other caches; if its limit is 0, nothing is kept.
        """
        self.bytes = 0
        self.count = PassageCount()
        self._states: OrderedDict[PlacedPassage, list[States]] = OrderedDict()
        self._used: dict[PlacedPassage, int] = {}
        self._budget = budget
        budget.join(self)

    def __len__(self) -> int:
        return len(self._states)

    def get(self, passage: PlacedPassage, prefill: Prefill) -> tuple[list[States], bool]:
        """A passage's keys and values, (1, H, p, D) by layer, and whether that was a cache hit."""
        if (found := self.find(passage)) is not None:
            return found, True
        states = prefill(passage)
        self.add(passage, states)
        return states, False

    def find(self, passage: PlacedPassage) -> list[States] | None:
        """A passage's keys and values, (1, H, p, D) by layer; None: they are not cached."""
        if (states := self._states.get(passage)) is not None:
            self._states.move_to_end(passage)
            self._used[passage] = self._budget.tick()
            self.count.hits += 1
        return states

    def add(self, passage: PlacedPassage, states: list[States]) -> None:
        """Keep a prefilled passage; parts of something much larger are copied."""
        self.count.prefilled += 1
        size = size_of(states)
        if passage in self._states or size > self._budget.limit:
            return
        self._states[passage] = [
            (_without_rest(keys), _without_rest(values)) for keys, values in states
        ]
        self._used[passage] = self._budget.tick()
        self.bytes += size
        self._budget.trim()

    @property
    def oldest(self) -> int | None:
        """See `Evictable.oldest`."""
        return self._used[next(iter(self._states))] if self._states else None

    def evict(self) -> None:
        """See `Evictable.evict`."""
        passage, states = self._states.popitem(last=False)
        del self._used[passage]
        self.bytes -= size_of(states)
        self.count.evicted += 1

    def forget(self) -> None:
        """Drop everything."""
        self._states.clear()
        self._used.clear()
        self.bytes = 0


def _without_rest(part: Tensor) -> Tensor:
    """A tensor that keeps little else in memory."""
    held = part.untyped_storage().nbytes()
    return part if _FEW * (held - part.nbytes) <= part.nbytes else part.clone()


def size_of(states: list[States]) -> int:
    """Bytes of a passage's keys and values."""
    return sum(part.numel() * part.element_size() for layer in states for part in layer)
