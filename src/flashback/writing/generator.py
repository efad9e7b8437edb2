"""The stride loop: every s tokens, retrieve, arrange, complete (paper section 3).

Knows the protocols of engines and retrievers, never a concrete one. The rules of a stride, and when
a text ends, are in `text.py`; here one text is driven from event to event.
"""

import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

from flashback.engines.protocol import Batch, BatchingEngine, Engine
from flashback.errors import FlashBackWarning, UnsupportedReader
from flashback.patterns.pattern import ContextPattern
from flashback.readers.chat import Conversation
from flashback.readers.messages import Messages
from flashback.readers.text_reader import TextReader
from flashback.retrieval.protocol import Hit, NoRetriever, Retriever, search
from flashback.sampling import Constraint, OnToken, Sampler
from flashback.settings import RetrievalSettings, Settings
from flashback.writing.arguments import changed
from flashback.writing.batching import check_batch, write_together
from flashback.writing.chat import ChatTurn, turn_of
from flashback.writing.lookahead import Lookahead
from flashback.writing.plan import Plan, Planner
from flashback.writing.stream import Event, Events, StrideStart, TextPiece, Writing
from flashback.writing.structured import constraint_of
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


class Generator:
    """Writes text with a reader, retrieving passages on the way."""

    def __init__(self, reader: TextReader, engine: Engine, retriever: Retriever | None) -> None:
        """Put the parts together.

        Args:
            reader: tokenizer, frame and special tokens; `engine` runs the model.
            engine: completes prompts.
            retriever: finds passages; None is enough for the pattern `none`.
        """
        self.reader = reader
        self.engine = engine
        self.retriever = retriever

    @overload
    def generate(
        self, prompt: str | Sequence[int], settings: Settings | None = None, **named: Any
    ) -> Generation: ...

    @overload
    def generate(
        self, prompt: list[str] | list[list[int]], settings: Settings | None = None, **named: Any
    ) -> list[Generation]: ...

    def generate(
        self, prompt: Any, settings: Settings | None = None, **named: Any
    ) -> Generation | list[Generation]:
        """Write to the end: a text, or many of them behind a list of prompts.

        Args:
            prompt: a text or its token ids; a list of them is written by `generate_batch`.
            settings, named: see `stream`.

        Raises:
            See `stream`.
        """
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list | tuple):
            return self.generate_batch(prompt, settings, **named)
        return self.stream(prompt, settings, **named).finish()

    def stream(
        self,
        prompt: str | Sequence[int],
        settings: Settings | None = None,
        *,
        on_token: OnToken | None = None,
        query: Query | None = None,
        **named: Any,
    ) -> Writing:
        """Start to write behind `prompt`, a text or its token ids.

        Args:
            settings: None: the defaults.
            on_token: see `Sampler`.
            query: the query for what was written so far; None: its last tokens.
            named: settings by name, such as `max_new_tokens=32, pattern="append"`; they replace
                those of `settings`.

        Raises:
            PromptTooLong: the prompt does not fit and `settings.truncate` is false.
            SettingsError: an empty prompt, no retriever, or a window too small for the settings.
        """
        plan = self._planner.plan(changed(settings, named))
        text = self._begin(prompt, plan, on_token)
        text.query = query
        self._warn_if_untrained(plan.settings.retrieval)
        return self._writing(text)

    def chat(
        self, messages: Messages, settings: Settings | None = None, **named: Any
    ) -> Generation:
        """Answer a conversation to the end. See `stream_chat`."""
        return self.stream_chat(messages, settings, **named).finish()

    def stream_chat(
        self, messages: Messages, settings: Settings | None = None, **named: Any
    ) -> Writing:
        """Start to answer a conversation, with the reader's chat template.

        Args:
            messages: see `Conversation.of`; a last one of the assistant is continued.
            settings: with `truncate`, a conversation that outgrew the window goes on without its
                oldest exchanges; see `Generation.cut`.
            named: settings by name, see `stream`.

        Raises:
            ChatTemplateError: there is no template, or it refuses the messages.
            PromptTooLong, SettingsError: as `stream`.
        """
        return self.stream_turn(self.turn(Conversation.of(messages), changed(settings, named)))

    def turn(self, conversation: Conversation, settings: Settings | None = None) -> ChatTurn:
        """The prompt of a conversation, cut to what fits. Raises as `stream_chat`."""
        planner = self._planner
        settings = planner.plan(changed(settings, {})).settings
        return turn_of(conversation, self.reader, settings, lambda one: planner.plan(one).budget)

    def stream_turn(self, turn: ChatTurn, on_token: OnToken | None = None) -> Writing:
        """Start to write a turn. See `stream`."""
        plan = self._planner.plan(turn.settings)
        text = self._begin(turn.prompt.ids, plan, on_token, turn.prompt.begun)
        text.query, text.begun, text.cut = turn.query, turn.prompt.begun, turn.cut
        self._warn_if_untrained(plan.settings.retrieval)
        return self._writing(text)

    def generate_batch(
        self,
        prompts: Sequence[str | Sequence[int]],
        settings: Settings | None = None,
        *,
        batch_size: int = 8,
        **named: Any,
    ) -> list[Generation]:
        """Write many texts to the end, in the order of their prompts. See `stream_batch`."""
        check_batch(prompts, batch_size)
        prompts = list(prompts)
        if not prompts:
            return []
        rows = min(batch_size, len(prompts))
        done = dict(self.stream_batch(prompts, settings, batch_size=rows, **named))
        return [done[number] for number in range(len(prompts))]

    def stream_batch(
        self,
        prompts: Iterable[str | Sequence[int]],
        settings: Settings | None = None,
        *,
        batch_size: int = 8,
        batch: Batch | None = None,
        **named: Any,
    ) -> Iterator[tuple[int, Generation]]:
        """Write many texts in batches; yields each with its number as soon as it is finished.

        In float32 every text is what it would be alone. Where the engine cannot do that, texts are
        written one by one, and a `FlashBackWarning` says so.

        Args:
            batch_size: texts at a time; each needs a KV cache of its own.
            batch: from `open_batch`, to reuse what it has cached; its rows count instead of
                `batch_size`. None: an empty one.
            named: settings by name, see `stream`.

        Raises:
            As `stream`, when the prompt's turn comes; SettingsError at once, if `prompts` is one
            text or `batch_size` is below 1.
        """
        check_batch(prompts, batch_size)
        plan = self._planner.plan(changed(settings, named))
        self._warn_if_untrained(plan.settings.retrieval)
        texts = enumerate(self._begin(prompt, plan) for prompt in prompts)
        if batch is None:
            batch = self.open_batch(batch_size)
        if batch is not None:
            return write_together(batch, texts, self.find)
        return ((number, self._writing(text).finish()) for number, text in texts)

    def open_batch(self, rows: int) -> Batch | None:
        """Empty caches for so many texts; None, with a warning: the engine writes one by one."""
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

    def check(self, prompt: str | Sequence[int], settings: Settings | None = None) -> None:
        """Refuse a prompt or settings that `stream` would refuse, without writing.

        Raises:
            As `stream`.
        """
        plan = self._planner.plan(changed(settings, {}))
        plan.context(prompt, self.reader)
        self._constraint(plan.settings, ())

    def settled(self, settings: Settings) -> Settings:
        """See `Planner.settled`."""
        return self._planner.settled(settings)

    def check_pattern(self, name: str) -> None:
        """See `Planner.check_pattern`."""
        self._planner.check_pattern(name)

    def supports(self, pattern: ContextPattern) -> bool:
        """Whether engine and reader support a pattern."""
        return self._planner.supports(pattern)

    @property
    def _planner(self) -> Planner:
        return Planner(self.reader, self.engine, self.retriever)

    def find(self, queries: Sequence[str], retrieval: RetrievalSettings) -> list[list[Hit]]:
        """The passages for each query; none in a pattern without passages."""
        retriever = self.retriever
        if retriever is None or not retrieval.retrieves:
            retriever = NoRetriever()
        return search(retriever, queries, retrieval)

    def _begin(
        self,
        prompt: str | Sequence[int],
        plan: Plan,
        on_token: OnToken | None = None,
        begun: int = 0,
    ) -> Text:
        """A text with nothing written yet, but the prompt's last `begun` tokens."""
        context = plan.context(prompt, self.reader)
        sampling, stopping = plan.settings.sampling, plan.settings.stopping
        ends = () if stopping.ignore_eos else self.reader.eos
        written = context.ids[len(context.ids) - begun :]
        constraint = self._constraint(plan.settings, written)
        return Text(
            self.reader,
            plan.settings,
            plan.frame,
            context,
            Sampler(sampling, context.ids, self.reader.forbidden, on_token, constraint, ends),
            plan.reserved,
            plan.block,
        )

    def _constraint(self, settings: Settings, begun: Sequence[int]) -> Constraint | None:
        here = self.engine.capabilities.chooses_here
        return constraint_of(settings, self.reader, begun, chosen_here=here)

    def _warn_if_untrained(self, retrieval: RetrievalSettings) -> None:
        card = self.reader.adapter
        if card is not None and (found := card.differences(retrieval)):
            warnings.warn(
                f"the adapter on {self.reader.name} was trained for {'; '.join(found)}",
                FlashBackWarning,
                stacklevel=3,
            )

    def _writing(self, text: Text) -> Writing:
        def find(query: str) -> tuple[Hit, ...]:
            return tuple(self.find([query], text.settings.retrieval)[0])

        lookahead = Lookahead(find)
        return Writing(self._events(text, lookahead), text, lookahead)

    def _events(self, text: Text, lookahead: Lookahead) -> Events:
        with lookahead:
            while text.finish_reason is None:
                yield from self._stride(text, lookahead)

    def _stride(self, text: Text, lookahead: Lookahead) -> Events:
        hits, retrieve_seconds = lookahead.hits(text.begin_stride())
        arranging = time.perf_counter()
        prompt = text.arrange(hits)
        retrieve_seconds += time.perf_counter() - arranging
        yield StrideStart(len(text.strides), hits, prompt.arranged)

        with self.engine.complete(prompt, text.stride_tokens, text.sampler) as completion:
            for token in completion:
                piece = text.take(token)
                query = text.next_query
                if query is not None and not lookahead.begun and text.finish_reason is None:
                    lookahead.begin(query)
                yield TextPiece(piece)
                if text.finish_reason is not None:
                    break
        yield text.end_stride(completion.usage, retrieve_seconds)
