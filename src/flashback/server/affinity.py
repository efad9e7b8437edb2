"""Which replica a conversation belongs to: rendezvous hashing, with a bound on what each takes.

A replica's weight for a key is a hash of both; the key's home is the replica with the greatest. So
every front finds the same home without asking, and when a replica comes or goes, only the keys move
that it is the home of (Thaler & Ravishankar 1998). A replica that has much more than its share of
the requests passes further ones on to the next (Mirrokni et al. 2018).
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

_CHARACTERS = 1024
_IDS = 256
"""What of a prompt's beginning makes the key."""


@dataclass(frozen=True)
class Bound:
    """How many requests a replica has at a time before others take some."""

    factor: float = 2.0
    """Of the mean over the replicas; from 1 on."""
    free: int = 4
    """As many as this, it may always have."""

    def most(self, active: int, replicas: int) -> int:
        """The requests that a replica may have; all together they may have more than `active`."""
        return max(self.free, math.ceil(self.factor * (active + 1) / replicas))


def weight(key: str, name: str) -> bytes:
    """The hash of a key at a replica: the greater, the nearer."""
    return blake2b(f"{name}\0{key}".encode("utf-8", "surrogatepass"), digest_size=16).digest()


def choose(key: str | None, active: Mapping[str, int], bound: Bound) -> str:
    """The replica for a request: the key's home, or the next one that may have it.

    Args:
        key: None: the request belongs nowhere, and goes where there are fewest.
        active: requests at each replica; not empty.
    """
    if key is None:
        return min(active, key=lambda name: (active[name], name))
    most = bound.most(sum(active.values()), len(active))
    free = [name for name, count in active.items() if count < most]
    return max(free, key=lambda name: weight(key, name))


def conversation_key(body: Mapping[str, Any], session: str | None = None) -> str | None:
    """What stays the same in all requests of a conversation; None: nothing does.

    `session` or OpenAI's `prompt_cache_key`, if there is one. Else the cache salt and what the
    conversation begins with: the messages up to the first of a user, or the first 1,024 characters
    or 256 ids of the prompt.
    """
    named = session or body.get("prompt_cache_key")
    if isinstance(named, str) and named:
        return f"session {named}"
    beginning = _beginning(body)
    if beginning is None:
        return None
    return json.dumps([body.get("cache_salt"), beginning], default=str)


def _beginning(body: Mapping[str, Any]) -> Any:
    messages = body.get("messages")
    if isinstance(messages, list):
        users = [at for at, one in enumerate(messages) if _role(one) == "user"]
        return messages[: users[0] + 1 if users else None]
    prompt = body.get("prompt", body.get("input"))
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt[:_CHARACTERS]
    return prompt[:_IDS] if isinstance(prompt, list) else None


def _role(message: object) -> object:
    return message.get("role") if isinstance(message, dict) else None
