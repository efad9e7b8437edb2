"""A streamed answer as tokens: ids from chunks, and the counts at its end."""

import contextlib
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

from flashback.engines.openai_wire import Record, Wire
from flashback.engines.protocol import Usage
from flashback.errors import EngineError


@dataclass
class TokenStream:
    """The tokens of one completion, and what it cost.

    The last token is given once the counts behind it have come, so that whoever stops there has
    them. An answer that is left earlier has none.
    """

    wire: Wire
    body: Record
    usage: Usage
    before: Usage = field(default_factory=Usage)
    """What was spent on it by other requests."""
    reserved: int = 0
    """Tokens of the prompt that are no text's."""
    _finished: str | None = field(default=None, init=False)
    """Why the server ended the completion."""

    def tokens(self) -> Generator[int]:
        """The ids, as they come; close it to end the completion at once.

        Raises:
            EngineError: see `Wire.streamed`; or there is an answer that is none.
        """
        asked = self.body["max_tokens"]
        given = 0
        with contextlib.closing(self._timed()) as found:
            for token in found:
                given += 1
                yield token
                if given == asked:
                    return
        if not (given and token in self.body["stop_token_ids"]):
            hint = "; expected a server that takes ignore_eos" if self._finished == "stop" else ""
            raise self.wire.error(f"ended after {given} of {asked} tokens ({self._finished}){hint}")

    def _timed(self) -> Generator[int]:
        """The tokens, with the time that is waited for them."""
        began = time.perf_counter()
        with contextlib.closing(self._taken()) as found:
            for number, token in enumerate(found):
                seconds = time.perf_counter() - began
                if number:
                    self.usage.decoded += 1
                    self.usage.decode_seconds += seconds
                else:
                    self.usage.prefill_seconds = self.before.prefill_seconds + seconds
                yield token
                began = time.perf_counter()

    def _taken(self) -> Generator[int]:
        """The tokens of each chunk; the last of a finished completion behind the counts."""
        with contextlib.closing(self.wire.streamed(self.body)) as chunks:
            for chunk in chunks:
                ids = self._ids(chunk)
                if self._finished is None:
                    yield from ids
                    continue
                yield from ids[:-1]
                self._count(chunks)
                yield from ids[-1:]
                return

    def _ids(self, chunk: Record) -> list[int]:
        try:
            choices = chunk["choices"]
            if not choices:
                return []
            (choice,) = choices
            ids, self._finished = choice.get("token_ids") or [], choice.get("finish_reason")
            if not all(type(token) is int and token >= 0 for token in ids):
                raise TypeError
        except (KeyError, TypeError, ValueError, AttributeError):
            raise self.wire.error("a chunk that is none of a completion with token_ids") from None
        return list(ids)

    def _count(self, chunks: Iterator[Record]) -> None:
        """Take the counts from what follows a completion; a server may give none, or die there."""
        with contextlib.suppress(EngineError):
            for chunk in chunks:
                if (counted := chunk.get("usage")) is not None:
                    self._counted(cached_of(counted) or 0)

    def _counted(self, cached: int) -> None:
        """The prompt was computed, but for what was cached."""
        prompt, before, usage = len(self.body["prompt"]), self.before, self.usage
        cached = min(cached, prompt)
        usage.cached = max(cached - self.reserved, 0)
        usage.sink = before.sink
        usage.prefilled = before.prefilled + prompt - cached
        usage.count_reused(prompt)


def cached_of(counted: object) -> int | None:
    """How many tokens of a prompt were cached, by a server's usage; None: it does not say."""
    details = counted.get("prompt_tokens_details") if isinstance(counted, dict) else None
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return cached if type(cached) is int else None
