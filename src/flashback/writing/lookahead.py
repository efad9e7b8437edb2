"""The next passage is searched for before the boundary at which it is needed.

What is written does not depend on it: `text.py` decides which query a stride has. Here is only when
its answer is worked out.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from flashback.retrieval.protocol import Hit

Hits = tuple[Hit, ...]


@dataclass(frozen=True)
class _Search:
    """A search in a thread of its own."""

    query: str
    found: "Future[tuple[Hits, float]]"
    """What was found, and when (`time.perf_counter`)."""
    awaited: float
    """Since when its answer is wanted; infinity: not yet."""


class Lookahead:
    """Answers one query at a time, in a thread of its own if asked in time.

    Close it, or leave its `with` block, to end the thread; a search under way is waited for.
    """

    def __init__(self, find: Callable[[str], Hits]) -> None:
        """Start nothing yet.

        Args:
            find: searches; raises what the retriever raises.
        """
        self._find = find
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="flashback-lookahead")
        self._pending: _Search | None = None

    def begin(self, query: str) -> None:
        """Search for a query that will be asked soon."""
        self._pending = _Search(query, self._threads.submit(self._timed, query), float("inf"))

    def search(self, query: str) -> "Future[tuple[Hits, float]]":
        """Search for the query that is asked next, for who can do other things meanwhile.

        Returns:
            What `hits` waits for.
        """
        pending = self._pending
        if pending is None or pending.query != query:
            pending = _Search(query, self._threads.submit(self._timed, query), float("inf"))
        now = time.perf_counter()
        self._pending = replace(pending, awaited=min(pending.awaited, now))
        return pending.found

    @property
    def begun(self) -> bool:
        """Whether there is an answer that was not asked for yet."""
        return self._pending is not None

    def hits(self, query: str) -> tuple[Hits, float]:
        """What is found for a query, and the seconds for which there was nothing else to do."""
        began = time.perf_counter()
        pending, self._pending = self._pending, None
        if pending is None or pending.query != query:
            return self._find(query), time.perf_counter() - began
        hits, ended = pending.found.result()
        return hits, max(ended - min(began, pending.awaited), 0.0)

    def close(self) -> None:
        """Search no more."""
        self._threads.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _timed(self, query: str) -> tuple[Hits, float]:
        return self._find(query), time.perf_counter()
