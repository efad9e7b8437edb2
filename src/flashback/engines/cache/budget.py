"""One budget of bytes for all keys and values that an engine keeps.

Running and idle sequences and passages share it. Over the budget, what was used longest ago goes
first, whatever it is; running sequences are counted and never evicted.
"""

import itertools
import weakref
from typing import Protocol


class Evictable(Protocol):
    """A cache that shares a budget with others."""

    @property
    def bytes(self) -> int:
        """Of all that it keeps, also of what is in use."""
        ...

    @property
    def oldest(self) -> int | None:
        """The `Budget.tick` at which the first to be evicted was last used; None: there is none."""
        ...

    def evict(self) -> None:
        """Drop what was used longest ago."""
        ...


class Budget:
    """Bytes that several caches may keep together.

    Not safe to use from several threads at once: hold `Passes.running`.
    """

    def __init__(self, limit: int) -> None:
        """Begin without caches; `limit` is the most bytes that they keep."""
        self.limit = limit
        self._caches: weakref.WeakSet[Evictable] = weakref.WeakSet()  # they hold the budget
        self._ticks = itertools.count()

    def join(self, cache: Evictable) -> None:
        """Count a cache, too."""
        self._caches.add(cache)

    def tick(self) -> int:
        """The time of a use: later uses get larger numbers."""
        return next(self._ticks)

    def trim(self) -> None:
        """Evict until all that is kept is within the limit, or all that is left is in use."""
        while sum(one.bytes for one in self._caches) > self.limit:
            oldest = {age: one for one in self._caches if (age := one.oldest) is not None}
            if not oldest:
                return
            oldest[min(oldest)].evict()
