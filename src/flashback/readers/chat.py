"""Conversations as prompts: a reader's chat template, and passages in the template's own turns.

What a template looks like is found by rendering it, never by its name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from flashback.errors import ChatTemplateError, NoChatTemplate
from flashback.patterns.prompt import Ids
from flashback.patterns.registry import PATTERNS
from flashback.readers.text_reader import TextReader
from flashback.settings import FrameText, RetrievalSettings

Message = Mapping[str, str]

INSTRUCTION = "Use the context to answer the question.\n\nContext:\n"
"""Stands before passages in a turn."""
_BEHIND = "\n\n"
_PROBES = ("first probe", "second probe", "third probe")
"""Texts that are looked for in a rendered template."""


@dataclass(frozen=True)
class ChatPrompt:
    """A conversation as an engine is given it."""

    ids: Ids
    """The prompt, without what its frame shows."""
    retrieval: RetrievalSettings
    """The settings, with the frame for passages."""


@dataclass(frozen=True)
class Conversation:
    """Messages that the model's chat template turns into a prompt."""

    messages: tuple[Message, ...]
    """Each with `role` and `content`; at least one is the user's."""
    special_tokens: bool = False
    """Whether special tokens written in messages are meant. They can end a turn and begin one of
    any role; else they are text like any other, as in passages."""

    def prompt_ids(self, reader: TextReader) -> Ids:
        """The prompt without passages, up to where the assistant begins to speak.

        Raises:
            NoChatTemplate: the model has none.
            ChatTemplateError: its template refuses these messages.
        """
        return tuple(reader.encode_template(_rendered(reader, self._shown(reader))))

    def prompt(self, reader: TextReader, retrieval: RetrievalSettings) -> ChatPrompt:
        """The prompt of a pattern, with passages shown in the template's own turns.

        A passage before the text stands in the first user message, as if it were pasted there; one
        behind the text stands in a user turn of its own, between two turns of the assistant. A
        frame that was asked for, that of an adapter and marking tokens are left as they are.

        Args:
            reader: has the template.
            retrieval: with the name of a pattern, not `auto`.

        Raises:
            ChatTemplateError: see `prompt_ids`.
        """
        pattern, asked = PATTERNS[retrieval.pattern], retrieval.frame
        if pattern.isolated:
            return self._shown_in_place(reader, retrieval)
        own = (
            (asked is not None and asked.has_text and not _in_turns(asked))
            or reader.adapter is not None
            or reader.marks is not None
        )
        if own or not pattern.retrieves:
            return ChatPrompt(self.prompt_ids(reader), retrieval)
        if pattern.echoes:
            frame = _frame_behind(reader, asked)
            return ChatPrompt(self.prompt_ids(reader), replace(retrieval, frame=frame))
        return self._shown_before(reader, retrieval)

    def _shown(self, reader: TextReader) -> Sequence[Message]:
        """The messages for the template."""
        if self.special_tokens:
            return self.messages
        return [{key: reader.as_text(one) for key, one in m.items()} for m in self.messages]

    def _shown_in_place(self, reader: TextReader, retrieval: RetrievalSettings) -> ChatPrompt:
        """Put passages where the last user message begins; the turns before it are history."""
        ids, messages = self.prompt_ids(reader), self._shown(reader)
        _, last = _ends(messages)
        head = _before(reader, messages, last)
        pairs = zip(reader.encode_template(head), ids, strict=False)
        history = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if reader.adapter is None and reader.marks is None:
            asked = retrieval.frame or FrameText()
            frame = asked if asked.has_text else FrameText(INSTRUCTION, _BEHIND, 0)
            sink = asked.sink or _before(reader, [_message("user", "")], 0)
            retrieval = replace(retrieval, frame=replace(frame, sink=sink))
        return ChatPrompt(ids, replace(retrieval, history_tokens=history))

    def _shown_before(self, reader: TextReader, retrieval: RetrievalSettings) -> ChatPrompt:
        """Cut the prompt where the first user message begins: a passage goes there."""
        messages = self._shown(reader)
        whole = _rendered(reader, messages)
        at, _ = _ends(messages)
        probed = _rendered(reader, _with_content(messages, at, _PROBES[0]))
        head, found, tail = probed.partition(_PROBES[0])
        if not found or not whole.startswith(head) or not whole.endswith(tail):
            raise ChatTemplateError(
                f"model {reader.name}: its chat template does not show the first user message as "
                "it is, so no passage can stand before it; use --pattern append or --frame-before"
            )
        every = tuple(reader.encode_template(whole))
        ids, shown = _cut(reader, every, whole, head)
        frame = FrameText(head + INSTRUCTION, _BEHIND, 0, no_passage=shown)
        if every[: len(reader.bos)] == reader.bos:
            ids = reader.bos + ids  # it stays in front of a passage
        return ChatPrompt(ids, replace(retrieval, frame=frame))

    def query(self, reader: TextReader, written: str, tokens: int) -> str:
        """The last tokens of the last user message and the answer so far, without template."""
        asked = next(m["content"] for m in reversed(self.messages) if m["role"] == "user")
        return reader.decode(reader.encode(f"{asked}\n{written}" if written else asked)[-tokens:])


def _in_turns(frame: FrameText) -> bool:
    """Whether a frame was made here."""
    return bool(frame.no_passage) or not frame.echo_prompt


def _frame_behind(reader: TextReader, asked: FrameText | None) -> FrameText:
    """End the assistant's turn, show a passage in a user turn, and begin the assistant's anew."""
    asks, says, shows = _PROBES
    turns = [_message("user", asks), _message("assistant", says), _message("user", shows)]
    rendered = _rendered(reader, turns)
    behind = rendered.partition(says)[2]
    before, found, after = behind.partition(shows)
    if not found:
        raise ChatTemplateError(
            f"model {reader.name}: its chat template does not show a second user message as it "
            "is, so no passage can be shown behind the text; use --pattern prepend"
        )
    echo = FrameText().echo_tokens if asked is None else asked.echo_tokens
    return FrameText(before + INSTRUCTION, after, echo, echo_prompt=False)


def _cut(reader: TextReader, every: Ids, whole: str, head: str) -> tuple[Ids, str]:
    """The ids of a prompt behind its head, and the head's text; together they are the prompt's ids.

    A space at the end of a head often belongs to the token behind it.
    """
    for shown in (head, head.rstrip(" "), head.rstrip()):
        ids = tuple(reader.encode_template(shown))
        if every[: len(ids)] == ids:
            return every[len(ids) :], shown
    return tuple(reader.encode_template(whole.removeprefix(head))), head


def _before(reader: TextReader, messages: Sequence[Message], message: int) -> str:
    """What the template puts before the content of a user message."""
    probed = _with_content(messages, message, _PROBES[0])
    head, found, _ = _rendered(reader, probed).partition(_PROBES[0])
    if not found:
        raise ChatTemplateError(
            f"model {reader.name}: its chat template does not show message {message + 1} as it is, "
            "so no passage can stand before it; use --pattern append or prepend"
        )
    return head


def _ends(messages: Sequence[Message]) -> tuple[int, int]:
    """The numbers of the first and the last user message."""
    users = [number for number, one in enumerate(messages) if one["role"] == "user"]
    if not users:
        raise ChatTemplateError("there is no user message; expected at least one to answer")
    return users[0], users[-1]


def _with_content(messages: Sequence[Message], at: int, content: str) -> list[Message]:
    return [*messages[:at], _message("user", content), *messages[at + 1 :]]


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _rendered(reader: TextReader, messages: Sequence[Message]) -> str:
    """The template's text for messages, up to where the assistant begins to speak.

    Raises:
        NoChatTemplate: there is no template.
        ChatTemplateError: it refuses these messages.
    """
    if not reader.tokenizer.chat_template:
        raise NoChatTemplate(
            f"model {reader.name} has no chat template; expected an instruction-tuned model"
        )
    try:
        text: Any = reader.tokenizer.apply_chat_template(
            [dict(one) for one in messages], tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # templates raise what they like
        raise ChatTemplateError(f"the chat template refuses these messages: {error}") from error
    assert isinstance(text, str)
    return text
