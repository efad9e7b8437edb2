"""Messages of a conversation, as OpenAI's clients have them."""

import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

from flashback.errors import SettingsError

Message = Mapping[str, str]
Messages = Iterable[Mapping[str, Any]]
"""Messages as OpenAI's clients have them; see `Conversation.of`."""
_MESSAGE = "{'role': ..., 'content': ...}"


def message(role: str, content: str) -> dict[str, str]:
    """One message."""
    return {"role": role, "content": content}


def messages_of(given: object) -> tuple[Message, ...]:
    """Messages, none or more. See `Conversation.of`."""
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        raise SettingsError(f"messages={reprlib.repr(given)}: expected a list of {_MESSAGE}")
    return tuple(_checked(f"messages.{at}", one) for at, one in enumerate(given))


def _checked(place: str, given: object) -> Message:
    """A message whose content is one text."""
    if not isinstance(given, Mapping) or not isinstance(role := given.get("role"), str):
        raise SettingsError(f"{place}={reprlib.repr(given)}: expected {_MESSAGE}")
    content = given.get("content")
    name = given.get("name")
    named = {"name": name} if isinstance(name, str) else {}
    if isinstance(content, str):
        return message(role, content) | named
    if not isinstance(content, list) or not content:
        raise SettingsError(
            f"{place}.content={reprlib.repr(content)}: expected a text, or a list of "
            "{'type': 'text', 'text': ...}"
        )
    parts = (_text(f"{place}.content.{at}", part) for at, part in enumerate(content))
    return message(role, "".join(parts)) | named


def _text(name: str, part: object) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    text = part.get("text") if isinstance(part, Mapping) else None
    if kind != "text" or not isinstance(text, str):
        raise SettingsError(
            f"{name}: a part of type {kind!r}; expected {{'type': 'text', 'text': ...}}"
        )
    return text
