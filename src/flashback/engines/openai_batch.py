"""Several completions at a time: one request and one thread for each, one iterator for all."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from flashback.engines.protocol import Request

Complete = Callable[[Request], Generator[int]]
"""The tokens of a completion; close it to end the completion."""


@dataclass(frozen=True)
class _End:
    """A completion ended, by an error or without."""

    error: BaseException | None = None


class RemoteBatch:
    """A `Batch` of a server, which puts requests together itself."""

    def __init__(self, complete: Complete, rows: int) -> None:
        """At most `rows` requests at a time."""
        self._complete = complete
        self.rows = rows

    def complete(self, requests: Sequence[Request]) -> Iterator[list[tuple[int, int]]]:
        """See `Batch.complete`; tokens come one by one.

        Raises:
            EngineError: one of the requests failed; the others end.
        """
        began = time.perf_counter()
        found: queue.SimpleQueue[tuple[int, int | _End]] = queue.SimpleQueue()
        left = threading.Event()
        with ThreadPoolExecutor(self.rows, "flashback-request") as pool:
            for number, request in enumerate(requests):
                pool.submit(self._run, number, request, found, left)
            try:
                yield from _merged(requests, found)
            finally:
                left.set()
        _share(requests, time.perf_counter() - began)

    def _run(
        self,
        number: int,
        request: Request,
        found: "queue.SimpleQueue[tuple[int, int | _End]]",
        left: threading.Event,
    ) -> None:
        """On a thread: one completion, until its end or until nobody wants more of it."""
        try:
            if left.is_set():
                return
            with contextlib.closing(self._complete(request)) as tokens:
                for token in tokens:
                    found.put((number, token))
                    if request.closed or left.is_set():
                        break
            found.put((number, _End()))
        except BaseException as error:
            found.put((number, _End(error)))


def _merged(
    requests: Sequence[Request], found: "queue.SimpleQueue[tuple[int, int | _End]]"
) -> Iterator[list[tuple[int, int]]]:
    """Tokens of all requests, in the order in which they come."""
    running = len(requests)
    while running:
        number, one = found.get()
        request = requests[number]
        if isinstance(one, _End):
            running -= 1
            if one.error is not None:
                raise one.error
        elif not request.closed:
            request.sampler.accept(one)
            yield [(number, one)]


def _share(requests: Sequence[Request], seconds: float) -> None:
    """Make the times of requests that ran beside each other shares of the whole."""
    usages = [request.usage for request in requests]
    waited = sum(one.prefill_seconds + one.decode_seconds for one in usages)
    part = seconds / waited if waited else 0.0
    for one in usages:
        one.prefill_seconds *= part
        one.decode_seconds *= part
