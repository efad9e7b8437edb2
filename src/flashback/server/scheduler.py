"""Schedules requests: they take turns, stride by stride, on the threads that run the engine.

Knows jobs, turns and queues. Knows nothing of HTTP or of what a job computes. An engine in this
process has one thread; one elsewhere, which computes several completions at a time, has several.

A job is waiting, active or finished. Active jobs are scheduled round robin: each runs for one turn
(a stride, or a part of a long one), then the next one does. So a job has its first stride after one
round at most, however long the others' texts are. A job whose search is running is skipped until
the search is done. A cancelled job ends at its next token.
"""

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from flashback.server.errors import ApiError, internal, stopping
from flashback.server.events import Done, Event, Failed, Turn

_LOG = logging.getLogger(__name__)
_SMOOTH = 0.2
"""The weight of the newest request in the average duration."""
_LONGEST_WAIT = 60
"""Seconds, of a Retry-After."""


class Cancelled(BaseException):
    """Raised at a token of a job that was cancelled, to end its completion."""


Events = Generator[Event, None, None]
Work = Callable[["Job"], Events]
"""Starts a job's events; at every `Turn` among them, other jobs are run."""


class Job:
    """One scheduled request; its events come from the engine's thread and are read in the loop."""

    def __init__(
        self,
        work: Work,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start at the clock's time, in seconds."""
        self._clock = clock
        self._arrived = clock()
        self.cancelled = False
        """Read at every token."""
        self._loop = loop
        self._outbox: asyncio.Queue[Event] = asyncio.Queue()
        self._events = work(self)
        self._reason: ApiError | None = None
        self._last_turn = Turn()

    @property
    def age(self) -> float:
        """Seconds since it arrived."""
        return self._clock() - self._arrived

    @property
    def waits_for(self) -> "Future[Any] | None":
        """The search that it needs before its next turn; None: it can run."""
        search = self._last_turn.until
        return None if search is None or search.done() or self.cancelled else search

    @property
    def goes_first(self) -> bool:
        """Whether it runs before others as soon as it can."""
        return self._last_turn.again

    def check(self) -> None:
        """Called at every token.

        Raises:
            Cancelled: the job was cancelled.
        """
        if self.cancelled:
            raise Cancelled

    def cancel(self, reason: ApiError | None = None) -> None:
        """End at the next token; the reason is the job's last event."""
        self._reason = self._reason or reason
        self.cancelled = True

    async def read(self) -> AsyncIterator[Event]:
        """All events, ending with `Done` or `Failed`."""
        while True:
            event = await self._outbox.get()
            yield event
            if isinstance(event, Done | Failed):
                return

    def turn(self) -> bool:
        """Run until the next `Turn`; return whether the job is finished."""
        try:
            for event in self._events:
                if isinstance(event, Turn):
                    self._last_turn = event
                    return False
                self._send(event)
                self.check()
            self._send(Done())
        except ApiError as error:
            self._send(Failed(error))
        except Cancelled:
            self.give_up()
        except BaseException:  # the thread runs other requests, too
            _LOG.exception("a request failed")
            self._send(Failed(internal()))
        return True

    def give_up(self) -> None:
        """Close its events, and send the reason as the last one."""
        try:
            self._events.close()
        except BaseException:
            _LOG.exception("a cancelled request could not be closed")
        self._send(Failed(self._reason or ApiError(499, "the request was cancelled", "cancelled")))

    def _send(self, event: Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._outbox.put_nowait, event)


@dataclass(frozen=True)
class Load:
    """How many jobs there are."""

    active: int
    waiting: int


class Scheduler:
    """Runs jobs round robin."""

    def __init__(self, max_active: int, max_queue: int, threads: int = 1) -> None:
        """Start the threads.

        Args:
            max_active: jobs that are run by turns.
            max_queue: jobs that may wait; more are refused.
            threads: turns that run at a time, each of another job.
        """
        self._max_active = max_active
        self._max_queue = max_queue
        self._active: deque[Job] = deque()
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._closing = False
        self._hurried = False
        self._changed = threading.Condition()
        self._usual_seconds = 1.0
        self._threads = [
            threading.Thread(target=self._run, name="flashback-engine", daemon=True)
            for _ in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def load(self) -> Load:
        with self._changed:
            return Load(len(self._active) + len(self._running), len(self._waiting))

    @property
    def is_alive(self) -> bool:
        """Whether jobs are run, and new ones are accepted."""
        return all(one.is_alive() for one in self._threads) and not self._closing

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            ApiError: the queue is full (429), or the server is stopping (503).
        """
        with self._changed:
            if self._closing:
                raise stopping()
            if self._is_full:
                raise self._busy()
            self._waiting.append(job)
            self._changed.notify_all()

    def cancel(self, job: Job) -> None:
        """End a job at its next token, or at once if it waits in the queue."""
        job.cancel()
        with self._changed:
            waits = job in self._waiting
            if waits:
                self._waiting.remove(job)
            self._changed.notify_all()  # it may be skipped because of a search
        if waits:  # it has no turn in which it could end
            job.give_up()

    def hurry(self) -> None:
        """End the grace of `close` now."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()

    def close(self, grace: float) -> None:
        """Refuse new jobs, run those there are for `grace` seconds, cancel the rest."""
        ends = time.monotonic() + grace
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            while self._jobs and not self._hurried and (left := ends - time.monotonic()) > 0:
                self._changed.wait(left)
            for job in self._jobs:
                job.cancel(stopping())
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    @property
    def _jobs(self) -> list[Job]:
        return [*self._running, *self._active, *self._waiting]

    @property
    def _is_full(self) -> bool:
        free = self._max_active - len(self._active) - len(self._running)
        return len(self._waiting) >= self._max_queue + max(free, 0)

    def _busy(self) -> ApiError:
        ahead = (len(self._waiting) + 1) / self._max_active
        wait = min(max(math.ceil(self._usual_seconds * ahead), 1), _LONGEST_WAIT)
        return ApiError(
            429,
            f"the server has {self._max_active} requests in work and {len(self._waiting)} waiting; "
            f"try again in {wait} s",
            "queue_full",
            retry_after=wait,
        )

    def _run(self) -> None:
        while (job := self._next()) is not None:
            if job.cancelled:
                job.give_up()
                finished = True
            else:
                finished = job.turn()
            self._after(job, finished)

    def _next(self) -> Job | None:
        """The job whose turn it is; None once the scheduler is closed and empty."""
        with self._changed:
            while True:
                while self._waiting and len(self._active) + len(self._running) < self._max_active:
                    self._active.append(self._waiting.popleft())
                ready = next((job for job in self._active if job.waits_for is None), None)
                if ready is not None:
                    self._active.remove(ready)
                    self._running.append(ready)
                    return ready
                if self._closing and not self._active and not self._running:
                    return None
                self._changed.wait()

    def _after(self, job: Job, finished: bool) -> None:
        if not finished and (search := job.waits_for) is not None:
            search.add_done_callback(self._wake)
        with self._changed:
            self._running.remove(job)
            if finished:
                self._usual_seconds += _SMOOTH * (job.age - self._usual_seconds)
            elif job.goes_first:
                self._active.appendleft(job)
            else:
                self._active.append(job)
            self._changed.notify_all()

    def _wake(self, _: "Future[Any]") -> None:
        with self._changed:
            self._changed.notify_all()
