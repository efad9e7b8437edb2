"""Requests take turns, stride by stride, on one thread that runs the reader.

Knows jobs, turns and queues. Knows nothing of HTTP or of what a job computes.

A job is waiting, active or finished. Active jobs go round: each does one turn (a stride, or a part
of a long one), then the next one. So whoever becomes active sees the first stride after one round
at most, however long the others' texts are. Whose search is under way is passed over until it is
done. A job that was cancelled stops at its next token.
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
"""The share of the newest request in the average duration."""
_LONGEST_WAIT = 60
"""Seconds, of a Retry-After."""


class Cancelled(BaseException):
    """Raised inside a pass, to end it: nobody waits for its result any more."""


Events = Generator[Event, None, None]
Work = Callable[["Job"], Events]
"""Begins a job; every `Turn` among its events lets others go on."""


class Job:
    """One request's work; its events are made on the engine's thread and read in the loop's."""

    def __init__(self, work: Work, loop: asyncio.AbstractEventLoop) -> None:
        self.arrived = time.monotonic()
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
        return time.monotonic() - self.arrived

    @property
    def waits_for(self) -> "Future[Any] | None":
        """What must be done before it can go on; None: nothing."""
        search = self._last_turn.until
        return None if search is None or search.done() or self.cancelled else search

    @property
    def goes_first(self) -> bool:
        """Whether it goes on before others when it can."""
        return self._last_turn.again

    def check(self) -> None:
        """Called at every token.

        Raises:
            Cancelled: nobody waits any more.
        """
        if self.cancelled:
            raise Cancelled

    def cancel(self, reason: ApiError | None = None) -> None:
        """Stop at the next token; the reason is told to whoever still listens."""
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
        """Work until the next `Turn`; whether the job is finished."""
        try:
            for event in self._events:
                if isinstance(event, Turn):
                    self._last_turn = event
                    return False
                self._tell(event)
                self.check()
            self._tell(Done())
        except ApiError as error:
            self._tell(Failed(error))
        except Cancelled:
            self.give_up()
        except BaseException:  # the thread serves everyone else, too
            _LOG.exception("a request failed")
            self._tell(Failed(internal()))
        return True

    def give_up(self) -> None:
        """Give back what it holds, and tell why it ends."""
        try:
            self._events.close()
        except BaseException:
            _LOG.exception("a cancelled request could not be closed")
        self._tell(Failed(self._reason or ApiError(499, "the request was cancelled", "cancelled")))

    def _tell(self, event: Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
            self._loop.call_soon_threadsafe(self._outbox.put_nowait, event)


@dataclass(frozen=True)
class Load:
    """How many jobs there are."""

    active: int
    waiting: int


class Scheduler:
    """Runs jobs by turns on a thread of its own."""

    def __init__(self, max_active: int, max_queue: int) -> None:
        """Start the thread.

        Args:
            max_active: jobs that take turns.
            max_queue: jobs that may wait to become active.
        """
        self._max_active = max_active
        self._max_queue = max_queue
        self._active: deque[Job] = deque()
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._closing = False
        self._hurried = False
        self._changed = threading.Condition()
        self._usual_seconds = 1.0
        self._thread = threading.Thread(target=self._run, name="flashback-engine", daemon=True)
        self._thread.start()

    @property
    def load(self) -> Load:
        with self._changed:
            return Load(len(self._active) + (self._running is not None), len(self._waiting))

    @property
    def is_alive(self) -> bool:
        """Whether jobs are being worked on, and new ones are taken."""
        return self._thread.is_alive() and not self._closing

    def submit(self, job: Job) -> None:
        """Take a job.

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
        """End a job at its next token; one that waits leaves the queue at once."""
        job.cancel()
        with self._changed:
            waits = job in self._waiting
            if waits:
                self._waiting.remove(job)
            self._changed.notify_all()  # it may be waiting for a search
        if waits:  # no turn will come in which it could end
            job.give_up()

    def hurry(self) -> None:
        """Let `close` wait no longer."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()

    def close(self, grace: float) -> None:
        """Take no more jobs; finish those there are, end what is left after `grace` seconds."""
        ends = time.monotonic() + grace
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            while self._jobs and not self._hurried and (left := ends - time.monotonic()) > 0:
                self._changed.wait(left)
            for job in self._jobs:
                job.cancel(stopping())
            self._changed.notify_all()
        self._thread.join()

    @property
    def _jobs(self) -> list[Job]:
        running = [] if self._running is None else [self._running]
        return [*running, *self._active, *self._waiting]

    @property
    def _is_full(self) -> bool:
        free = self._max_active - len(self._active) - (self._running is not None)
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
        """Whose turn it is; None when there will be none."""
        with self._changed:
            self._running = None
            while True:
                while self._waiting and len(self._active) < self._max_active:
                    self._active.append(self._waiting.popleft())
                ready = next((job for job in self._active if job.waits_for is None), None)
                if ready is not None:
                    self._active.remove(ready)
                    self._running = ready
                    return ready
                if self._closing and not self._active:
                    return None
                self._changed.wait()

    def _after(self, job: Job, finished: bool) -> None:
        if not finished and (search := job.waits_for) is not None:
            search.add_done_callback(self._wake)
        with self._changed:
            self._running = None
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
