"""The stride loop: every s tokens, retrieve, arrange, complete (paper section 3).

Knows the protocols of engines and retrievers, never a concrete one. What a stride is, and when a
text ends, is `text.py`'s business; here one text is driven from event to event.
"""

import contextlib
import time
import warnings
from collections import abc
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

from flashback.engines.protocol import Batch, BatchingEngine, Engine, SlotEngine
from flashback.errors import FlashBackWarning, SettingsError, UnsupportedReader
from flashback.patterns.context import Context, context_budget
from flashback.patterns.frame import Frame
from flashback.patterns.pattern import ContextPattern
from flashback.patterns.prompt import Ids
from flashback.patterns.registry import PATTERNS, best_untrained
from flashback.readers.reader import Reader
from flashback.retrieval.protocol import Hit, NoRetriever, Retriever
from flashback.sampling import OnToken, Sampler
from flashback.settings import AUTO, RetrievalSettings, Settings
from flashback.writing.batching import write_together
from flashback.writing.lookahead import Lookahead
from flashback.writing.text import FinishReason, Generation, Query, Stride, Text

__all__ = [
    "Event",
    "FinishReason",
    "Generation",
    "Generator",
    "Query",
    "Stride",
    "StrideStart",
    "TextPiece",
    "Writing",
]


@dataclass(frozen=True)
class StrideStart:
    """A stride begins: this is what stands behind the text that follows."""

    number: int
    passages: tuple[Hit, ...]
    arranged: Ids
    """The prompt, token by token."""


@dataclass(frozen=True)
class TextPiece:
    """Text that became certain with a token; often empty, where a token shows none."""

    text: str


Event = StrideStart | TextPiece | Stride
Events = abc.Generator[Event, None, None]


class Writing:
    """One text being written: iterate over its events, then ask for its `result`."""

    def __init__(self, events: "Events", text: Text, ahead: Lookahead) -> None:
        self._text = text
        self._ahead = ahead
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
        """As used: after truncation, BOS included."""
        return self._text.prompt_tokens

    @property
    def jumps(self) -> Ids:
        """Text lengths in tokens at which the context jumped so far."""
        return tuple(self._text.context.jumps)

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the text ended; None while it goes on."""
        return self._text.finish_reason

    def end_soon(self) -> None:
        """Let the next token of this stride be the last one, as if no more had been asked for."""
        self._text.end_soon()

    def held_back(self) -> str:
        """Text that was written and not given out yet; to be asked for when writing is stopped."""
        return self._text.held_back()

    def search(self) -> "Future[Any] | None":
        """Begin the next stride's search in a thread, to do other things until it is done.

        To be called before the first event, or after a `Stride`. The next event waits for what is
        left of the search, and raises what it raised.

        Returns:
            Done when the search is; None if there is none.
        """
        text = self._text
        if text.finish_reason is not None or not text.settings.retrieval.retrieves:
            return None
        return self._ahead.search(text.begin_stride())

    def close(self) -> None:
        """Stop writing now; the caches are given back."""
        self._events.close()
        self._ahead.close()  # also if no event was asked for

    @property
    def result(self) -> Generation:
        """The whole text and how it came about.

        Raises:
            RuntimeError: there are events to come, or writing was stopped.
        """
        if not self._complete:
            raise RuntimeError("the text is not finished: iterate over all events first")
        return self._text.result()

    def _timed(self, events: "Events") -> "Events":
        """The same events; counts the time they take, not what is done with them in between."""
        with contextlib.closing(events):
            while True:
                began = time.perf_counter()
                event = next(events, None)
                self._text.seconds += time.perf_counter() - began
                if event is None:
                    self._complete = True
                    return
                yield event


class Generator:
    """Writes text with a reader, looking up passages on the way."""

    def __init__(self, reader: Reader, engine: Engine, retriever: Retriever | None) -> None:
        """Put the parts together.

        Args:
            reader: tokenizer, frame and special tokens; its model is run by `engine`.
            engine: completes token sequences.
            retriever: finds passages; None is enough for the pattern `none`.
        """
        self.reader = reader
        self.engine = engine
        self.retriever = retriever

    def generate(self, prompt: str | Sequence[int], settings: Settings | None = None) -> Generation:
        """Write to the end. See `stream`."""
        return self.stream(prompt, settings).finish()

    def stream(
        self,
        prompt: str | Sequence[int],
        settings: Settings | None = None,
        *,
        on_token: OnToken | None = None,
        query: Query | None = None,
    ) -> Writing:
        """Begin to write behind `prompt`, a text or its token ids.

        Args:
            on_token: see `Sampler`.
            query: what to search for, given what was written so far; None: its last tokens.

        Raises:
            PromptTooLong: the prompt does not fit and `settings.truncate` is false.
            SettingsError: an empty prompt, no retriever, or a window too small for the settings.
        """
        settings = self.settled(settings or Settings())
        text = self.begin(prompt, settings, on_token)
        text.query = query
        self._warn_if_untrained(settings.retrieval)
        return self._writing(text)

    def generate_batch(
        self,
        prompts: Sequence[str | Sequence[int]],
        settings: Settings | None = None,
        *,
        batch_size: int = 8,
    ) -> list[Generation]:
        """Write many texts to the end, in the order of their prompts. See `stream_batch`."""
        done = dict(self.stream_batch(prompts, settings, batch_size=min(batch_size, len(prompts))))
        return [done[number] for number in range(len(prompts))]

    def stream_batch(
        self,
        prompts: Iterable[str | Sequence[int]],
        settings: Settings | None = None,
        *,
        batch_size: int = 8,
    ) -> Iterator[tuple[int, Generation]]:
        """Write many texts, several at a time; each with its number, as soon as it is finished.

        In float32 every text is what it would be alone. Where the engine cannot do that, they are
        written one by one, and a `FlashBackWarning` says so.

        Args:
            batch_size: how many texts are written at a time; each needs a KV cache of its own.

        Raises:
            As `stream`, when the prompt's turn comes; SettingsError at once, if `prompts` is one
            text.
        """
        _refuse_text(prompts)
        settings = self.settled(settings or Settings())
        self._warn_if_untrained(settings.retrieval)
        texts = enumerate(self.begin(prompt, settings) for prompt in prompts)
        batch = self._open_batch(batch_size)
        if batch is not None:
            return write_together(batch, texts, self.find)
        return ((number, self._writing(text).finish()) for number, text in texts)

    def _open_batch(self, rows: int) -> Batch | None:
        """None: one by one."""
        if rows <= 1:
            return None
        try:
            if isinstance(self.engine, BatchingEngine):
                return self.engine.batch(rows)
            reason = "the engine computes one text at a time"
        except UnsupportedReader as error:
            reason = str(error)
        warnings.warn(f"{reason}: texts are written one by one", FlashBackWarning, stacklevel=3)
        return None

    def begin(
        self,
        prompt: str | Sequence[int],
        settings: Settings,
        on_token: OnToken | None = None,
    ) -> Text:
        """A text with nothing written yet. See `stream`."""
        settings = self.settled(settings)
        retrieval = settings.retrieval
        retrieval.check_retriever(self.retriever)
        retrieval.check_lookahead()
        frame = self.reader.frame(retrieval.frame, retrieval.pattern)
        budget = context_budget(
            self.engine.capabilities.window,
            retrieval.passages,
            retrieval.passage_tokens,
            len(frame),
            retrieval.stride,
        )
        ids = self._prompt_ids(prompt)
        context = Context.of_prompt(ids, self.reader.bos, budget, settings.truncate)
        return Text(
            self.reader,
            settings,
            frame,
            context,
            Sampler(settings.sampling, context.ids, self.reader.forbidden, on_token),
            self._reserved(retrieval, frame),
        )

    def settled(self, settings: Settings) -> Settings:
        """The same settings, with the pattern that is meant by `auto`.

        As the reader's adapter was trained; `append` for a reader with marking tokens; else what an
        untrained reader reads best.
        """
        if settings.retrieval.pattern != AUTO:
            return settings
        return replace(settings, retrieval=replace(settings.retrieval, pattern=self._own_pattern))

    @property
    def _own_pattern(self) -> str:
        reader = self.reader
        if reader.adapter is not None:
            return reader.adapter.pattern
        if reader.marks is not None:  # an exported checkpoint, trained to read them
            return "append"
        return best_untrained(self._can_have)

    def _can_have(self, pattern: ContextPattern) -> bool:
        """Whether engine and reader support a pattern."""
        return self.reader.can_have(pattern) and (
            self.engine.capabilities.slot or not pattern.isolated
        )

    def find(self, queries: Sequence[str], retrieval: RetrievalSettings) -> list[list[Hit]]:
        """The passages for each query; none in a pattern without passages."""
        retriever = self.retriever
        if retriever is None or not retrieval.retrieves:
            retriever = NoRetriever()
        return retriever.search(queries, retrieval.search_options)

    def _reserved(self, retrieval: RetrievalSettings, frame: Frame) -> int:
        """R: positions that the pattern reserves before the text.

        Raises:
            SettingsError: the reader or the engine does not support the pattern.
        """
        pattern = PATTERNS[retrieval.pattern]
        self.reader.check_pattern(pattern.name)
        if not self._can_have(pattern):
            raise SettingsError(
                f"--pattern {pattern}: this engine reserves no positions before the text; use "
                "append or prepend"
            )
        return pattern.reserved(retrieval.passages, retrieval.passage_tokens, frame)

    def _warn_if_untrained(self, retrieval: RetrievalSettings) -> None:
        card = self.reader.adapter
        if card is not None and (found := card.differences(retrieval)):
            warnings.warn(
                f"the adapter on {self.reader.name} was trained for {'; '.join(found)}",
                FlashBackWarning,
                stacklevel=3,
            )

    def _prompt_ids(self, prompt: str | Sequence[int]) -> list[int]:
        if isinstance(prompt, str):
            return self.reader.encode_prompt(prompt)
        size = self.reader.vocabulary_size
        if bad := [token for token in prompt if not 0 <= token < size]:
            raise SettingsError(f"prompt token {bad[0]}: expected ids from 0 to {size - 1}")
        return list(prompt)

    def _writing(self, text: Text) -> Writing:
        def find(query: str) -> tuple[Hit, ...]:
            return tuple(self.find([query], text.settings.retrieval)[0])

        def prepare(hits: Sequence[Hit]) -> None:
            engine = self.engine
            if not text.reserved or not isinstance(engine, SlotEngine):
                return
            if passage := text.passage(hits):
                engine.prepare(text.frame.around(passage), text.reserved)

        ahead = Lookahead(find, prepare)
        return Writing(self._write(text, ahead), text, ahead)

    def _write(self, text: Text, ahead: Lookahead) -> Events:
        with ahead:
            while text.finish_reason is None:
                yield from self._write_stride(text, ahead)

    def _write_stride(self, text: Text, ahead: Lookahead) -> Events:
        hits, retrieve_seconds = ahead.hits(text.begin_stride())
        prompt = text.arrange(hits)
        yield StrideStart(len(text.strides), hits, prompt.arranged)

        with self.engine.complete(prompt, text.stride_tokens, text.sampler) as completion:
            for token in completion:
                piece = text.take(token)
                if text.next_query is not None and not ahead.begun and text.finish_reason is None:
                    ahead.begin(text.next_query)
                yield TextPiece(piece)
                if text.finish_reason is not None:
                    break
        yield text.end_stride(completion.usage, retrieve_seconds)


def _refuse_text(prompts: Iterable[object]) -> None:
    """A bare string would be taken letter by letter."""
    if isinstance(prompts, str):
        raise SettingsError(
            f"prompts {prompts[:40]!r}: expected several texts, found one; use [...]"
        )
