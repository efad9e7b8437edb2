"""The next passage is searched for, and encoded, while the stride before is still being written.

What is written does not depend on it: which query a stride has is `text.py`'s business. Here is
only when its answer is worked out.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from flashback.retrieval.protocol import Hit

Hits = tuple[Hit, ...]


class Lookahead:
    """Answers one query at a time, in a thread of its own if asked in time.

    Leave its `with` block to end the thread; a search that is under way is waited for.
    """

    def __init__(self, find: Callable[[str], Hits], prepare: Callable[[Hits], None]) -> None:
        """Start nothing yet.

        Args:
            find: searches; raises what the retriever raises.
            prepare: works ahead with what was found, such as encoding it.
        """
        self._find = find
        self._prepare = prepare
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="flashback-lookahead")
        self._pending: tuple[str, Future[Hits]] | None = None

    def begin(self, query: str) -> None:
        """Search for a query that will be asked soon."""
        self._pending = query, self._threads.submit(self._work, query)

    @property
    def begun(self) -> bool:
        """Whether there is an answer that was not asked for yet."""
        return self._pending is not None

    def hits(self, query: str) -> tuple[Hits, float]:
        """What is found for a query, and the seconds that had to be waited for it."""
        began = time.perf_counter()
        pending, self._pending = self._pending, None
        if pending is None or pending[0] != query:
            return self._find(query), time.perf_counter() - began
        return pending[1].result(), time.perf_counter() - began

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._threads.shutdown(cancel_futures=True)

    def _work(self, query: str) -> Hits:
        found = self._find(query)
        self._prepare(found)
        return found
