"""What the stride loop asks of an engine, whatever runs the reader behind it.

An engine is stateless for its caller: the whole prompt is sent every time, and what it still holds
of it in a cache shows only in the counts and the time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from flashback.patterns.prompt import Ids, Prompt
from flashback.sampling import Sampler


@dataclass
class Usage:
    """What one completion cost; filled while it runs.

    reused + encoded = the prompt's length; encoded alone may exceed it with a slot whose earlier
    passages had to be encoded again.
    """

    reused: int = 0
    """Prompt tokens whose keys and values were already cached."""
    encoded: int = 0
    """Prompt tokens encoded in the boundary pass."""
    decoded: int = 0
    """Decode passes: one less than the tokens, since the boundary pass gives the first."""
    encode_seconds: float = 0.0
    decode_seconds: float = 0.0


@dataclass
class Completion:
    """The tokens of one completion, computed as they are asked for.

    Close it (or leave its `with` block) to give its cache back before it is exhausted.
    """

    tokens: Iterator[int]
    usage: Usage = field(default_factory=Usage)

    def __iter__(self) -> Iterator[int]:
        return self.tokens

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        close = getattr(self.tokens, "close", None)
        if close is not None:
            close()


@dataclass(frozen=True)
class Capabilities:
    """What an engine can do."""

    window: int
    """The most positions a prompt and its continuation may take."""
    slot: bool
    """Whether prompts may have a passage slot."""


class Engine(Protocol):
    """Completes and scores token sequences."""

    @property
    def capabilities(self) -> Capabilities: ...

    def complete(self, prompt: Prompt, max_tokens: int, sampler: Sampler) -> Completion:
        """Continue `prompt` by up to `max_tokens` tokens (at least 1) chosen by `sampler`."""
        ...

    def score(self, ids: Sequence[int], start: int) -> list[float]:
        """Log-probabilities of ids[start:], each given everything before it (1 <= start)."""
        ...


@runtime_checkable
class SlotEngine(Engine, Protocol):
    """An engine that can work ahead on passages for a slot."""

    def prepare(self, passage: Ids, room: int) -> None:
        """Encode a passage that will soon stand in a slot of `room` positions.

        May be called from another thread while a completion runs. Nothing depends on it but time,
        and that it no longer counts as encoded then.
        """
        ...


@dataclass(eq=False)
class Request:
    """One of several completions that are computed together."""

    prompt: Prompt
    max_tokens: int
    sampler: Sampler
    usage: Usage = field(default_factory=Usage)
    """Its share of the time: the shares of all requests add up to the whole."""
    closed: bool = False
    """Set by the caller once it wants no more tokens."""


class Batch(Protocol):
    """Several sequences computed together, each with a cache of its own."""

    @property
    def rows(self) -> int:
        """How many requests there may be at a time."""
        ...

    def complete(self, requests: Sequence[Request]) -> Iterator[list[tuple[int, int]]]:
        """What every pass gives: (number of the request, its next token), in order.

        As with `Engine.complete`, prompts are sent whole; what of them is cached is found again.
        """
        ...


@runtime_checkable
class BatchingEngine(Engine, Protocol):
    """An engine that can compute several completions together."""

    def batch(self, rows: int) -> Batch:
        """Empty caches for so many sequences."""
        ...


@dataclass(frozen=True)
class CacheUse:
    """What an engine's caches hold while no completion is using them."""

    sequences: int
    """Cached sequences."""
    sequence_bytes: int
    """Their keys and values."""
    passage_bytes: int
    """Keys and values of passages."""


@runtime_checkable
class CachingEngine(Engine, Protocol):
    """An engine whose caches are in this process."""

    @property
    def cache_use(self) -> CacheUse:
        """What is cached now; does not wait for a running pass."""
        ...

    def fresh(self, share: int) -> Engine:
        """An engine of the same model with empty caches.

        Args:
            share: its budget for passages is this engine's, divided by so many.
        """
        ...

    def forget(self) -> None:
        """Drop all caches that no completion is using."""
        ...
