"""A question as a prompt: in a chat, as a question, behind solved examples, or to be continued."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flashback.declared import AUTO
from flashback.errors import SettingsError
from flashback.patterns.prompt import Ids
from flashback.questions.formats import Question, QuestionFile
from flashback.questions.question_settings import Form, QuestionSettings
from flashback.readers.chat import ChatPrompt, Conversation
from flashback.readers.messages import message
from flashback.readers.text_reader import TextReader
from flashback.settings import FrameText, RetrievalSettings

_NONE = RetrievalSettings(pattern="none")
IN_FRONT = FrameText("", "\n\n")
"""The frame of a passage in front of a prompt of In-Context RALM."""


@dataclass(frozen=True)
class Pasted:
    """The passages of a prompt as plain texts, for what is pasted into it."""

    context: str = ""
    """In the question; empty: nothing is pasted."""
    earlier: Sequence[str] = ()
    """In each message of the user before it; none: nothing is pasted there."""
    shown: int = 0
    """How many passages the question has, pasted or not."""


_NOTHING = Pasted()


@dataclass(frozen=True)
class Asking:
    """How questions become prompts, the same for all of them."""

    form: Form
    examples: Callable[[Question], Sequence[Question]] = lambda _: ()
    """The solved examples before a question."""

    def prompt(
        self,
        reader: TextReader,
        question: Question,
        pasted: Pasted = _NOTHING,
        retrieval: RetrievalSettings = _NONE,
    ) -> ChatPrompt:
        """The prompt of a question, and the settings that show passages there.

        Args:
            retrieval: with the pattern and the frame that show other passages.

        Raises:
            ChatTemplateError: the reader has no chat template, or it refuses the question.
        """
        if self.form is Form.CHAT:
            return conversation_of(question, pasted).prompt(reader, retrieval)
        text = self._text(question, pasted)
        return ChatPrompt(reader.bos + tuple(reader.encode(text)), retrieval)

    def answer_ids(self, reader: TextReader, question: Question, pasted: Pasted = _NOTHING) -> Ids:
        """The first right answer as what follows the prompt."""
        answer = question.answers[0]
        if self.form is Form.CHAT:
            return tuple(reader.encode(answer))
        prompt = self._text(question, pasted)
        behind = answer if prompt[-1:].isspace() else f" {answer}"
        before, whole = reader.encode(prompt), reader.encode(prompt + behind)
        # A tokenizer may begin every text with a space of its own, or join what meets here.
        joined = whole[: len(before)] != before
        return tuple(reader.encode(behind) if joined else whole[len(before) :])

    def _text(self, question: Question, pasted: Pasted) -> str:
        context = pasted.context
        if self.form is Form.COMPLETION:
            assert question.completion is not None
            return f"{context}\n\n{question.completion}" if context else question.completion
        if self.form is Form.IN_CONTEXT_RALM:
            return "".join([context and f"{context}\n\n", _task(question.text, pasted.shown)])
        solved = (f"{_asked(one.text)} {one.answers[0]}\n\n" for one in self.examples(question))
        above = f"Context: {context}\n\n" if context else ""
        return "".join([*solved, above, _asked(question.text)])


def _asked(question: str) -> str:
    return f"Question: {question}\nAnswer:"


def _task(question: str, passages: int) -> str:
    """A question as In-Context RALM asks it, below so many passages.

    `build_qa_prompt` of its code: the prompt has no solved examples.
    """
    on = {0: "Answer", 1: "Based on this text, answer"}.get(
        passages, "Based on these texts, answer"
    )
    text = question if question.endswith("?") else f"{question}?"
    return f"{on} these questions:\nQ: {text[0].lower()}{text[1:]}\nA:"


def conversation_of(question: Question, pasted: Pasted = _NOTHING) -> Conversation:
    """A chat that ends with the question."""
    contexts = iter(pasted.earlier)
    before = [
        message(role, _with(next(contexts, ""), said) if role == "user" else said)
        for role, said in question.history or ()
    ]
    return Conversation((*before, message("user", _with(pasted.context, question.text))))


def _with(context: str, asked: str) -> str:
    """What a user says who pastes passages in front of a question."""
    if not context:
        return asked
    return f"Use the context to answer the question.\n\nContext: {context}\n\nQuestion: {asked}"


def settled_asking(
    settings: QuestionSettings,
    file: QuestionFile,
    questions: Sequence[Question],
    reader: TextReader,
) -> Asking:
    """How questions of a file are asked.

    Raises:
        SettingsError: see `settled_form`.
        PromptsError: the file has too few questions for the solved examples.
    """
    form = settled_form(settings.form, reader, questions)
    if form is Form.FEW_SHOT:
        return Asking(form, file.solved(settings.examples, settings.seed))
    return Asking(form)


def settled_form(form: str, reader: TextReader, questions: Sequence[Question]) -> Form:
    """The form that a name stands for.

    Raises:
        SettingsError: the reader has no chat template, or a question has no text to be continued.
    """
    chats = bool(reader.tokenizer.chat_template)
    if form == Form.CHAT and not chats:
        raise SettingsError(
            f"--form='chat': {reader.name} has no chat template; use question or few-shot"
        )
    talk = next((one.id for one in questions if one.history is not None), None)
    if talk is not None and (form not in (AUTO, Form.CHAT) or not chats):
        raise SettingsError(
            f"question {talk!r} ends a conversation; expected --form='chat' and a model with a "
            "chat template"
        )
    if form == AUTO:
        return Form.CHAT if chats else Form.QUESTION
    without = next((one.id for one in questions if one.completion is None), None)
    if form == Form.COMPLETION and without is not None:
        raise SettingsError(
            f"--form='completion': question {without!r} has no text to be continued; expected "
            "'completion' in every line, or use --form='question'"
        )
    return Form(form)
