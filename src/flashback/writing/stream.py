"""One text as a stream of events: what a request's caller iterates over."""

import contextlib
import time
from collections.abc import Generator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from flashback.patterns.prompt import Ids
from flashback.retrieval.protocol import Hit
from flashback.writing.lookahead import Lookahead
from flashback.writing.text import FinishReason, Generation, Stride, Text


@dataclass(frozen=True)
class StrideStart:
    """A stride begins: its passages and prompt."""

    number: int
    passages: tuple[Hit, ...]
    arranged: Ids
    """The prompt, token by token."""


@dataclass(frozen=True)
class TextPiece:
    """Text that became final with a token; empty where it is held back."""

    text: str


Event = StrideStart | TextPiece | Stride
Events = Generator[Event, None, None]


class Writing:
    """One text being written: iterate over its events, then read its `result`."""

    def __init__(self, events: Events, text: Text, lookahead: Lookahead) -> None:
        self._text = text
        self._lookahead = lookahead
        self._complete = False
        self._events = self._timed(events)

    def __iter__(self) -> Iterator[Event]:
        return self._events

    def finish(self) -> Generation:
        """Write to the end."""
        for _ in self:
            pass
        return self.result

    @property
    def prompt_tokens(self) -> Ids:
        """The prompt as used: after truncation, BOS included."""
        return self._text.prompt_tokens

    @property
    def jumps(self) -> Ids:
        """Lengths of the text, in tokens, at which the context jumped so far."""
        return tuple(self._text.context.jumps)

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the text ended; None while it is being written."""
        return self._text.finish_reason

    def end_soon(self) -> None:
        """Make the next token the last one, as if `max_new_tokens` were reached."""
        self._text.end_soon()

    def held_back(self) -> str:
        """Text that was written but not yielded yet; call it when writing is stopped early."""
        return self._text.held_back()

    def search(self) -> "Future[Any] | None":
        """Start the next stride's search in a thread, so that the caller can do other work.

        Call it before the first event, or after a `Stride`. The next event waits for the search and
        raises what it raised.

        Returns:
            A future that is done with the search; None if the stride has none.
        """
        text = self._text
        if text.finish_reason is not None or not text.settings.retrieval.retrieves:
            return None
        return self._lookahead.search(text.begin_stride())

    def close(self) -> None:
        """Stop writing now and give the cache back."""
        self._events.close()
        self._lookahead.close()  # also if no event was consumed

    @property
    def result(self) -> Generation:
        """The whole text and its strides.

        Raises:
            RuntimeError: the text is not finished.
        """
        if not self._complete:
            raise RuntimeError("the text is not finished: iterate over all events first")
        return self._text.result()

    def _timed(self, events: Events) -> Events:
        """The same events; adds up the time they take, without the caller's own between them."""
        with contextlib.closing(events):
            while True:
                began = time.perf_counter()
                event = next(events, None)
                self._text.seconds += time.perf_counter() - began
                if event is None:
                    self._complete = True
                    return
                yield event
