"""Server-sent events as bytes: cut apart, and told apart.

Knows what an event of OpenAI's API may say. Knows nothing of connections.
"""

import json
import re
from collections.abc import AsyncIterator
from typing import Any

from flashback.server.errors import ApiError

_END = re.compile(rb"\r?\n\r?\n")
_STOPPING = "shutting_down"
"""The code of the error with which a server that stops ends a stream."""


async def events_of(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Whole events, each with the empty line behind it, and at last what is behind them."""
    rest = b""
    async for part in parts:
        rest += part
        while found := _END.search(rest):
            yield rest[: found.end()]
            rest = rest[found.end() :]
    if rest:
        yield rest


def has_begun(event: bytes) -> bool:
    """Whether a client that has seen an event has seen something of the answer, or its end.

    False for events without text: opening chunks, passages that were found, comments.
    """
    data = _data(event)
    if data is None:
        return False
    chunk = _chunk(data)
    if chunk is None or "error" in chunk or not isinstance(chunk.get("choices"), list):
        return True
    return any(_said(choice) for choice in chunk["choices"])


def is_stopping(event: bytes) -> bool:
    """Whether it says that the server stops, and writes nothing more."""
    chunk = _chunk(_data(event) or b"")
    error = chunk.get("error") if chunk else None
    return isinstance(error, dict) and error.get("code") == _STOPPING


def error_event(error: ApiError) -> bytes:
    """The event that ends a stream which cannot go on."""
    return f"data: {json.dumps(error.body(), ensure_ascii=False)}\n\n".encode()


def _data(event: bytes) -> bytes | None:
    lines = (line for line in event.splitlines() if line.startswith(b"data:"))
    found = b"\n".join(line.removeprefix(b"data:").strip() for line in lines)
    return found or None


def _chunk(data: bytes) -> dict[str, Any] | None:
    """The object that an event carries; None: it is none, such as [DONE]."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _said(choice: Any) -> bool:
    """Whether a part of a choice has more in it than a role."""
    if not isinstance(choice, dict) or choice.get("finish_reason"):
        return True
    delta = choice.get("delta")
    said = delta if isinstance(delta, dict) else {"text": choice.get("text")}
    return any(value for name, value in said.items() if name != "role")
