"""A file of prompts: a line each, a JSON string or an object with `prompt` and, if wanted, `id`."""

import codecs
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from flashback.errors import PromptsError


class _Identified(Protocol):
    @property
    def id(self) -> "Id": ...


Id = str | int | float
LineT = TypeVar("LineT", str, bytes)
ItemT = TypeVar("ItemT", bound=_Identified)


@dataclass(frozen=True)
class NumberedPrompt:
    """A prompt and where it stands."""

    line: int
    """Counted from 1."""
    id: "Id"
    """As given; else the line."""
    text: str


@dataclass(frozen=True)
class PromptFile:
    """All prompts of a file."""

    name: str
    sha256: str
    prompts: tuple[NumberedPrompt, ...]


def read_prompts(name: str, content: bytes) -> PromptFile:
    """Take a file of prompts apart; lines without anything on them, and a BOM, are left out.

    Raises:
        PromptsError: a line is no prompt, an id is there twice, or there is no prompt at all.
    """
    lines = content.removeprefix(codecs.BOM_UTF8).split(b"\n")
    prompts = list(read_lines(name, lines, _prompt))
    if not prompts:
        raise PromptsError(f"{name}: found no prompts; expected one in each line, as JSON")
    return PromptFile(name, hashlib.sha256(content).hexdigest(), tuple(prompts))


def read_lines(
    name: str, lines: Iterable[LineT], read: Callable[[int, LineT], ItemT]
) -> Iterator[ItemT]:
    """Read every line of a file that has anything on it; each item's `id` may be there once.

    Args:
        read: makes an item of a line and its number, from 1; raises ValueError for a bad one.

    Raises:
        PromptsError: a line is bad, or an id is there twice.
    """
    lines_of: dict[Id, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            item = read(number, line)
        except ValueError as error:
            raise PromptsError(f"{name} line {number}: {error}") from None
        earlier = lines_of.setdefault(item.id, number)
        if earlier != number:
            raise PromptsError(
                f"{name} line {number}: the id {item.id!r} is that of line {earlier}; expected "
                "every id once (a line without one has its number)"
            )
        yield item


def _prompt(number: int, line: bytes) -> NumberedPrompt:
    """One line.

    Raises:
        ValueError: what was found and what was expected.
    """
    expected = 'expected a JSON string or {"prompt": "..."}'
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError(f"found bytes that are not UTF-8; {expected}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error}); {expected}") from None
    members = value if isinstance(value, dict) else {"prompt": value}
    text = members.get("prompt")
    if not isinstance(text, str):
        raise ValueError(f"found {_kind(value)}; {expected}")
    if more := members.keys() - {"id", "prompt"}:
        raise ValueError(f"found {min(more)!r} beside prompt and id; {expected}")
    identifier = id_of(members, number)
    check_whole("the prompt", text)
    return NumberedPrompt(number, identifier, text)


def id_of(members: Mapping[str, Any], line: int) -> Id:
    """The `id` of a record; without one, its line.

    Raises:
        ValueError: it is neither a whole text nor a finite number.
    """
    given = members.get("id")
    if given is None:
        return line
    if isinstance(given, bool) or not isinstance(given, str | int | float):
        raise ValueError("the id is neither text nor a number")
    if isinstance(given, float) and not math.isfinite(given):
        raise ValueError(f"the id is {given}; expected text or a finite number")
    if isinstance(given, str):
        check_whole("the id", given)
    return given


def check_whole(name: str, text: str) -> None:
    """Refuse a text that no file can hold.

    Raises:
        ValueError: it has half a character.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} has half a character (a lone surrogate)") from None


def _kind(value: object) -> str:
    if isinstance(value, dict):
        return (
            "an object whose prompt is no text" if "prompt" in value else "an object without prompt"
        )
    return {list: "a list", type(None): "null", bool: "true or false"}.get(type(value), "a number")
