"""Conversations as prompts: a reader's chat template, and passages in the template's own turns.

What a template looks like is found by rendering it, never by its name. A last message of the
assistant is the beginning of its answer, and is continued.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flashback.errors import ChatTemplateError, NoChatTemplate, SettingsError
from flashback.patterns.prompt import Ids
from flashback.patterns.registry import PATTERNS
from flashback.readers.text_reader import TextReader
from flashback.settings import FrameText, RetrievalSettings

Message = Mapping[str, str]
Messages = Iterable[Mapping[str, Any]]
"""Messages as OpenAI's clients have them; see `Conversation.of`."""

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
    begun: int = 0
    """How many of the last ids are the beginning of the answer, which is continued."""


@dataclass(frozen=True)
class Conversation:
    """Messages that the model's chat template turns into a prompt."""

    messages: tuple[Message, ...]
    """Each with `role` and `content`; at least one is the user's."""

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
        _first_user(found)
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
        return tuple(reader.encode_template(_rendered(reader, self.messages)))

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
        if (
            not pattern.retrieves
            or (asked is not None and asked.has_text and not _in_turns(asked))
            or reader.adapter is not None
            or reader.marks is not None
        ):
            return self._plain(reader, retrieval)
        if pattern.echoes:
            return self._plain(reader, replace(retrieval, frame=_frame_behind(reader, asked)))
        return self._shown_before(reader, retrieval, isolated=pattern.isolated)

    def _plain(self, reader: TextReader, retrieval: RetrievalSettings) -> ChatPrompt:
        """The template's prompt as it is."""
        whole = _rendered(reader, self.messages)
        ids = tuple(reader.encode_template(whole))
        return ChatPrompt(ids, retrieval, _begun_tokens(reader, ids, whole, self.messages))

    def _shown_before(
        self, reader: TextReader, retrieval: RetrievalSettings, *, isolated: bool
    ) -> ChatPrompt:
        """Cut the prompt where the first user message begins: a passage goes there."""
        whole = _rendered(reader, self.messages)
        probed = _rendered(reader, _with_first_user(self.messages, _PROBES[0]))
        head, found, tail = probed.partition(_PROBES[0])
        if not found or not whole.startswith(head) or not whole.endswith(tail):
            raise ChatTemplateError(
                f"model {reader.name}: its chat template does not show the first user message as "
                "it is, so no passage can stand before it; use --pattern append or --frame-before"
            )
        every = tuple(reader.encode_template(whole))
        ids, shown = _cut(reader, every, whole, head)
        frame = FrameText(head + INSTRUCTION, _BEHIND, 0, no_passage=shown)
        if not isolated and every[: len(reader.bos)] == reader.bos:
            ids = reader.bos + ids  # it stays in front of a passage
        begun = _begun_tokens(reader, every, whole, self.messages)
        return ChatPrompt(ids, replace(retrieval, frame=frame), begun)

    def query(self, reader: TextReader, written: str, tokens: int) -> str:
        """The last tokens of the last user message and the answer so far, without template."""
        asked = next(m["content"] for m in reversed(self.messages) if m["role"] == "user")
        said = self.begun + written
        return reader.decode(reader.encode(f"{asked}\n{said}" if said else asked)[-tokens:])


def _in_turns(frame: FrameText) -> bool:
    """Whether a frame was made here."""
    return bool(frame.no_passage) or not frame.echo_prompt


def _frame_behind(reader: TextReader, asked: FrameText | None) -> FrameText:
    """End the assistant's turn, show a passage in a user turn, and begin the assistant's anew."""
    asks, says, shows = _PROBES
    turns = [message("user", asks), message("assistant", says), message("user", shows)]
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


def _begun(messages: Sequence[Message]) -> str:
    last = messages[-1]
    return last["content"] if last["role"] == "assistant" else ""


def _begun_tokens(reader: TextReader, ids: Ids, whole: str, messages: Sequence[Message]) -> int:
    said = _begun(messages).strip()  # as some templates show it
    return len(_cut(reader, ids, whole, whole[: whole.rindex(said)])[0]) if said else 0


def _with_first_user(messages: Sequence[Message], content: str) -> list[Message]:
    at = _first_user(messages)
    return [*messages[:at], message("user", content), *messages[at + 1 :]]


def _first_user(messages: Sequence[Message]) -> int:
    at = next((number for number, one in enumerate(messages) if one["role"] == "user"), None)
    if at is None:
        raise ChatTemplateError("there is no user message; expected at least one to answer")
    return at


def message(role: str, content: str) -> Message:
    """One message."""
    return {"role": role, "content": content}


def messages_of(given: object) -> tuple[Message, ...]:
    """Messages, none or more. See `Conversation.of`."""
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        raise SettingsError("messages: expected a list of {'role': ..., 'content': ...}")
    return tuple(_checked(f"messages.{at}", one) for at, one in enumerate(given))


def _checked(name: str, given: object) -> Message:
    """A message whose content is one text."""
    if not isinstance(given, Mapping) or not isinstance(role := given.get("role"), str):
        raise SettingsError(f"{name}: expected {{'role': ..., 'content': ...}}")
    content = given.get("content")
    if isinstance(content, str):
        return message(role, content)
    if not isinstance(content, list) or not content:
        raise SettingsError(
            f"{name}.content: expected a text, or a list of {{'type': 'text', 'text': ...}}"
        )
    return message(
        role, "".join(_text(f"{name}.content.{at}", part) for at, part in enumerate(content))
    )


def _text(name: str, part: object) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    text = part.get("text") if isinstance(part, Mapping) else None
    if kind != "text" or not isinstance(text, str):
        raise SettingsError(
            f"{name}: a part of type {kind!r}; expected {{'type': 'text', 'text': ...}}"
        )
    return text


def _rendered(reader: TextReader, messages: Sequence[Message]) -> str:
    """The template's text for messages, up to where the assistant speaks, or speaks on.

    Raises:
        NoChatTemplate: there is no template.
        ChatTemplateError: it refuses these messages, or leaves out one of the system.
    """
    if not reader.tokenizer.chat_template:
        raise NoChatTemplate(
            f"model {reader.name} has no chat template; expected an instruction-tuned model"
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
