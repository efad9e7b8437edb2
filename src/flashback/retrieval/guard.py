"""Searches that may fail or hang: limited in time, and what then becomes of the text."""

import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TypeVar

from flashback.declared import CheckedSettings, setting
from flashback.errors import FlashBackError, FlashBackWarning, RetrieverError, SettingsError
from flashback.retrieval.protocol import Hit, Retriever, ask, identity_of
from flashback.settings import SearchOptions

Found = TypeVar("Found")


class OnRetrievalError(StrEnum):
    """Handling of a text whose retriever fails."""

    STOP = "stop"
    """It ends there, with what was written."""
    CONTINUE = "continue"
    """The stride is written without a passage."""


@dataclass(frozen=True)
class GuardSettings(CheckedSettings):
    """How long a search may take, and what becomes of a text without it."""

    retrieval_limit: float = setting(
        10.0,
        "Seconds of a search, for each of its queries; one that takes longer has failed.",
        low=0.01,
        high=1e6,
    )
    on_retrieval_error: OnRetrievalError = setting(
        OnRetrievalError.STOP,
        "A search that fails ends the command (stop), or what it is for has no passage (continue).",
    )


class LimitedRetriever:
    """A `Retriever` around one that may fail or hang."""

    def __init__(self, retriever: Retriever, settings: GuardSettings) -> None:
        """Limit a retriever."""
        self._retriever = retriever
        self._settings = settings
        self._counting = threading.Lock()
        self.failures = 0
        """Queries that failed and found nothing, see `failures_of`."""

    @property
    def parts(self) -> tuple[Retriever]:
        """See `Combined`."""
        return (self._retriever,)

    def over(self, parts: Sequence[Retriever]) -> "LimitedRetriever":
        """See `Combined`."""
        return LimitedRetriever(parts[0], self._settings)

    @property
    def identity(self) -> str | None:
        """See `identity_of`."""
        return identity_of(self._retriever)

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        """See `Retriever.search`. With `continue`, a failure is a warning, and nothing is found.

        Raises:
            SettingsError: the queries or options are wrong.
            FlashBackError: the search failed or took too long, and `continue` is not set.
        """
        seconds = self._settings.retrieval_limit * max(1, len(queries))
        call = partial(ask, self._retriever, queries, options)
        try:
            return within(seconds, call, threading.Event())
        except SettingsError:
            raise
        except Exception as error:  # whatever somebody's retriever raises
            failure = _failure(error)
            if self._settings.on_retrieval_error is OnRetrievalError.STOP:
                raise failure from error
        with self._counting:
            self.failures += len(queries)
        warnings.warn(f"{failure}; there is no passage", FlashBackWarning, stacklevel=2)
        return [[] for _ in queries]


def _failure(error: Exception) -> FlashBackError:
    if isinstance(error, FlashBackError):
        return error
    told = " ".join(str(error).split())[:200]
    if isinstance(error, TimeoutError) and not error.errno:
        told = f"{told}; --retrieval-limit allows more"
    return RetrieverError(f"the retriever failed ({type(error).__name__}: {told})")


def within(seconds: float, call: Callable[[], Found], ended: threading.Event) -> Found:
    """Call on a thread, which is abandoned if it takes too long; return the result.

    Args:
        ended: set when `call` has returned; setting it before ends the wait.

    Raises:
        TimeoutError: it took longer, or `ended` was set before.
    """
    results: list[Found] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)
        finally:
            ended.set()

    threading.Thread(target=run, name="flashback-search", daemon=True).start()
    ended.wait(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer in {seconds:g} s")
    return results[0]
