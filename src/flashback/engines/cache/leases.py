"""Which cached sequence a completion goes on from: an idle one, a copy, or a new one."""

import copy
import weakref
from collections.abc import Callable, Sequence
from threading import RLock

from flashback.engines.cache.layers import cache_bytes, cache_is_roomy
from flashback.engines.cache.sequence import CachedSequence
from flashback.patterns.prompt import Prompt
from flashback.sampling import Sampler

_WORTH_SHARING = 8
"""Tokens; less in common does not justify copying a cache."""


class Leases:
    """The cached sequences of an engine: taken by a completion, or idle."""

    def __init__(self, lock: RLock, *, idle_sequences: int, idle_bytes: int | None) -> None:
        """Begin with none.

        Args:
            lock: held by whoever changes a sequence, so that none is copied half changed.
            idle_sequences: how many to keep when no completion is using them.
            idle_bytes: keep as many bytes of them instead, for texts that are written by turns:
                the cache of one that is not finished is copied for others, never cut.
        """
        self._lock = lock
        self._limit = idle_sequences
        self._bytes = idle_bytes
        self.idle: list[CachedSequence] = []
        """Those used longest ago first."""
        self.taken: list[CachedSequence] = []

    @property
    def held(self) -> tuple[int, int]:
        """How many are idle, and their bytes; a pass is not waited for."""
        idle = list(self.idle)
        return len(idle), sum(cache_bytes(one.cache) for one in idle)

    def take(
        self,
        prompt: Prompt,
        writer: Sampler | None,
        new_sequence: Callable[[int], CachedSequence],
    ) -> tuple[CachedSequence, int]:
        """Take, copy or start the sequence that saves most, cut to what it shares.

        Args:
            writer: whose text it is; it tells texts apart that are written by turns.
            new_sequence: starts one behind a slot of so many positions.

        Returns:
            The sequence, and how many tokens of the prompt's context it holds.
        """
        with self._lock:
            own = [one for one in self.idle if self._is_own(one, writer)]
            sequence, shared = self._found(prompt, own) or (None, 0)
            if sequence is None:
                sequence = self._emptied(prompt, own) or new_sequence(prompt.reserved)
            self.idle = [one for one in self.idle if one not in own]  # of no use any more
            sequence.writer = None if writer is None else weakref.ref(writer)
            sequence.cut(shared)
            self.taken.append(sequence)
            return sequence, shared

    def give_back(self, sequence: CachedSequence) -> None:
        """Keep it for later; those that were used longest ago go if there is no room."""
        with self._lock:
            self.give_up(sequence)
            self.idle.append(sequence)
            if self._bytes is None:
                del self.idle[: max(len(self.idle) - self._limit, 0)]
                return
            while self.idle and self.held[1] > self._bytes:
                del self.idle[0]

    def give_up(self, sequence: CachedSequence) -> None:
        """Keep it no longer; nothing happens if that was said before."""
        with self._lock:
            if sequence in self.taken:
                self.taken.remove(sequence)

    def _found(
        self, prompt: Prompt, own: Sequence[CachedSequence]
    ) -> tuple[CachedSequence, int] | None:
        """The sequence that shares most with a prompt, if it is worth it; no longer idle."""
        free = [one for one in self.idle if one not in own and self._is_free(one)]
        busy = [*self.taken, *(one for one in self.idle if one not in own and one not in free)]
        # With room for one more, a few common tokens are not worth cutting another's cache.
        room_left = self._bytes is not None or len(self.idle) < self._limit
        least = _WORTH_SHARING if room_left else 1
        candidates = [
            (one.common_prefix(prompt), least, take, one)
            for ones, least, take in (
                (own, 1, True),
                (free, least, True),
                (busy, _WORTH_SHARING, False),
            )
            for one in ones
        ]
        usable = [
            (shared, take, one)
            for shared, least, take, one in candidates
            if shared >= least and one.reaches(shared)
        ]
        if not usable:
            return None
        shared, take, sequence = max(usable, key=lambda item: item[:2])
        if not take:  # in use by another completion, which still needs all of it
            return copy.deepcopy(sequence), shared
        self.idle.remove(sequence)
        return sequence, shared

    def _emptied(self, prompt: Prompt, own: Sequence[CachedSequence]) -> CachedSequence | None:
        """One that would soon be dropped, for its buffers; no longer idle."""
        room, candidates = prompt.reserved, list(own)
        if self._bytes is None and len(self.idle) >= self._limit:
            candidates += self.idle[:1]
        for one in candidates:
            roomy = cache_is_roomy(one.cache, room + len(prompt.ids))
            if one.room == room and one.reaches(0) and not roomy:
                self.idle.remove(one)
                return one
        return None

    def _is_own(self, sequence: CachedSequence, writer: Sampler | None) -> bool:
        """Whether it was left behind by the text that goes on; told apart by byte budgets only."""
        if self._bytes is None or writer is None or sequence.writer is None:
            return False
        return sequence.writer() is writer

    def _is_free(self, sequence: CachedSequence) -> bool:
        """Whether no text that is being written will come back for it."""
        unclaimed = sequence.writer is None or sequence.writer() is None
        return self._bytes is None or unclaimed
