"""A request whose fields were checked, ready to be scheduled; the same for both endpoints."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flashback.patterns.prompt import Ids
from flashback.readers.chat import Conversation
from flashback.settings import Settings

FIRST_BOUNDARY = 32
"""Tokens of a scored text before the first passage: as in `flashback eval`."""


PromptInput = str | Ids | Conversation
"""A prompt as the client gave it."""


@dataclass(frozen=True)
class CheckedRequest:
    """A request within the server's limits, with all defaults filled in."""

    prompts: tuple[PromptInput, ...]
    settings: Settings
    """The seed is that of the first of `n` choices; each further one has the next seed."""
    n: int = 1
    """Choices for each prompt."""
    write: bool = True
    """False: only score the prompts."""
    echo: bool = False
    """Whether the prompt is part of the text."""
    logprobs: int | None = None
    """How many most probable tokens to give beside each token; None: no log-probabilities."""
    fresh_cache: bool = False
    """Whether to start with empty caches."""
    first_boundary: int = FIRST_BOUNDARY

    @property
    def scores_prompt(self) -> bool:
        return self.echo and self.logprobs is not None

    @property
    def choices(self) -> int:
        return len(self.prompts) * self.n


def prompts_for_log(prompts: Sequence[PromptInput]) -> list[Any]:
    """The prompts as they came."""
    return [
        [dict(message) for message in one.messages]
        if isinstance(one, Conversation)
        else (one if isinstance(one, str) else list(one))
        for one in prompts
    ]
