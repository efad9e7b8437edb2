"""An order, worked on: runs on the engine's thread and gives everyone else a turn after a stride,
or within a long one.

Everything that touches the tokenizer or the model happens here, so on one thread.
"""

import time
import warnings
from collections import abc
from collections.abc import Iterator, Sequence
from concurrent.futures import wait
from dataclasses import dataclass, replace

from flashback.arrangement import Ids
from flashback.engines.local import LocalEngine
from flashback.engines.protocol import Usage
from flashback.errors import FlashBackWarning, PromptTooLong, SettingsError
from flashback.scoring.given import ScoredText, grid_of, score_text
from flashback.server.errors import ApiError, of_settings
from flashback.server.events import (
    ChoiceEnd,
    ChoiceStart,
    Event,
    Incident,
    Piece,
    SpanEnd,
    SpanStart,
    TokenScore,
    Turn,
)
from flashback.server.orders import Conversation, Order
from flashback.server.scheduler import Events, Job
from flashback.server.searching import GuardedRetriever, RetrievalFailed
from flashback.server.service import Service
from flashback.server.token_scores import (
    TokenRecorder,
    text_offsets,
    token_scores,
)
from flashback.settings import Settings
from flashback.writing.generator import Generator, Query, Stride, StrideStart, TextPiece, Writing

_LONGEST_TOKEN = 128
"""Characters; a text of more than that for each position of the window cannot fit."""
_LONGEST_TURN = 64
"""Tokens; a longer stride is written in several turns."""
_FAST_SEARCH = 0.05
"""Seconds; a search that takes longer is not waited for by others."""
_STOPPED = {"length": "length", "stop": "stop", "eos": "stop"}
"""OpenAI's names of why a text ends."""


@dataclass
class _Text:
    """A choice's text so far, as the client sees it."""

    choice: int
    characters: int = 0
    stride: int = 0


@dataclass(frozen=True)
class _Begun:
    """A choice whose prompt was found good."""

    writing: Writing
    recorder: TokenRecorder
    guard: GuardedRetriever | None


class Worker:
    """Works on one order."""

    def __init__(self, service: Service, order: Order, job: Job) -> None:
        self._service = service
        self._order = order
        self._job = job
        self._engine = service.engine

    def _own_engine(self) -> LocalEngine:
        """Without anything cached, and with its share of the memory for passages."""
        engine = self._service.engine
        return engine.another(engine.passages.budget // self._service.settings.max_active)

    def events(self) -> Events:
        """All that happens, with a `Turn` after each stride; errors are the API's."""
        if self._order.fresh_cache:
            self._engine = self._own_engine()
        first = True
        try:
            for event in self._all():
                self._service.metrics.note(event, str(self._order.settings.retrieval.pattern))
                if first and isinstance(event, SpanEnd):
                    first = False
                    self._service.metrics.first_stride(self._job.age)
                yield event
        except (SettingsError, PromptTooLong) as error:
            raise of_settings(error, self._service.reader.name, self._service.model) from error
        finally:
            if self._engine is not self._service.engine:
                self._engine.forget()

    def _all(self) -> Iterator[Event]:
        if self._is_late():
            raise ApiError(429, "the request waited too long for its turn", "queue_timeout")
        prompts = [self._ids(prompt) for prompt in self._order.prompts]
        for ids in prompts:  # all of them, before any is written
            self._check_prompt(ids)
        yield from self._warnings()
        for number, ids in enumerate(prompts):
            for one in range(self._order.n):
                if self._is_late() and self._order.scores_prompt:
                    raise ApiError(503, self._time_limit, "time_limit")
                yield from self._choice(number, one, ids)

    def _ids(self, prompt: str | Ids | Conversation) -> Ids:
        reader = self._service.reader
        if isinstance(prompt, Conversation):
            return prompt.prompt_ids(reader)
        if not isinstance(prompt, str):
            return prompt
        if len(prompt) > _LONGEST_TOKEN * reader.window and not self._order.settings.truncate:
            raise PromptTooLong(
                f"the prompt has {len(prompt)} characters, which cannot fit the reader's window of "
                f"{reader.window} tokens; shorten it"
            )
        return tuple(reader.encode_prompt(prompt))

    def _check_prompt(self, ids: Ids) -> None:
        """Refuse what cannot be written or scored before the answer begins."""
        if not ids:
            raise SettingsError("the prompt is empty; expected at least one token of text")
        size = self._service.reader.vocabulary_size
        if bad := [token for token in ids if not 0 <= token < size]:
            raise SettingsError(f"prompt token {bad[0]}: expected ids from 0 to {size - 1}")
        if self._order.scores_prompt:
            service, order = self._service, self._order
            retrieval = order.settings.retrieval
            grid_of(ids, service.reader, service.retriever, retrieval, order.first_boundary)
        if self._order.write:
            self._begin(0, ids, None).writing.close()

    def _warnings(self) -> Iterator[Event]:
        card = self._service.reader.adapter
        if card is not None and (found := card.differences(self._order.settings.retrieval)):
            message = f"the model's adapter was trained for {'; '.join(found)}"
            yield Incident(0, "warning", message)

    def _choice(self, number: int, one: int, ids: Ids) -> Iterator[Event]:
        """One text: what is echoed of its prompt, then what is written."""
        order, text = self._order, _Text(number * self._order.n + one)
        begun = None
        prompt_tokens = len(ids)
        if order.write:
            begun = self._begin(one, ids, self._conversation(number))
            prompt_tokens = len(begun.writing.prompt_tokens)
        yield ChoiceStart(text.choice, prompt_tokens, one == 0)
        if begun is not None and text.choice and self._is_late():
            begun.writing.close()
            yield Incident(text.choice, "time_limit", self._time_limit, 0)
            yield ChoiceEnd(text.choice, "length", 0, ())
            return
        if order.echo:
            yield from self._echo(text, ids, order.prompts[number])
            yield Turn()
        if begun is None:
            yield ChoiceEnd(text.choice, "length", 0, ())
            return
        if prompt_tokens < len(ids):
            left_out = len(ids) - prompt_tokens
            message = f"the first {left_out} tokens of the prompt were left out to write on"
            yield Incident(text.choice, "prompt_truncated", message)
        begun.recorder.begin(begun.writing.prompt_tokens, text.characters)
        yield from self._write(text, begun)
        yield Turn()

    def _conversation(self, number: int) -> Conversation | None:
        prompt = self._order.prompts[number]
        return prompt if isinstance(prompt, Conversation) else None

    def _begin(self, one: int, ids: Ids, conversation: Conversation | None) -> _Begun:
        order, service = self._order, self._service
        recorder = TokenRecorder(service.reader, order.logprobs, self._job.check)
        guard = self._guard()
        generator = Generator(service.reader, self._engine, guard)
        with warnings.catch_warnings():  # `_warnings` tells the client
            warnings.simplefilter("ignore", FlashBackWarning)
            settings = self._settings_of(one)
            query = None if conversation is None else self._query_of(conversation)
            writing = generator.stream(ids, settings, on_token=recorder, query=query)
            return _Begun(writing, recorder, guard)

    def _settings_of(self, one: int) -> Settings:
        """Every choice of a prompt has a seed of its own."""
        settings = self._order.settings
        seed = (settings.sampling.seed + one) % (1 << 64)
        return replace(
            settings,
            sampling=replace(settings.sampling, seed=seed),
            truncate=settings.truncate or self._order.scores_prompt,
        )

    def _guard(self) -> GuardedRetriever | None:
        service = self._service
        if service.retriever is None:
            return None
        limits = service.settings
        return GuardedRetriever(
            service.retriever, limits.retrieval_limit, limits.on_retrieval_error
        )

    def _query_of(self, conversation: Conversation) -> Query:
        length = self._order.settings.retrieval.query_tokens
        return lambda written: conversation.query(self._service.reader, written, length)

    def _write(self, text: _Text, begun: _Begun) -> Iterator[Event]:
        """The stride loop's events in the client's terms; ends early if it must."""
        reason, writing, turn_began = None, begun.writing, 0
        hurried = False
        try:
            yield from self._first_search(writing)
            for event in writing:
                ended = writing.finish_reason
                unfinished = ended is None or (hurried and ended == "length")
                if isinstance(event, Stride) and self._is_late() and unfinished:
                    reason = "length"
                    yield from self._cut_off(text, begun)
                    yield from self._told(text, begun, event)
                    yield Incident(text.choice, "time_limit", self._time_limit, text.stride)
                    break
                yield from self._told(text, begun, event)
                if isinstance(event, Stride):
                    turn_began = begun.recorder.tokens
                    yield Turn(writing.search())
                elif self._is_late():
                    hurried = True
                    writing.end_soon()
                elif begun.recorder.tokens - turn_began >= _LONGEST_TURN:
                    turn_began = begun.recorder.tokens
                    yield Turn()
            else:
                reason = _STOPPED[writing.result.finish_reason]
                if writing.result.finish_reason != "stop" and (rest := begun.recorder.rest()):
                    yield Piece(text.choice, "", rest)  # an end-of-text token has no text
        except RetrievalFailed as error:
            reason = "stop"
            yield from self._cut_off(text, begun)
            yield Incident(text.choice, "retrieval_error", str(error), text.stride)
        finally:
            if begun.guard is not None:
                begun.guard.abandon()  # others do not wait for it either
            writing.close()
        yield ChoiceEnd(text.choice, reason, begun.recorder.tokens, writing.jumps)

    def _first_search(self, writing: Writing) -> Iterator[Event]:
        """A slow one leaves the turn to others, a fast one does not."""
        search = writing.search()
        if search is not None and not wait([search], _FAST_SEARCH).done:
            yield Turn(search, again=True)

    def _cut_off(self, text: _Text, begun: _Begun) -> Iterator[Event]:
        """What was written, but held back for a stop text or a character's end."""
        held_back = begun.writing.held_back()
        text.characters += len(held_back)
        rest = begun.recorder.rest()
        if held_back or rest:
            yield Piece(text.choice, held_back, rest)

    def _is_late(self) -> bool:
        return self._job.age > self._service.settings.time_limit

    @property
    def _time_limit(self) -> str:
        return f"the request took longer than {self._service.settings.time_limit:g} s"

    def _told(
        self, text: _Text, begun: _Begun, event: StrideStart | TextPiece | Stride
    ) -> Iterator[Event]:
        if isinstance(event, StrideStart):
            if begun.guard is not None and begun.guard.failure is not None:
                failure = begun.guard.failure
                yield Incident(text.choice, "retrieval_error", failure, text.stride)
            yield SpanStart(text.choice, text.stride, text.characters, event.passages)
        elif isinstance(event, TextPiece):
            text.characters += len(event.text)
            scores = begun.recorder.take(text.characters)
            if event.text or scores:
                yield Piece(text.choice, event.text, scores)
        else:
            yield SpanEnd(
                text.choice,
                text.stride,
                text.characters,
                len(event.tokens),
                event.usage,
                event.retrieve_seconds,
            )
            text.stride += 1

    def _echo(self, text: _Text, ids: Ids, prompt: str | Ids | Conversation) -> Iterator[Event]:
        """The prompt as the beginning of the text; scored stride by stride if that was asked."""
        reader = self._service.reader
        given = isinstance(prompt, str)
        shown = prompt if isinstance(prompt, str) else reader.decode(ids)
        text.characters = len(shown)
        if not self._order.scores_prompt:
            yield Piece(text.choice, shown)
            return
        scored, seconds = yield from self._score(ids)
        skipped = len(reader.bos) if given and ids[: len(reader.bos)] == reader.bos else 0
        offsets = text_offsets(reader, ids, skipped if given else len(ids))
        tokens = token_scores(scored, ids, reader, offsets, skipped)
        yield from _scored_spans(text, shown, scored, offsets, tokens, seconds)

    def _score(self, ids: Ids) -> abc.Generator[Event, None, tuple[ScoredText, float]]:
        """The scores of a prompt, and the seconds spent; others have a turn after every pass."""
        order, service = self._order, self._service
        assert order.logprobs is not None
        guard = self._guard()
        try:
            steps = score_text(
                ids,
                service.reader,
                guard,
                order.settings.retrieval,
                order.first_boundary,
                order.logprobs,
            )
            seconds = 0.0
            while True:
                began = time.perf_counter()
                try:
                    next(steps)
                except StopIteration as end:
                    return end.value, seconds + time.perf_counter() - began
                seconds += time.perf_counter() - began
                self._job.check()
                if self._is_late():
                    raise ApiError(503, self._time_limit, "time_limit")
                yield Turn()
        except RetrievalFailed as error:
            raise ApiError(503, f"{error}; nothing was scored", "retrieval_error") from error


def _scored_spans(
    text: _Text,
    shown: str,
    scored: ScoredText,
    offsets: Sequence[int],
    tokens: Sequence[TokenScore],
    seconds: float,
) -> Iterator[Event]:
    """A span for each stride of a given text; together they are the text.

    Args:
        offsets: of all its tokens.
        tokens: the client's own, the last ones.
    """
    skipped = len(offsets) - 1 - len(tokens)
    last = scored.strides[-1]
    for stride in scored.strides:
        start = min(offsets[stride.start], len(shown))
        end = len(shown) if stride is last else min(offsets[stride.end], len(shown))
        own = tokens[max(stride.start - skipped, 0) : stride.end - skipped]
        yield SpanStart(text.choice, text.stride, start, stride.passages, scored=True)
        yield Piece(text.choice, shown[start:end], tuple(own))
        tokens_scored = stride.end - stride.start
        usage = Usage(encode_seconds=seconds / len(scored.strides))
        yield SpanEnd(text.choice, text.stride, end, tokens_scored, usage, 0.0, scored=True)
        text.stride += 1
