"""A question as a prompt: in a chat, as a question, behind solved examples, or to be continued."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flashback.declared import AUTO
from flashback.errors import SettingsError
from flashback.patterns.prompt import Ids
from flashback.questions.formats import Question
from flashback.questions.question_settings import Form
from flashback.readers.chat import ChatPrompt, Conversation
from flashback.readers.text_reader import TextReader
from flashback.settings import RetrievalSettings

_NONE = RetrievalSettings(pattern="none")


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
        context: str = "",
        retrieval: RetrievalSettings = _NONE,
    ) -> ChatPrompt:
        """The prompt of a question, and the settings that show passages there.

        Args:
            context: passages to be pasted into it, as a plain text.
            retrieval: with the pattern and the frame that show other passages.

        Raises:
            ChatTemplateError: the reader has no chat template, or it refuses the question.
        """
        if self.form is Form.CHAT:
            return conversation_of(question, context).prompt(reader, retrieval)
        text = self._text(question, context)
        return ChatPrompt(reader.bos + tuple(reader.encode(text)), retrieval)

    def answer_ids(self, reader: TextReader, question: Question, context: str = "") -> Ids:
        """The first right answer as what follows the prompt."""
        answer = question.answers[0]
        if self.form is Form.CHAT:
            return tuple(reader.encode(answer))
        prompt = self._text(question, context)
        behind = answer if prompt[-1:].isspace() else f" {answer}"
        before, whole = reader.encode(prompt), reader.encode(prompt + behind)
        # A tokenizer may begin every text with a space of its own, or join what meets here.
        joined = whole[: len(before)] != before
        return tuple(reader.encode(behind) if joined else whole[len(before) :])

    def _text(self, question: Question, context: str) -> str:
        if self.form is Form.COMPLETION:
            assert question.completion is not None
            return f"{context}\n\n{question.completion}" if context else question.completion
        solved = (f"{_asked(one.text)} {one.answers[0]}\n\n" for one in self.examples(question))
        pasted = f"Context: {context}\n\n" if context else ""
        return "".join([*solved, pasted, _asked(question.text)])


def _asked(question: str) -> str:
    return f"Question: {question}\nAnswer:"


def conversation_of(question: Question, context: str = "") -> Conversation:
    """A chat that begins with the question.

    Args:
        context: see `Asking.prompt`.
    """
    said = question.text
    if context:
        said = (
            "Use the context to answer the question.\n\n"
            f"Context: {context}\n\nQuestion: {question.text}"
        )
    return Conversation(({"role": "user", "content": said},))


def settled_form(form: str, reader: TextReader, questions: Sequence[Question]) -> Form:
    """The form that a name stands for.

    Raises:
        SettingsError: the reader has no chat template, or a question has no text to be continued.
    """
    chats = bool(reader.tokenizer.chat_template)
    if form == AUTO:
        return Form.CHAT if chats else Form.QUESTION
    if form == Form.CHAT and not chats:
        raise SettingsError(
            f"--form='chat': {reader.name} has no chat template; use question or few-shot"
        )
    without = next((one.id for one in questions if one.completion is None), None)
    if form == Form.COMPLETION and without is not None:
        raise SettingsError(
            f"--form='completion': question {without!r} has no text to be continued; expected "
            "'completion' in every line, or use --form='question'"
        )
    return Form(form)
