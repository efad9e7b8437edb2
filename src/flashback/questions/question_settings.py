"""How questions are asked: the form of a prompt, the sample, the length of an answer."""

from dataclasses import dataclass
from enum import StrEnum

from flashback.declared import AUTO, CheckedSettings, setting


class Form(StrEnum):
    """The form in which a question is asked."""

    CHAT = "chat"
    """The question is what a user says; the reader's chat template makes a prompt of it."""
    QUESTION = "question"
    """`Question: ...` and `Answer:`, each on its line."""
    FEW_SHOT = "few-shot"
    """The same behind solved examples."""
    COMPLETION = "completion"
    """The file's own text, which the answer continues."""
    IN_CONTEXT_RALM = "in-context-ralm"
    """The prompt of In-Context RALM's question answering (Ram et al. 2023, section 7)."""


@dataclass(frozen=True)
class QuestionSettings(CheckedSettings):
    """Which questions of a file are asked, and how."""

    form: str = setting(
        AUTO,
        "How a question is asked. auto: chat if the model has a chat template, else question. "
        "few-shot: behind solved examples. completion: the file's own text, to be continued. "
        "in-context-ralm: as Ram et al. 2023 ask. Conversations need chat.",
        choices=Form,
        auto=True,
    )
    examples: int = setting(
        4, "Solved examples of --form few-shot, other questions of the file.", low=1, high=100
    )
    oracle: bool = setting(
        False,
        "Show each question's own passage from the file; if the file names passages by their "
        "documents' ids, from --index.",
    )
    limit: int = setting(0, "Ask a sample of this many questions; 0: all.", low=0, high=1 << 30)
    seed: int = setting(0, "Decides the sample and the solved examples.", low=0, high=1 << 62)
    max_new_tokens: int = setting(32, "Tokens of an answer at most.", low=1, high=1 << 14)
    stop: tuple[str, ...] = setting(
        (),
        "End an answer before this text (repeatable; default: a line break, in a chat nothing).",
    )
    batch_size: int = setting(8, "Answers that are written at a time.", low=1, high=4096)

    def stops(self, form: Form) -> tuple[str, ...]:
        """The texts before which an answer ends."""
        return self.stop or (() if form is Form.CHAT else ("\n",))
