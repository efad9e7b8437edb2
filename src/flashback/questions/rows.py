"""The rows of a table of answers: plain RAG, then every pattern, with and without adapters."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flashback.evaluation.arms import Arm, adapter_arms, with_unique_names
from flashback.patterns.registry import PATTERNS
from flashback.questions.formats import Question
from flashback.questions.forms import IN_FRONT, Pasted, conversation_of
from flashback.questions.passages import Asked
from flashback.questions.question_settings import Form
from flashback.readers.text_reader import TextReader
from flashback.settings import RetrievalSettings

PLAIN_RAG = "plain RAG"
KEPT = "plain RAG, kept"


@dataclass(frozen=True)
class Row:
    """One way to answer every question."""

    arm: Arm
    pasted: bool = False
    """Whether passages are pasted into the prompt, which then is read without any (plain RAG)."""
    kept: bool = False
    """Whether those of earlier turns stay where they were pasted; else a history is clean."""

    @property
    def name(self) -> str:
        """Such as `plain RAG`, `append`, `append + LoRA, trained marks`."""
        if self.pasted:
            return KEPT if self.kept else PLAIN_RAG
        return self.arm.pattern if self.arm.adapter is None else self.arm.name

    @property
    def retrieves(self) -> bool:
        """Whether passages stand where a pattern puts them."""
        return PATTERNS[self.arm.pattern].retrieves

    def has_passages(self, asked: Asked) -> bool:
        """Whether a reader sees the passages of a question, pasted or where a pattern puts them."""
        return bool(asked.hits) and (self.pasted or self.retrieves)

    def pasted_into(self, asked: Asked) -> Pasted:
        """What stands in the prompt of a question as text."""
        shown = len(asked.hits) if self.has_passages(asked) else 0
        if not self.pasted:
            return Pasted(shown=shown)
        earlier = [one.shown for one in asked.earlier] if self.kept else []
        return Pasted(asked.shown, earlier, shown)

    def given(self, form: Form, given: RetrievalSettings) -> RetrievalSettings:
        """The row's settings: its pattern and its frame.

        Args:
            given: by the user.
        """
        framed = self.arm.adapter is None and self.retrieves
        frame = given.frame if framed else None
        front = form is Form.IN_CONTEXT_RALM and not PATTERNS[self.arm.pattern].echoes
        if framed and frame is None and front:
            frame = IN_FRONT
        return replace(given, pattern=self.arm.pattern, frame=frame)

    def asked_with(
        self, reader: TextReader, form: Form, question: Question, given: RetrievalSettings
    ) -> RetrievalSettings:
        """See `given`, and in a chat where the passages of a question stand."""
        own = self.given(form, given)
        if not self.retrieves or form is not Form.CHAT:
            return own
        found = conversation_of(question).prompt(reader, own).retrieval
        return found if self.arm.adapter is None else replace(found, frame=None)

    def described(self, reader: TextReader, retrieval: RetrievalSettings) -> dict[str, Any]:
        """The row as plain data, with the frame as a reader without an adapter sees it."""
        shown = None
        if self.retrieves and self.arm.adapter is None:
            around = reader.frame(retrieval.frame, self.arm.pattern)
            shown = {
                "before": reader.show(around.before),
                "after": reader.show(around.after),
                "echo_tokens": around.echo if PATTERNS[self.arm.pattern].echoes else 0,
            }
        return {
            "name": self.name,
            "pattern": self.arm.pattern,
            "pasted": self.pasted,
            "adapter": None if self.arm.adapter is None else str(self.arm.adapter),
            "trained_for": self.arm.trained_for,
            "marks": str(self.arm.marks),
            "frame": shown,
        }


def rows_of(
    patterns: Sequence[str], adapters: Sequence[Path], *, conversations: bool = False
) -> list[Row]:
    """Plain RAG, every pattern without an adapter, every pattern with each adapter.

    Args:
        conversations: with a row of plain RAG whose earlier passages stay in the history.

    Raises:
        AdapterError: a folder is no adapter.
    """
    adapted = [arm for adapter in adapters for arm in adapter_arms(adapter, patterns)]
    untrained = [Row(Arm(pattern)) for pattern in dict.fromkeys(patterns)]
    plain = [
        Row(Arm("none"), pasted=True, kept=kept) for kept in (False, True)[: 1 + conversations]
    ]
    return [*plain, *untrained, *map(Row, with_unique_names(adapted))]
