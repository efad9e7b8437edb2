"""What a request is written with: its settings, checked against reader, engine and retriever."""

import operator
import reprlib
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from flashback.declared import AUTO
from flashback.engines.protocol import Engine
from flashback.errors import FlashBackWarning, SettingsError
from flashback.patterns.context import Context, context_budget
from flashback.patterns.frame import Frame
from flashback.patterns.pattern import ContextPattern
from flashback.patterns.registry import PATTERNS, best_untrained
from flashback.readers.text_reader import TextReader
from flashback.retrieval.protocol import Retriever
from flashback.settings import RetrievalSettings, Settings


@dataclass(frozen=True)
class Plan:
    """Settings of a request, checked against reader, engine and retriever."""

    settings: Settings
    """With the name of a pattern, not `auto`."""
    frame: Frame
    reserved: int
    """R."""
    budget: int
    """B, tokens of the context."""
    block: int = 1
    """See `Capabilities.block`."""

    def context(self, prompt: str | Sequence[int], reader: TextReader) -> Context:
        """A prompt's ids within the budget.

        Raises:
            PromptTooLong: it does not fit, and `settings.truncate` is false.
            SettingsError: it is empty, neither text nor ids, or has ids that the reader does not
                know.
        """
        if isinstance(prompt, str):
            ids = reader.encode_prompt(prompt)
        else:
            ids, size = _token_ids(prompt), reader.vocabulary_size
            if bad := [token for token in ids if not 0 <= token < size]:
                raise SettingsError(f"prompt token {bad[0]}: expected ids from 0 to {size - 1}")
        return Context.of_prompt(ids, reader.bos, self.budget, self.settings.truncate)


@dataclass(frozen=True)
class Planner:
    """Plans requests to a reader and the engine that runs it."""

    reader: TextReader
    engine: Engine
    retriever: Retriever | None

    def plan(self, settings: Settings) -> Plan:
        """Check settings.

        Raises:
            SettingsError: there is no retriever, the window is too small, or reader or engine do
                not support the pattern.
        """
        settings = self.settled(settings)
        retrieval = settings.retrieval
        retrieval.check_retriever(self.retriever)
        retrieval.check_lookahead()
        frame = self.reader.frame(retrieval.frame, retrieval.pattern)
        passages, tokens = retrieval.passages, retrieval.passage_tokens
        able = self.engine.capabilities
        pattern = PATTERNS[retrieval.pattern]
        self.check_pattern(pattern.name)
        room = able.window
        if pattern.isolated and able.slot_in_front:
            _check_front(retrieval, frame)
            room -= able.block - 1
        budget = context_budget(room, passages, tokens, len(frame), retrieval.stride)
        reserved = pattern.reserved(passages, tokens, frame)
        return Plan(settings, frame, reserved, budget, able.block)

    def check_pattern(self, name: str) -> None:
        """Refuse a pattern that reader or engine do not support.

        Raises:
            SettingsError: there is no such pattern, or they do not support it.
        """
        self.reader.check_pattern(name)
        if not self.supports(PATTERNS[name]):
            raise SettingsError(
                f"--pattern='{name}': this engine has no slot; use append or prepend"
            )

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

    def _is_default(self, pattern: ContextPattern) -> bool:
        """Whether `auto` may stand for a pattern, in texts and in chats."""
        here = not (pattern.isolated and self.engine.capabilities.slot_in_front)
        return here and self.supports(pattern)

    @property
    def _own_pattern(self) -> str:
        if self.reader.adapter is not None:
            return self.reader.adapter.pattern
        if self.reader.marks is not None:  # an exported checkpoint, trained to read them
            return "append"
        best = best_untrained(self._is_default)
        if best != best_untrained(lambda _: True):
            reason = "the reader or the engine does not support a slot"
            if self.engine.capabilities.slot_in_front:
                reason = "this engine has a slot in front of texts only, with --pattern='slot'"
            warnings.warn(
                f"{reason}; passages go where --pattern={best!r} puts them",
                FlashBackWarning,
                stacklevel=4,
            )
        return best


def _check_front(retrieval: RetrievalSettings, frame: Frame) -> None:
    """Refuse a slot behind more than a sink, of an engine that has none there."""
    if retrieval.history_tokens > len(frame.sink):
        raise SettingsError(
            "--pattern='slot': this engine has it in front of a text only, not in a chat or behind "
            "--history-tokens; use append or prepend"
        )


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
            f"prompt={reprlib.repr(prompt)}: expected a text or token ids"
        ) from None
