"""Notices new versions of the index while it is served, on a thread of its own."""

import logging
import threading
import time
from collections.abc import Callable, Sized
from typing import Any

from flashback.errors import FlashBackError, FlashBackWarning
from flashback.retrieval.protocol import Renewable
from flashback.server.metrics import Metrics

_LOG = logging.getLogger(__name__)
_SHARE = 4
"""A look that took long, at a broken version for example, is not repeated at once: at most a fifth
of the time is spent on looking."""


class IndexWatch:
    """Looks for a new version from time to time, and when asked; a broken one changes nothing."""

    def __init__(
        self,
        index: Renewable,
        metrics: Metrics,
        every: float,
        note: Callable[[], str | None] = lambda: None,
    ) -> None:
        """Watch an index; nothing is looked at before `start`.

        Args:
            every: seconds between two looks; 0: only when asked.
            note: what a user should know about the version in use; it is logged with a new one.
        """
        self._index = index
        self._metrics = metrics
        self._every = every
        self._note = note
        self.failure: str | None = None
        """Why the newest version is not in use, for clients; None: it is."""
        self._wake = threading.Event()
        self._stopped = False
        self._looking = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="flashback-index", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """End; a look that has begun is not waited for."""
        self._stopped = True
        self._wake.set()

    def look_now(self) -> None:
        """Let the thread look as soon as it can."""
        self._wake.set()

    def look(self) -> bool:
        """Take a new version into use, if there is one; sets `failure` if it is broken.

        Returns:
            Whether there was one.
        """
        with self._looking:
            before = self._index.version
            changed, failure = False, None
            try:
                changed = self._index.renew()
            except FlashBackError as error:
                failure = str(error).removeprefix(f"index {self._index.name}: ")
            except BaseException as error:  # an index library may panic: the old one serves
                _LOG.exception("the index could not be looked at")
                failure = f"it could not be opened ({type(error).__name__})"
            changed = changed or self._index.version != before  # one of several may be broken
            self._tell(changed, failure and f"the new version of the index is unusable: {failure}")
            return changed

    def state(self) -> dict[str, Any]:
        """The version in use, and what is wrong with a newer one."""
        size = len(self._index) if isinstance(self._index, Sized) else None
        return {"version": self._index.version, "passages": size, "failure": self.failure}

    def _tell(self, changed: bool, failure: str | None) -> None:
        before, self.failure = self.failure, failure
        if failure is not None and failure != before:  # once, not at every look
            _LOG.error("%s; the one before stays in use", failure)
            self._metrics.index_versions.labels("broken").inc()
        if changed:
            _LOG.info("a new version of the index is in use: %s", self._index.version)
            self._metrics.index_versions.labels("taken").inc()
            self._warn()
        self._metrics.index_broken.set(failure is not None)

    def _warn(self) -> None:
        try:
            note = self._note()
        except BaseException:  # as above; the new version serves
            _LOG.exception("the new version of the index could not be read through")
            return
        if note is not None:
            _LOG.warning("%s", FlashBackWarning(note).for_command_line)

    def _run(self) -> None:
        pause = self._every
        while True:
            self._wake.wait(pause or None)
            self._wake.clear()
            if self._stopped:
                return
            began = time.perf_counter()
            self.look()
            if self._every:
                pause = max(self._every, _SHARE * (time.perf_counter() - began))
