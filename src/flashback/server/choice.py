"""One choice of an answer, from the generator's events to the server's.

Runs on the engine's thread. Yields a `Turn` after every stride, and within a long one.
"""

import logging
from collections import abc
from collections.abc import Iterator
from concurrent.futures import wait
from dataclasses import dataclass

from flashback.errors import EngineError
from flashback.server.errors import ENGINE_FAILED, of_engine
from flashback.server.events import (
    ChoiceEnd,
    Event,
    Incident,
    Piece,
    SpanEnd,
    SpanStart,
    Turn,
)
from flashback.server.scheduler import Job
from flashback.server.searching import GuardedRetriever, RetrievalFailed
from flashback.server.token_scores import TokenRecorder
from flashback.writing.generator import Stride, StrideStart, TextPiece, Writing

_LOG = logging.getLogger(__name__)
_TURN_TOKENS = 64
"""A longer stride takes several turns."""
_FAST_SEARCH = 0.05
"""Seconds; a search that takes longer ends the turn."""
_FINISH_REASONS = {"length": "length", "stop": "stop", "eos": "stop"}
"""OpenAI's names."""


@dataclass(frozen=True)
class TimeLimit:
    """The time limit of a request."""

    job: Job
    seconds: float

    def is_over(self) -> bool:
        """Whether the request took longer."""
        return self.job.age > self.seconds

    @property
    def message(self) -> str:
        return f"the request took longer than {self.seconds:g} s"


@dataclass
class Progress:
    """The state of a choice's text as the client sees it."""

    choice: int
    characters: int = 0
    stride: int = 0


@dataclass(frozen=True)
class Begun:
    """A choice whose prompt was accepted."""

    writing: Writing
    recorder: TokenRecorder
    guard: GuardedRetriever | None


class ChoiceRun:
    """Writes one choice."""

    def __init__(self, progress: Progress, begun: Begun, limit: TimeLimit) -> None:
        self._progress = progress
        self._writing = begun.writing
        self._recorder = begun.recorder
        self._guard = begun.guard
        self._limit = limit
        self._turn_began = 0
        """Tokens written when the turn began."""
        self._hurried = False
        """Whether the stride was cut short because the time is over."""

    def events(self) -> Iterator[Event]:
        """The text and its strides; ends early at the time limit or when search or engine fail.

        Raises:
            ApiError: the engine failed before anything was written.
        """
        try:
            yield from self._first_search()
            reason = yield from self._write()
        except RetrievalFailed as error:
            reason = "stop"
            yield from self._cut_off()
            yield self._incident("retrieval_error", str(error))
        except EngineError as error:
            _LOG.warning("the engine failed: %s", error)
            if self._progress.choice == 0 and self._recorder.tokens == 0:
                raise of_engine() from error
            reason = "length"
            yield from self._cut_off()
            yield self._incident("engine_error", ENGINE_FAILED)
        finally:
            if self._guard is not None:
                self._guard.abandon()  # its search must not hold up others
            self._writing.close()
        choice = self._progress.choice
        yield ChoiceEnd(choice, reason, self._recorder.tokens, self._writing.jumps)

    def _write(self) -> abc.Generator[Event, None, str]:
        """The events of all strides; returns why the text ended, in OpenAI's words."""
        for event in self._writing:
            if isinstance(event, Stride) and self._limit.is_over() and self._is_unfinished:
                yield from self._cut_off()
                yield from self._converted(event)
                yield self._incident("time_limit", self._limit.message)
                return "length"
            yield from self._converted(event)
            yield from self._between(event)
        reason = self._writing.result.finish_reason
        if reason != "stop" and (rest := self._recorder.rest()):
            yield Piece(self._progress.choice, "", rest)  # an end-of-text token has no text
        return _FINISH_REASONS[reason]

    @property
    def _is_unfinished(self) -> bool:
        """Whether there would be more text without the time limit."""
        reason = self._writing.finish_reason
        return reason is None or (self._hurried and reason == "length")

    def _between(self, event: StrideStart | TextPiece | Stride) -> Iterator[Event]:
        """A turn for others, where it is time for one."""
        if isinstance(event, Stride):
            self._turn_began = self._recorder.tokens
            yield Turn(self._writing.search())
        elif self._limit.is_over():
            self._hurried = True
            self._writing.end_soon()
        elif self._recorder.tokens - self._turn_began >= _TURN_TOKENS:
            self._turn_began = self._recorder.tokens
            yield Turn()

    def _first_search(self) -> Iterator[Event]:
        """End the turn if the search is slow."""
        search = self._writing.search()
        if search is not None and not wait([search], _FAST_SEARCH).done:
            yield Turn(search, again=True)

    def _cut_off(self) -> Iterator[Event]:
        """The text that was held back for a stop text or the end of a character."""
        held_back = self._writing.held_back()
        self._progress.characters += len(held_back)
        rest = self._recorder.rest()
        if held_back or rest:
            yield Piece(self._progress.choice, held_back, rest)

    def _converted(self, event: StrideStart | TextPiece | Stride) -> Iterator[Event]:
        progress = self._progress
        if isinstance(event, StrideStart):
            if self._guard is not None and self._guard.failure is not None:
                yield self._incident("retrieval_error", self._guard.failure)
            yield SpanStart(progress.choice, progress.stride, progress.characters, event.passages)
        elif isinstance(event, TextPiece):
            progress.characters += len(event.text)
            scores = self._recorder.take(progress.characters)
            if event.text or scores:
                yield Piece(progress.choice, event.text, scores)
        else:
            yield SpanEnd(
                progress.choice,
                progress.stride,
                progress.characters,
                len(event.tokens),
                event.usage,
                event.retrieve_seconds,
            )
            progress.stride += 1

    def _incident(self, name: str, message: str) -> Incident:
        return Incident(self._progress.choice, name, message, self._progress.stride)
