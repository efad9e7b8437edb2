"""Runs one checked request: its prompts are tokenized and checked, then its choices are written.

Everything that uses the tokenizer or the model runs here, so on a thread of the engine. A `Turn`
after each stride lets the scheduler run other requests.
"""

import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace

from flashback.engines.protocol import CachingEngine, Engine
from flashback.errors import ChatTemplateError, FlashBackWarning, PromptTooLong, SettingsError
from flashback.patterns.prompt import Ids
from flashback.readers.chat import Conversation
from flashback.readers.passages import LONGEST_TOKEN
from flashback.retrieval.protocol import Retriever
from flashback.scoring.given import grid_of
from flashback.server.checked_request import CheckedRequest, PromptInput
from flashback.server.choice import Begun, ChoiceRun, Progress, TimeLimit
from flashback.server.errors import ApiError, of_settings
from flashback.server.events import ChoiceEnd, ChoiceStart, Event, Incident, SpanEnd, Turn
from flashback.server.prompt_echo import PromptEcho
from flashback.server.scheduler import Events, Job
from flashback.server.searching import GuardedRetriever
from flashback.server.service import Service
from flashback.server.token_scores import TokenRecorder
from flashback.settings import Settings
from flashback.writing.chat import ChatTurn
from flashback.writing.generator import Generator

_FILTERS = threading.Lock()
"""Python's filters of warnings are those of all threads."""


class Runner:
    """Runs one request."""

    def __init__(self, service: Service, request: CheckedRequest, job: Job) -> None:
        self._service = service
        self._request = request
        self._job = job
        self._limit = TimeLimit(job, service.settings.time_limit)
        self._engine: Engine = service.engine
        self._retriever: Retriever | None = None
        """The version of the index that the whole request is answered from."""

        self._turn: ChatTurn | None = None
        """Of a conversation, which is the only prompt of its request."""

    def events(self) -> Events:
        """All events of the request.

        Raises:
            ApiError: it is refused, or cannot be finished.
        """
        self._retriever = self._service.current_retriever
        fresh = self._fresh_engine()
        if fresh is not None:
            self._engine = fresh
        try:
            yield from self._counted(self._choices())
        except (ChatTemplateError, SettingsError, PromptTooLong) as error:
            raise of_settings(error, self._service.reader.name, self._service.model) from error
        finally:
            if fresh is not None:
                fresh.forget()

    def _fresh_engine(self) -> CachingEngine | None:
        """An engine with empty caches and 1/max_active of the budget, if asked for."""
        if not self._request.fresh_cache:
            return None
        engine = self._service.caching_engine
        assert engine is not None, "see parsing.py"
        return engine.fresh(self._service.settings.max_active)

    def _counted(self, events: Iterator[Event]) -> Iterator[Event]:
        metrics, pattern = self._service.metrics, self._request.settings.retrieval.pattern
        first = True
        for event in events:
            metrics.note(event, pattern)
            if first and isinstance(event, SpanEnd):
                first = False
                metrics.first_stride(self._job.age)
            yield event

    def _choices(self) -> Iterator[Event]:
        if self._limit.is_over():
            raise ApiError(429, "the request waited too long for its turn", "queue_timeout")
        prompts = [self._ids(prompt) for prompt in self._request.prompts]
        for ids in prompts:  # all of them, before the first is written
            self._check_prompt(ids)
        yield from self._warnings()
        for number, ids in enumerate(prompts):
            for sample in range(self._request.n):
                if self._limit.is_over() and self._request.scores_prompt:
                    raise ApiError(503, self._limit.message, "time_limit")
                yield from self._choice(number, sample, ids)

    def _ids(self, prompt: PromptInput) -> Ids:
        reader = self._service.reader
        if isinstance(prompt, Conversation):
            return self._conversation_ids(prompt)
        if not isinstance(prompt, str):
            return prompt
        if len(prompt) > LONGEST_TOKEN * reader.window and not self._request.settings.truncate:
            raise PromptTooLong(
                f"the prompt has {len(prompt)} characters, which cannot fit the reader's window of "
                f"{reader.window} tokens; shorten it"
            )
        return tuple(reader.encode_prompt(prompt))

    def _conversation_ids(self, conversation: Conversation) -> Ids:
        """The prompt; passages are shown in the template's own turns from now on."""
        turn = self._service.generator.turn(conversation, self._request.settings)
        self._turn, self._request = turn, replace(self._request, settings=turn.settings)
        return turn.prompt.ids

    def _check_prompt(self, ids: Ids) -> None:
        """Refuse what cannot be written or scored before the answer begins."""
        if not ids:
            raise SettingsError("the prompt is empty; expected at least one token of text")
        size = self._service.reader.vocabulary_size
        if bad := [token for token in ids if not 0 <= token < size]:
            raise SettingsError(f"prompt token {bad[0]}: expected ids from 0 to {size - 1}")
        if self._request.scores_prompt:
            service, retrieval = self._service, self._request.settings.retrieval
            first_boundary = self._request.first_boundary
            grid_of(ids, service.reader, self._retriever, retrieval, first_boundary)
        if self._request.write:
            self._service.generator.check(ids, self._settings_of(0))

    def _warnings(self) -> Iterator[Event]:
        reader, retrieval = self._service.reader, self._request.settings.retrieval
        if reader.adapter is not None and (found := reader.adapter.differences(retrieval)):
            message = f"the model's adapter was trained for {'; '.join(found)}"
            yield Incident(0, "warning", message)
        chosen = (
            retrieval.pattern != self._service.defaults.pattern
        )  # else it was said at the start
        if chosen and (note := reader.untrained_for(retrieval.pattern)):
            yield Incident(0, "warning", note)

    def _choice(self, number: int, sample: int, ids: Ids) -> Iterator[Event]:
        """One choice: its prompt, if that is echoed, then its continuation.

        Args:
            number: which prompt of the request.
            sample: which of the prompt's `n` choices.
            ids: the prompt.
        """
        request, prompt = self._request, self._request.prompts[number]
        progress = Progress(number * request.n + sample)
        begun = self._begin(sample, ids) if request.write else None
        prompt_tokens = len(ids) if begun is None else len(begun.writing.prompt_tokens)
        yield ChoiceStart(progress.choice, prompt_tokens + self._head_tokens, sample == 0)
        if begun is not None and progress.choice and self._limit.is_over():
            begun.writing.close()
            yield Incident(progress.choice, "time_limit", self._limit.message, 0)
            yield ChoiceEnd(progress.choice, "length", 0, ())
            return
        if request.echo:
            echo = PromptEcho(self._service, request, self._limit)
            yield from echo.events(progress, ids, prompt, self._guard())
            yield Turn()
        if begun is None:
            yield ChoiceEnd(progress.choice, "length", 0, ())
            return
        yield from self._written(progress, begun, ids)

    @property
    def _head_tokens(self) -> int:
        """Tokens of a conversation that stand before a passage: its frame has them."""
        retrieval = self._request.settings.retrieval
        return len(self._service.reader.frame(retrieval.frame, retrieval.pattern).no_passage)

    def _written(self, progress: Progress, begun: Begun, ids: Ids) -> Iterator[Event]:
        used = begun.writing.prompt_tokens
        if self._turn is not None and self._turn.cut is not None:
            yield Incident(progress.choice, "prompt_truncated", str(self._turn.cut))
        if (cut := len(ids) - len(used)) > 0:
            message = f"the first {cut} tokens of the prompt were left out to make room"
            yield Incident(progress.choice, "prompt_truncated", message)
        begun.recorder.begin(used, progress.characters)
        yield from ChoiceRun(progress, begun, self._limit).events()
        yield Turn()

    def _begin(self, sample: int, ids: Ids) -> Begun:
        request, service = self._request, self._service
        recorder = TokenRecorder(service.reader, request.logprobs, self._job.check)
        guard = self._guard()
        generator = Generator(service.reader, self._engine, guard)
        settings = self._settings_of(sample)
        with _FILTERS, warnings.catch_warnings():  # `_warnings` sends them to the client
            warnings.simplefilter("ignore", FlashBackWarning)
            if self._turn is None:
                writing = generator.stream(ids, settings, on_token=recorder)
            else:
                writing = generator.stream_turn(replace(self._turn, settings=settings), recorder)
            return Begun(writing, recorder, guard)

    def _settings_of(self, sample: int) -> Settings:
        """The settings of one of a prompt's choices: each has the next seed."""
        settings = self._request.settings
        seed = (settings.sampling.seed + sample) % (1 << 64)
        return replace(
            settings,
            sampling=replace(settings.sampling, seed=seed),
            truncate=settings.truncate or self._request.scores_prompt,
        )

    def _guard(self) -> GuardedRetriever | None:
        limits, retriever = self._service.settings, self._retriever
        if retriever is None:
            return None
        return GuardedRetriever(retriever, limits.retrieval_limit, limits.on_retrieval_error)
