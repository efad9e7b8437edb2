"""The stride loop: every s tokens, retrieve, arrange, complete (paper section 3).

Knows the protocols of engines and retrievers, never a concrete one. The rules of a stride, and when
a text ends, are in `text.py`; here one text is driven from event to event.
"""

import operator
import reprlib
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from flashback.engines.protocol import Batch, BatchingEngine, Engine
from flashback.errors import FlashBackWarning, SettingsError, UnsupportedReader
from flashback.patterns.context import Context, context_budget
from flashback.patterns.frame import Frame
from flashback.patterns.pattern import ContextPattern
from flashback.patterns.registry import PATTERNS, best_untrained
from flashback.readers.chat import Conversation, Messages
from flashback.readers.text_reader import TextReader
from flashback.retrieval.protocol import Hit, NoRetriever, Retriever, search
from flashback.sampling import OnToken, Sampler
from flashback.settings import AUTO, RetrievalSettings, Settings, check_type
from flashback.writing.batching import check_batch, write_together
from flashback.writing.chat import ChatTurn, turn_of
from flashback.writing.lookahead import Lookahead
from flashback.writing.stream import Event, Events, StrideStart, TextPiece, Writing
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
class _Plan:
    """Settings of a request, checked against reader, engine and retriever."""

    settings: Settings
    frame: Frame
    reserved: int
    """R."""
    budget: int
    """B, tokens of the context."""


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
        """Start to write behind `prompt`, a text or its token ids.

        Args:
            on_token: see `Sampler`.
            query: the query for what was written so far; None: its last tokens.

        Raises:
            PromptTooLong: the prompt does not fit and `settings.truncate` is false.
            SettingsError: an empty prompt, no retriever, or a window too small for the settings.
        """
        plan = self._plan(settings)
        text = self._begin(prompt, plan, on_token)
        text.query = query
        self._warn_if_untrained(plan.settings.retrieval)
        return self._writing(text)

    def chat(self, messages: Messages, settings: Settings | None = None) -> Generation:
        """Answer a conversation to the end. See `stream_chat`."""
        return self.stream_chat(messages, settings).finish()

    def stream_chat(self, messages: Messages, settings: Settings | None = None) -> Writing:
        """Start to answer a conversation, with the reader's chat template.

        Args:
            messages: see `Conversation.of`; a last one of the assistant is continued.
            settings: with `truncate`, a conversation that outgrew the window goes on without its
                oldest exchanges; see `Generation.cut`.

        Raises:
            ChatTemplateError: there is no template, or it refuses the messages.
            PromptTooLong, SettingsError: as `stream`.
        """
        return self.stream_turn(self.turn(Conversation.of(messages), settings))

    def turn(self, conversation: Conversation, settings: Settings | None = None) -> ChatTurn:
        """The prompt of a conversation, cut to what fits. Raises as `stream_chat`."""
        settings = self._plan(settings).settings
        return turn_of(conversation, self.reader, settings, lambda one: self._plan(one).budget)

    def stream_turn(self, turn: ChatTurn, on_token: OnToken | None = None) -> Writing:
        """Start to write a turn. See `stream`."""
        plan = self._plan(turn.settings)
        text = self._begin(turn.prompt.ids, plan, on_token)
        text.query, text.begun, text.cut = turn.query, turn.prompt.begun, turn.cut
        self._warn_if_untrained(plan.settings.retrieval)
        return self._writing(text)

    def generate_batch(
        self,
        prompts: Sequence[str | Sequence[int]],
        settings: Settings | None = None,
        *,
        batch_size: int = 8,
    ) -> list[Generation]:
        """Write many texts to the end, in the order of their prompts. See `stream_batch`."""
        check_batch(prompts, batch_size)
        prompts = list(prompts)
        if not prompts:
            return []
        done = dict(self.stream_batch(prompts, settings, batch_size=min(batch_size, len(prompts))))
        return [done[number] for number in range(len(prompts))]

    def stream_batch(
        self,
        prompts: Iterable[str | Sequence[int]],
        settings: Settings | None = None,
        *,
        batch_size: int = 8,
    ) -> Iterator[tuple[int, Generation]]:
        """Write many texts in batches; yields each with its number as soon as it is finished.

        In float32 every text is what it would be alone. Where the engine cannot do that, texts are
        written one by one, and a `FlashBackWarning` says so.

        Args:
            batch_size: texts at a time; each needs a KV cache of its own.

        Raises:
            As `stream`, when the prompt's turn comes; SettingsError at once, if `prompts` is one
            text or `batch_size` is below 1.
        """
        check_batch(prompts, batch_size)
        plan = self._plan(settings)
        self._warn_if_untrained(plan.settings.retrieval)
        texts = enumerate(self._begin(prompt, plan) for prompt in prompts)
        batch = self._open_batch(batch_size)
        if batch is not None:
            return write_together(batch, texts, self.find)
        return ((number, self._writing(text).finish()) for number, text in texts)

    def check(self, prompt: str | Sequence[int], settings: Settings | None = None) -> None:
        """Refuse a prompt or settings that `stream` would refuse, without writing.

        Raises:
            As `stream`.
        """
        self._context(prompt, self._plan(settings))

    def settled(self, settings: Settings) -> Settings:
        """The same settings, with the pattern that `auto` stands for.

        That of the reader's adapter; `append` for a reader with marking tokens; else what an
        untrained reader reads best: a slot, or with a `FlashBackWarning` prepended passages.
        """
        if settings.retrieval.pattern != AUTO:
            return settings
        return replace(settings, retrieval=replace(settings.retrieval, pattern=self._own_pattern))

    def supports(self, pattern: ContextPattern) -> bool:
        """Whether engine and reader support a pattern."""
        return self.reader.can_have(pattern) and (
            self.engine.capabilities.slot or not pattern.isolated
        )

    def find(self, queries: Sequence[str], retrieval: RetrievalSettings) -> list[list[Hit]]:
        """The passages for each query; none in a pattern without passages."""
        retriever = self.retriever
        if retriever is None or not retrieval.retrieves:
            retriever = NoRetriever()
        return search(retriever, queries, retrieval)

    @property
    def _own_pattern(self) -> str:
        if self.reader.adapter is not None:
            return self.reader.adapter.pattern
        if self.reader.marks is not None:  # an exported checkpoint, trained to read them
            return "append"
        best = best_untrained(self.supports)
        if best != best_untrained(lambda _: True):
            warnings.warn(
                f"the reader or the engine does not support a slot; passages go where --pattern "
                f"{best} puts them",
                FlashBackWarning,
                stacklevel=4,
            )
        return best

    def _plan(self, settings: Settings | None) -> _Plan:
        """Check settings against reader, engine and retriever.

        Raises:
            SettingsError: there is no retriever, the window is too small, or reader or engine do
                not support the pattern.
        """
        check_type("settings", settings, Settings | None)
        settings = self.settled(settings or Settings())
        retrieval = settings.retrieval
        retrieval.check_retriever(self.retriever)
        retrieval.check_lookahead()
        frame = self.reader.frame(retrieval.frame, retrieval.pattern)
        passages, tokens = retrieval.passages, retrieval.passage_tokens
        window = self.engine.capabilities.window
        budget = context_budget(window, passages, tokens, len(frame), retrieval.stride)
        pattern = PATTERNS[retrieval.pattern]
        self.reader.check_pattern(pattern.name)
        if not self.supports(pattern):
            raise SettingsError(
                f"--pattern {pattern}: this engine reserves no positions before the text; use "
                "append or prepend"
            )
        return _Plan(settings, frame, pattern.reserved(passages, tokens, frame), budget)

    def _begin(
        self, prompt: str | Sequence[int], plan: _Plan, on_token: OnToken | None = None
    ) -> Text:
        """A text with nothing written yet."""
        context = self._context(prompt, plan)
        sampling = plan.settings.sampling
        return Text(
            self.reader,
            plan.settings,
            plan.frame,
            context,
            Sampler(sampling, context.ids, self.reader.forbidden, on_token),
            plan.reserved,
        )

    def _context(self, prompt: str | Sequence[int], plan: _Plan) -> Context:
        """The prompt's ids within the budget.

        Raises:
            PromptTooLong: see `stream`.
            SettingsError: the prompt is empty, neither text nor ids, or has ids that the reader
                does not know.
        """
        if isinstance(prompt, str):
            ids = self.reader.encode_prompt(prompt)
        else:
            ids, size = _token_ids(prompt), self.reader.vocabulary_size
            if bad := [token for token in ids if not 0 <= token < size]:
                raise SettingsError(f"prompt token {bad[0]}: expected ids from 0 to {size - 1}")
        return Context.of_prompt(ids, self.reader.bos, plan.budget, plan.settings.truncate)

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


def _token_ids(prompt: object) -> list[int]:
    """The ids of a prompt that is no text.

    Raises:
        SettingsError: it is no sequence of whole numbers.
    """
    try:
        if not isinstance(prompt, Iterable) or isinstance(prompt, bytes):
            raise TypeError
        return [operator.index(token) for token in prompt]
    except TypeError:
        raise SettingsError(
            f"prompt {reprlib.repr(prompt)}: expected a text or token ids"
        ) from None
