"""A circuit breaker: who has failed several times in a row is left alone for a while."""

import threading
import time
from collections.abc import Callable


class CircuitBreaker:
    """Counts failures in a row. Safe to share between threads."""

    def __init__(
        self, failures: int = 5, seconds: float = 30.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin closed: everything may pass.

        Args:
            failures: in a row, after which nothing passes.
            seconds: for so long; then one call may try, and its success closes the circuit.
            clock: seconds.
        """
        self._most = failures
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._opened = 0.0
        """When it last let nothing pass, or let one call try."""

    def may_pass(self) -> bool:
        """Whether to call at all; whoever calls says how it went."""
        with self._lock:
            if self._failures < self._most:
                return True
            now = self._clock()
            if now - self._opened < self._seconds:
                return False
            self._opened = now  # this call tries; others wait for what comes of it
            return True

    def succeeded(self) -> None:
        """The last call did what it should."""
        with self._lock:
            self._failures = 0

    def failed(self) -> None:
        """The last call failed, and not by what was asked."""
        with self._lock:
            self._failures += 1
            self._opened = self._clock()
