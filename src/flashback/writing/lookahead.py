"""The search for the next passage, started before the boundary at which it is needed.

What is written does not depend on it: which query a stride has is decided in `text.py`. Here it is
decided only when the search runs.
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
    """A search in a thread."""

    query: str
    found: "Future[tuple[Hits, float]]"
    """What was found, and when (`time.perf_counter`)."""
    awaited: float
    """Since when its result is waited for; infinity: not yet."""


class Lookahead:
    """Runs one search at a time, in a thread of its own if it is started early.

    Close it, or leave its `with` block, to end the thread; a running search is waited for.
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
        """Start the search for a query that will be needed soon."""
        self._pending = self._submit(query)

    def search(self, query: str) -> "Future[tuple[Hits, float]]":
        """Start the search for the query that is needed next, for a caller that can do other work.

        Returns:
            What `hits` waits for.
        """
        pending = self._pending
        if pending is None or pending.query != query:
            pending = self._submit(query)
        now = time.perf_counter()
        self._pending = replace(pending, awaited=min(pending.awaited, now))
        return pending.found

    @property
    def begun(self) -> bool:
        """Whether a search was started whose result was not taken yet."""
        return self._pending is not None

    def hits(self, query: str) -> tuple[Hits, float]:
        """The hits of a query, and the seconds that were spent waiting for them."""
        began = time.perf_counter()
        pending, self._pending = self._pending, None
        if pending is None or pending.query != query:
            return self._find(query), time.perf_counter() - began
        hits, ended = pending.found.result()
        return hits, max(ended - min(began, pending.awaited), 0.0)

    def close(self) -> None:
        """Start no more searches."""
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

    def _submit(self, query: str) -> _Search:
        return _Search(query, self._threads.submit(self._timed, query), float("inf"))

    def _timed(self, query: str) -> tuple[Hits, float]:
        return self._find(query), time.perf_counter()
