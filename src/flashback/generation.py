"""The stride loop: every s tokens, retrieve, arrange, complete (paper section 3).

Knows the protocols of engines and retrievers, never a concrete one; the pattern matters only to
`arrange`. Stop texts, end-of-text tokens and penalties are handled here, since they may span
strides.
"""

import contextlib
import time
import warnings
from collections import abc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from flashback.arrangement import (
    Context,
    Frame,
    Ids,
    Prompt,
    Slot,
    arrange,
    context_budget,
    slot_room,
)
from flashback.detokenization import Detokenizer, StopFinder
from flashback.engines.protocol import Engine, Usage
from flashback.errors import FlashBackWarning, SettingsError
from flashback.reader import Reader
from flashback.retrieval.protocol import Hit, NoRetriever, Retriever
from flashback.sampling import Sampler
from flashback.settings import Pattern, RetrievalSettings, Settings

FinishReason = Literal["length", "stop", "eos"]


@dataclass(frozen=True)
class StrideStart:
    """A stride begins: this is what stands behind the text that follows."""

    number: int
    passages: tuple[Hit, ...]
    arranged: Ids
    """The prompt, token by token."""


@dataclass(frozen=True)
class TextPiece:
    """Text that became certain."""

    text: str


@dataclass(frozen=True)
class Stride:
    """A finished stride."""

    arranged: Ids
    tokens: Ids
    text: str
    """The text given out during this stride; all strides' texts, joined, are the whole."""
    passages: tuple[Hit, ...]
    usage: Usage
    retrieve_seconds: float


Event = StrideStart | TextPiece | Stride
Events = abc.Generator[Event, None, None]


@dataclass(frozen=True)
class Generation:
    """A finished text and how it came about."""

    prompt_tokens: Ids
    """As used: after truncation, BOS included."""
    strides: tuple[Stride, ...]
    finish_reason: FinishReason
    jumps: tuple[int, ...]
    """Text lengths in tokens at which the context jumped."""
    seconds: float
    """Spent on writing; what a caller does between events is not counted."""

    @property
    def text(self) -> str:
        return "".join(stride.text for stride in self.strides)

    @property
    def tokens(self) -> Ids:
        return tuple(token for stride in self.strides for token in stride.tokens)

    @property
    def reused(self) -> int:
        return sum(stride.usage.reused for stride in self.strides)

    @property
    def encoded(self) -> int:
        return sum(stride.usage.encoded for stride in self.strides)

    @property
    def decoded(self) -> int:
        return sum(stride.usage.decoded for stride in self.strides)

    @property
    def tokens_per_second(self) -> float:
        return len(self.tokens) / self.seconds


class Writing:
    """One text being written: iterate over its events, then ask for its `result`."""

    def __init__(self, events: "Events", progress: "_Progress") -> None:
        self._events = events
        self._progress = progress

    def __iter__(self) -> Iterator[Event]:
        return self._events

    def close(self) -> None:
        """Stop writing now; the caches are given back."""
        self._events.close()

    @property
    def result(self) -> Generation:
        """The whole text and how it came about.

        Raises:
            RuntimeError: there are events to come, or writing was stopped.
        """
        reason = self._progress.finish_reason
        if reason is None or not self._progress.complete:
            raise RuntimeError("the text is not finished: iterate over all events first")
        return self._progress.result(reason)


@dataclass
class _Progress:
    """What one call has written so far."""

    context: Context
    prompt_tokens: Ids
    sampler: Sampler
    detokenizer: Detokenizer
    stops: StopFinder
    retriever: Retriever
    slot: Slot
    """As the stride before left it; without room in patterns that have none."""
    strides: list[Stride] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    seconds: float = 0.0
    complete: bool = False
    """Whether the last event was given out."""

    def result(self, reason: FinishReason) -> Generation:
        jumps = tuple(self.context.jumps)
        return Generation(self.prompt_tokens, tuple(self.strides), reason, jumps, self.seconds)


def _timed(events: Events, progress: _Progress) -> Events:
    """The same events; counts the time they take, and not what is done with them in between."""
    with contextlib.closing(events):
        while True:
            began = time.perf_counter()
            event = next(events, None)
            progress.seconds += time.perf_counter() - began
            if event is None:
                progress.complete = True
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
        writing = self.stream(prompt, settings)
        for _ in writing:
            pass
        return writing.result

    def stream(self, prompt: str | Sequence[int], settings: Settings | None = None) -> Writing:
        """Begin to write behind `prompt`, a text or its token ids.

        Raises:
            PromptTooLong: the prompt does not fit and `settings.truncate` is false.
            SettingsError: an empty prompt, no retriever, or a window too small for the settings.
        """
        settings = settings or Settings()
        retrieval = settings.retrieval
        retrieval.check_retriever(self.retriever)
        self._warn_if_untrained(retrieval)
        retriever = self.retriever
        if retriever is None or not retrieval.pattern.retrieves:
            retriever = NoRetriever()
        frame = self.reader.frame(retrieval.frame)
        budget = context_budget(
            self.engine.capabilities.window,
            retrieval.passages,
            retrieval.passage_tokens,
            len(frame),
            retrieval.stride,
        )
        ids = self._prompt_ids(prompt)
        context = Context.of_prompt(ids, self.reader.bos, budget, settings.truncate)
        progress = _Progress(
            context,
            tuple(context.ids),
            Sampler(settings.sampling, context.ids, self.reader.forbidden),
            Detokenizer(self.reader, context.ids),
            StopFinder(settings.stopping.stop),
            retriever,
            Slot(self._room(retrieval, frame)),
        )
        return Writing(_timed(self._write(progress, settings, frame), progress), progress)

    def _room(self, retrieval: RetrievalSettings, frame: Frame) -> int:
        """R: the positions of the slot.

        Raises:
            SettingsError: the pattern is `slot`, and the reader or the engine can have none.
        """
        if retrieval.pattern is not Pattern.SLOT:
            return 0
        self.reader.check_pattern(retrieval.pattern)
        if not self.engine.capabilities.slot:
            raise SettingsError("--pattern slot: this engine has no slot; use append or prepend")
        return slot_room(retrieval.passages, retrieval.passage_tokens, frame)

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

    def _write(self, progress: _Progress, settings: Settings, frame: Frame) -> Events:
        left = settings.stopping.max_new_tokens
        while progress.finish_reason is None:
            length = min(settings.retrieval.stride, left)
            left -= length
            yield from self._write_stride(progress, settings, frame, length, last=left == 0)

    def _write_stride(
        self, progress: _Progress, settings: Settings, frame: Frame, length: int, last: bool
    ) -> Events:
        if progress.context.jump_if_full():
            progress.slot = Slot(progress.slot.room)
        began = time.perf_counter()
        hits = self._retrieve(progress, settings.retrieval)
        retrieve_seconds = time.perf_counter() - began
        prompt = self._arrange(progress, hits, settings.retrieval, frame)
        progress.slot = prompt.slot
        yield StrideStart(len(progress.strides), hits, prompt.arranged)

        tokens: list[int] = []
        texts: list[str] = []
        with self.engine.complete(prompt, length, progress.sampler) as completion:
            for token in completion:
                tokens.append(token)
                text = self._take(progress, token, settings)
                if last and len(tokens) == length and progress.finish_reason is None:
                    progress.finish_reason = "length"
                if progress.finish_reason in ("length", "eos"):
                    text += self._held_back(progress)
                if text:
                    texts.append(text)
                    yield TextPiece(text)
                if progress.finish_reason is not None:
                    break
        progress.context.ids.extend(tokens)
        stride = Stride(
            arranged=prompt.arranged,
            tokens=tuple(tokens),
            text="".join(texts),
            passages=hits,
            usage=completion.usage,
            retrieve_seconds=retrieve_seconds,
        )
        progress.strides.append(stride)
        yield stride

    def _retrieve(self, progress: _Progress, settings: RetrievalSettings) -> tuple[Hit, ...]:
        query = self.reader.decode(progress.context.visible[-settings.query_tokens :])
        return tuple(progress.retriever.search([query], settings.search_options)[0])

    def _arrange(
        self, progress: _Progress, hits: Sequence[Hit], settings: RetrievalSettings, frame: Frame
    ) -> Prompt:
        passage = [
            token
            for hit in hits
            for token in self.reader.encode(hit.text)[: settings.passage_tokens]
        ]
        context = progress.context
        return arrange(
            settings.pattern,
            context.visible,
            tuple(passage),
            frame,
            len(context.bos),
            progress.slot,
        )

    def _take(self, progress: _Progress, token: int, settings: Settings) -> str:
        """Account for a new token; the text that may be shown because of it."""
        if token in self.reader.eos and not settings.stopping.ignore_eos:
            progress.finish_reason = "eos"
            return ""
        text, stopped = progress.stops.push(progress.detokenizer.push(token))
        if stopped:
            progress.finish_reason = "stop"
        return text

    def _held_back(self, progress: _Progress) -> str:
        """At the end: what waited for the rest of a character or of a stop text."""
        text, stopped = progress.stops.push(progress.detokenizer.finish())
        if stopped:
            progress.finish_reason = "stop"
            return text
        return text + progress.stops.finish()
