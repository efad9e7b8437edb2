"""The events of a request while it runs, in order; all but `Turn` are sent to the client."""

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from flashback.engines.protocol import Usage
from flashback.retrieval.protocol import Hit
from flashback.server.errors import ApiError
from flashback.server.token_names import TokenName


@dataclass(frozen=True)
class TokenScore:
    """A token of the text and its log-probability."""

    token: TokenName
    offset: int
    """Where it begins in the choice's text, characters."""
    log_prob: float | None
    """Given all tokens before it; None for a first token, which has none."""
    top: tuple[tuple[TokenName, float], ...]
    """The most probable tokens there, best first."""


@dataclass(frozen=True)
class ChoiceStart:
    """A choice begins."""

    choice: int
    prompt_tokens: int
    first_of_prompt: bool
    """Whether it is the first of its prompt's choices, the one whose prompt tokens count."""


@dataclass(frozen=True)
class SpanStart:
    """A stride begins, with these passages."""

    choice: int
    stride: int
    start: int
    """Characters of the choice's text before it."""
    passages: tuple[Hit, ...]
    scored: bool = False
    """Whether the text was given, and is scored, instead of written."""


@dataclass(frozen=True)
class Piece:
    """Text that is final, and the tokens that begin in it if log-probabilities were asked for."""

    choice: int
    text: str
    scores: tuple[TokenScore, ...] = ()


@dataclass(frozen=True)
class SpanEnd:
    """A stride is finished."""

    choice: int
    stride: int
    end: int
    tokens: int
    usage: Usage
    """Without counts if the text was scored: packed passes compute many strides at once."""
    retrieve_seconds: float
    scored: bool = False

    @property
    def seconds(self) -> float:
        """Spent on it, the search included."""
        return self.retrieve_seconds + self.usage.prefill_seconds + self.usage.decode_seconds


@dataclass(frozen=True)
class Incident:
    """Something that a client should know, such as a search that failed."""

    choice: int
    event: str
    message: str
    stride: int | None = None


@dataclass(frozen=True)
class ChoiceEnd:
    """A choice is finished."""

    choice: int
    finish_reason: str
    """OpenAI's: length or stop."""
    tokens: int
    """Written."""
    jumps: tuple[int, ...]


@dataclass(frozen=True)
class Turn:
    """The end of a turn: the scheduler runs other requests."""

    until: "Future[Any] | None" = None
    """The search that the request needs before its next turn."""
    again: bool = False
    """Whether it runs before others then, because its turn had hardly begun."""


@dataclass(frozen=True)
class Failed:
    """The request ends with an error."""

    error: ApiError


@dataclass(frozen=True)
class Done:
    """All choices are finished."""


Event = ChoiceStart | SpanStart | Piece | SpanEnd | Incident | ChoiceEnd | Turn | Failed | Done
