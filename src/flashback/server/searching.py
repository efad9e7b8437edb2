"""The searches of one text: limited in time; a failure becomes an event."""

import logging
import threading
from collections.abc import Sequence
from functools import partial

from flashback.retrieval.guard import OnRetrievalError, within
from flashback.retrieval.protocol import Hit, Retriever
from flashback.settings import SearchOptions

_LOG = logging.getLogger(__name__)


class RetrievalFailed(Exception):
    """A search failed, and the text ends there; the message is for the client."""


class GuardedRetriever:
    """A `Retriever` for one text around one that may fail or hang."""

    def __init__(
        self,
        retriever: Retriever,
        seconds: float,
        on_error: OnRetrievalError,
    ) -> None:
        """Guard a retriever.

        Args:
            seconds: a search that takes longer has failed.
            on_error: `stop` raises `RetrievalFailed`, `continue` finds nothing.
        """
        self._retriever = retriever
        self._seconds = seconds
        self._on_error = on_error
        self.failure: str | None = None
        """Of the last search."""
        self._abandoned = False
        self._ended = threading.Event()
        """Set once the last search has returned or was abandoned."""

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        """See `Retriever.search`.

        Raises:
            RetrievalFailed: the search failed, and the text ends there.
        """
        self.failure = None
        self._ended = ended = threading.Event()
        if self._abandoned:
            raise RetrievalFailed("the search was abandoned")
        try:
            return within(
                self._seconds, partial(self._retriever.search, list(queries), options), ended
            )
        except BaseException as error:  # whatever a retriever raises; an index library may panic
            if not self._abandoned:
                _LOG.warning("a search failed", exc_info=error)
            self.failure = f"the retriever failed ({type(error).__name__})"
        if self._on_error is OnRetrievalError.STOP:
            raise RetrievalFailed(self.failure)
        return [[] for _ in queries]

    def abandon(self) -> None:
        """Let a running search, and any later one, fail at once."""
        self._abandoned = True
        self._ended.set()
