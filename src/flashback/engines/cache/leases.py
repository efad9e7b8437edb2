"""Leases of cached sequences: a completion gets an idle one, a copy of one in use, or a new one."""

import weakref
from collections.abc import Callable, Sequence
from threading import RLock

from flashback.engines.cache.budget import Budget
from flashback.engines.cache.layers import cache_bytes, cache_is_oversized
from flashback.engines.cache.sequence import CachedSequence
from flashback.patterns.prompt import Prompt
from flashback.sampling import Sampler

_WORTH_SHARING = 8
"""Tokens; less in common does not justify copying a cache."""


class Leases:
    """The cached sequences of an engine: leased by a completion, or idle."""

    def __init__(
        self,
        new_sequence: Callable[[], CachedSequence],
        lock: RLock,
        budget: Budget,
        idle_sequences: int | None,
    ) -> None:
        """Begin with none.

        Args:
            new_sequence: starts an empty one.
            lock: held while a sequence changes, so that none is copied half changed.
            budget: shared with the passages.
            idle_sequences: how many to keep when no completion has leased them, not counted in the
                budget; None: as many as the budget allows, for many texts and conversations: one
                that is not finished, or would lose more than it keeps, is copied and not cut.
        """
        self._new_sequence = new_sequence
        self._lock = lock
        self._limit = idle_sequences
        self._budget = budget
        if idle_sequences is None:
            budget.join(self)
        self.idle: list[CachedSequence] = []
        """Those used longest ago first."""
        self.taken: list[CachedSequence] = []

    @property
    def bytes(self) -> int:
        """Of running and idle sequences."""
        return sum(cache_bytes(one.cache) for one in (*self.taken, *self.idle))

    @property
    def oldest(self) -> int | None:
        """See `Evictable.oldest`."""
        return self.idle[0].used if self.idle else None

    def evict(self) -> None:
        """See `Evictable.evict`."""
        del self.idle[0]

    @property
    def held(self) -> tuple[int, int]:
        """Number of idle sequences and their bytes; does not wait for a pass."""
        idle = list(self.idle)
        return len(idle), sum(cache_bytes(one.cache) for one in idle)

    def take(self, prompt: Prompt, writer: Sampler | None) -> tuple[CachedSequence, int]:
        """Lease the sequence that shares most with a prompt, cut to what it shares.

        Args:
            writer: the text's sampler, which identifies texts that are written by turns.

        Returns:
            The sequence, laid out as the prompt, and how many tokens of it it holds.
        """
        with self._lock:
            own = [one for one in self.idle if self._is_own(one, writer)]
            sequence, shared = self._found(prompt, own) or (None, 0)
            if sequence is None:
                sequence = self._emptied(prompt, own)
            self.idle = [
                one for one in self.idle if one not in own
            ]  # the writer's text has its sequence
            sequence.writer = None if writer is None else weakref.ref(writer)
            sequence.cut(shared)
            sequence.lay_out(prompt.layout, prompt.salt)
            self.taken.append(sequence)
            if self._limit is None:
                self._budget.trim()
            return sequence, shared

    def give_back(self, sequence: CachedSequence) -> None:
        """End a lease and keep the sequence, if it was not given up."""
        with self._lock:
            if sequence not in self.taken:
                return
            self.give_up(sequence)
            sequence.used = self._budget.tick()
            self.idle.append(sequence)
            if self._limit is None:
                self._budget.trim()
            else:
                del self.idle[: max(len(self.idle) - self._limit, 0)]

    def give_up(self, sequence: CachedSequence) -> None:
        """End a lease and drop the sequence; nothing happens the second time."""
        with self._lock:
            if sequence in self.taken:
                self.taken.remove(sequence)

    def _found(
        self, prompt: Prompt, own: Sequence[CachedSequence]
    ) -> tuple[CachedSequence, int] | None:
        """The sequence that shares most with a prompt, if it is worth it; no longer idle."""
        # Below the limit, a few common tokens are not worth cutting another's cache.
        below_limit = self._limit is None or len(self.idle) < self._limit
        least = _WORTH_SHARING if below_limit else 1
        usable = [
            (shared, one in own or self._is_free(one, shared), one)
            for one in (*self.idle, *self.taken)
            if (shared := one.common_prefix(prompt)) >= (1 if one in own else least)
            and one.reaches(shared)
        ]
        if not usable:
            return None
        shared, free, sequence = max(usable, key=lambda item: item[:2])
        if not free:
            copied = self._new_sequence()
            sequence.copy_beginning(copied, shared)
            return copied, shared
        self.idle.remove(sequence)
        return sequence, shared

    def _emptied(self, prompt: Prompt, own: Sequence[CachedSequence]) -> CachedSequence:
        """One that would soon be evicted, no longer idle, for its buffers; else a new one."""
        candidates = list(own)
        if self._limit is not None and len(self.idle) >= self._limit:
            candidates += self.idle[:1]
        for one in candidates:
            oversized = cache_is_oversized(one.cache, prompt.layout.reserved + len(prompt.ids))
            if one.reaches(0) and not oversized:
                self.idle.remove(one)
                return one
        return self._new_sequence()

    def _is_own(self, sequence: CachedSequence, writer: Sampler | None) -> bool:
        """Whether the writer's own text used it last; known where texts are written by turns."""
        if self._limit is not None or writer is None or sequence.writer is None:
            return False
        return sequence.writer() is writer

    def _is_free(self, sequence: CachedSequence, shared: int) -> bool:
        """Whether a sequence may be cut to what it shares, for nobody needs the rest."""
        if sequence in self.taken:
            return False
        if self._limit is not None:
            return True
        unclaimed = sequence.writer is None or sequence.writer() is None
        return unclaimed and 2 * shared >= len(sequence.ids)
