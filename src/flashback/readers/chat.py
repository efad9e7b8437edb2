"""Conversations as prompts: a reader's chat template, and passages in the template's own turns.

What a template looks like is found by rendering it, never by its name. A last message of the
assistant is the beginning of its answer, and is continued.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from flashback.errors import ChatTemplateError, NoChatTemplate
from flashback.patterns.prompt import Ids
from flashback.patterns.registry import PATTERNS
from flashback.readers.messages import Message, message, messages_of
from flashback.readers.queries import Talk, query_of
from flashback.readers.text_reader import TextReader
from flashback.settings import FrameText, RetrievalSettings

INSTRUCTION = "Use the context to answer the question.\n\nContext:\n"
"""Stands before passages in a turn."""
ASKED = "\n\nQuestion:\n"
"""Stands behind them, before what the user says."""
RECOMPUTED_IN_CHAT = 16
"""The default of e: what asks is short, and a history is computed without a passage."""
_PROBES = ("first probe", "second probe", "third probe")
"""Texts that are looked for in a rendered template."""


@dataclass(frozen=True)
class ChatPrompt:
    """A conversation as an engine is given it."""

    ids: Ids
    """The prompt, without what its frame shows."""
    retrieval: RetrievalSettings
    """The settings, with the frame for passages."""
    begun: int = 0
    """How many of the last ids are the beginning of the answer, which is continued."""


@dataclass(frozen=True)
class Conversation:
    """Messages that the model's chat template turns into a prompt."""

    messages: tuple[Message, ...]
    """Each with `role` and `content`; at least one is the user's."""
    special_tokens: bool = False
    """Whether special tokens written in messages are meant. They can end a turn and begin one of
    any role; else they are text like any other, as in passages."""

    @classmethod
    def of(cls, messages: object) -> "Conversation":
        """A conversation of messages as OpenAI's clients have them.

        Args:
            messages: mappings with `role` and `content`; a content is a text, or a list of parts
                `{"type": "text", "text": ...}`, which are joined.

        Raises:
            SettingsError: what is no message, or a part that is no text.
            ChatTemplateError: there is no message of the user.
        """
        found = messages_of(messages)
        _ends(found)
        return cls(found)

    @property
    def begun(self) -> str:
        """The beginning of the answer: a last message of the assistant."""
        return _begun(self.messages)

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
        in a slot in the last, behind the history, whose cache is the same with any passage; one
        behind the text in a user turn of its own, between two turns of the assistant. A frame that
        was asked for, that of an adapter and marking tokens are left as they are.

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
            return self._plain(reader, retrieval)
        if pattern.echoes:
            return self._plain(reader, replace(retrieval, frame=_frame_behind(reader, asked)))
        return self._shown_before(reader, retrieval)

    def _shown(self, reader: TextReader) -> Sequence[Message]:
        """The messages for the template."""
        if self.special_tokens:
            return self.messages
        return [{key: reader.as_text(one) for key, one in m.items()} for m in self.messages]

    def _plain(self, reader: TextReader, retrieval: RetrievalSettings) -> ChatPrompt:
        """The template's prompt as it is."""
        messages = self._shown(reader)
        whole = _rendered(reader, messages)
        ids = tuple(reader.encode_template(whole))
        return ChatPrompt(ids, retrieval, _begun_tokens(reader, ids, whole, messages))

    def _shown_in_place(self, reader: TextReader, retrieval: RetrievalSettings) -> ChatPrompt:
        """Put passages where the last user message begins; the turns before it are history."""
        prompt, messages = self._plain(reader, retrieval), self._shown(reader)
        first, last = _ends(messages)
        head = _before(reader, messages, last)
        pairs = zip(reader.encode_template(head), prompt.ids, strict=False)
        history = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if reader.adapter is None and reader.marks is None:
            asked = retrieval.frame or FrameText()
            frame = asked if asked.has_text else FrameText(INSTRUCTION, ASKED, 0)
            sink = asked.sink or _before(reader, messages, first)
            retrieval = replace(retrieval, frame=replace(frame, sink=sink))
        again = retrieval.recompute_tokens or RECOMPUTED_IN_CHAT
        own = replace(retrieval, history_tokens=history, recompute_tokens=again)
        return replace(prompt, retrieval=own)

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
                "it is, so no passage can stand before it; use --pattern='append' or --frame-before"
            )
        every = tuple(reader.encode_template(whole))
        ids, shown = _cut(reader, every, whole, head)
        frame = FrameText(head + INSTRUCTION, ASKED, 0, no_passage=shown)
        if every[: len(reader.bos)] == reader.bos:
            ids = reader.bos + ids  # it stays in front of a passage
        begun = _begun_tokens(reader, every, whole, messages)
        return ChatPrompt(ids, replace(retrieval, frame=frame), begun)

    def query(self, reader: TextReader, written: str, retrieval: RetrievalSettings) -> str:
        """The query for the answer so far, without template; see `Past`.

        Args:
            written: of the answer, behind what it began with.
        """
        first, last = _ends(self.messages)
        before = [one["content"] for one in self.messages if one["role"] != "system"]
        talk = Talk(
            reader=reader,
            first="" if first == last else self.messages[first]["content"],
            turns=before[: len(before) - bool(self.begun)],
            asked=self.messages[last]["content"],
            said=self.begun + written,
            tokens=retrieval.query_tokens,
        )
        return query_of(talk, retrieval.query_form)


def _in_turns(frame: FrameText) -> bool:
    """Whether a frame was made here."""
    return bool(frame.no_passage) or not frame.echo_prompt


def turn_behind(reader: TextReader) -> tuple[str, str]:
    """What ends a turn of the assistant and begins one of the user, and what ends that one.

    Raises:
        NoChatTemplate: the model has none.
        ChatTemplateError: its template does not show a second message as it is.
    """
    asks, says, shows = _PROBES
    turns = [message("user", asks), message("assistant", says), message("user", shows)]
    rendered = _rendered(reader, turns)
    behind = rendered.partition(says)[2]
    before, found, after = behind.partition(shows)
    if not found:
        raise ChatTemplateError(
            f"model {reader.name}: its chat template does not show a second user message as it "
            "is, so no passage can be shown behind the text; use --pattern='prepend'"
        )
    return before, after


def _frame_behind(reader: TextReader, asked: FrameText | None) -> FrameText:
    """End the assistant's turn, show a passage in a user turn, and begin the assistant's anew."""
    before, after = turn_behind(reader)
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


def _begun(messages: Sequence[Message]) -> str:
    last = messages[-1]
    return last["content"] if last["role"] == "assistant" else ""


def _begun_tokens(reader: TextReader, ids: Ids, whole: str, messages: Sequence[Message]) -> int:
    said = _begun(messages).strip()  # as some templates show it
    return len(_cut(reader, ids, whole, whole[: whole.rindex(said)])[0]) if said else 0


def _before(reader: TextReader, messages: Sequence[Message], at: int) -> str:
    """What the template puts before the content of a user message."""
    probed = _with_content(messages, at, _PROBES[0])
    head, found, _ = _rendered(reader, probed).partition(_PROBES[0])
    if not found:
        raise ChatTemplateError(
            f"model {reader.name}: its chat template does not show message {at + 1} as it is, so "
            "no passage can stand before it; use --pattern='append' or prepend"
        )
    return head


def _ends(messages: Sequence[Message]) -> tuple[int, int]:
    """The numbers of the first and the last user message."""
    users = [number for number, one in enumerate(messages) if one["role"] == "user"]
    if not users:
        raise ChatTemplateError("there is no user message; expected at least one to answer")
    return users[0], users[-1]


def _with_content(messages: Sequence[Message], at: int, content: str) -> list[Message]:
    return [*messages[:at], message("user", content), *messages[at + 1 :]]


def _rendered(reader: TextReader, messages: Sequence[Message]) -> str:
    """The template's text for messages, up to where the assistant speaks, or speaks on.

    Raises:
        NoChatTemplate: there is no template.
        ChatTemplateError: it refuses these messages, or leaves out one of the system.
    """
    if not reader.tokenizer.chat_template:
        raise NoChatTemplate(
            f"model {reader.name} has no chat template; expected an instruction-tuned "
            "model, such as smollm2"
        )
    begun = bool(messages) and messages[-1]["role"] == "assistant"
    try:
        text: Any = reader.tokenizer.apply_chat_template(
            [dict(one) for one in messages],
            tokenize=False,
            add_generation_prompt=not begun,
            continue_final_message=begun,
        )
    except Exception as error:  # templates raise what they like
        reason = str(error).partition("\n")[0]
        raise ChatTemplateError(f"the chat template refuses these messages: {reason}") from error
    assert isinstance(text, str)
    if any(one["role"] == "system" and one["content"].strip() not in text for one in messages):
        raise ChatTemplateError(
            "the chat template leaves out the system message; put its text into the first message "
            "of the user"
        )
    return text
