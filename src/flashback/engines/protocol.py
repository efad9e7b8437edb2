"""The engine as the stride loop sees it, whatever runs the reader behind it.

An engine is stateless for its caller: the whole prompt is sent every time, and what an engine has
cached of it shows only in the counts and the time.

The reader may run in this process or elsewhere. In this process an engine hands logits to
`sampler.choose`. One that chooses tokens elsewhere reads `sampler.settings`, `sampler.history` (the
text's ids so far), `sampler.forbidden` (ids never to be chosen) and `sampler.ends` (ids that end
the text), draws as they say, and reports each token by `sampler.accept(token)`.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from flashback.patterns.prompt import PlacedPassage, Prompt
from flashback.sampling import Sampler


@dataclass
class Usage:
    """The cost of one completion; filled while it runs.

    reused + prefilled - sink = the prompt's length; prefilled alone may exceed it where earlier
    passages at reserved positions had to be prefilled again. All are 0 for a completion that ended
    before an engine elsewhere gave its counts.
    """

    reused: int = 0
    """Prompt tokens whose keys and values were cached, a passage's at reserved positions, too."""
    cached: int = 0
    """Those of them that are of the text."""
    prefilled: int = 0
    """Tokens computed before the first new one."""
    sink: int = 0
    """Those of them that are no part of the prompt: copies of a sink, see `Layout.sink`."""
    decoded: int = 0
    """Decode passes: one less than the tokens, since prefilling gives the first."""
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0

    def count_passage(self, passage: PlacedPassage) -> None:
        """A passage at reserved positions is prefilled."""
        self.prefilled += len(passage.behind_sink)
        self.sink += len(passage.sink)

    def count_reused(self, arranged: int) -> None:
        """A prompt of so many tokens is prefilled."""
        self.reused = max(arranged + self.sink - self.prefilled, 0)

    @property
    def encoded(self) -> int:
        """Deprecated: `prefilled`."""
        warnings.warn("Usage.encoded is now Usage.prefilled", DeprecationWarning, stacklevel=2)
        return self.prefilled

    @property
    def encode_seconds(self) -> float:
        """Deprecated: `prefill_seconds`."""
        message = "Usage.encode_seconds is now Usage.prefill_seconds"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return self.prefill_seconds


@dataclass
class Completion:
    """The tokens of one completion, computed as they are asked for.

    Close it (or leave its `with` block) to end its lease of a cache before it is exhausted.
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
        """Compute no more tokens."""
        close = getattr(self.tokens, "close", None)
        if close is not None:
            close()


@dataclass(frozen=True)
class Capabilities:
    """The abilities of an engine."""

    window: int
    """The most positions a prompt and its continuation may take."""
    slot: bool
    """Whether prompts may have passages at reserved positions."""
    concurrent: int = 1
    """How many completions it computes at a time, each asked for on a thread of its own."""
    chooses_here: bool = True
    """Whether `Sampler.choose` picks its tokens, from logits."""
    block: int = 1
    """With more than 1, a slot is made of blocks of so many tokens: its reserved positions are all
    filled and end with a block, in front of them stands no more than a sink, and what is computed
    again begins with a block."""

    @property
    def slot_in_front(self) -> bool:
        """Whether there is a slot, but in front of a text only: none in a chat."""
        return self.slot and self.block > 1


class Engine(Protocol):
    """Completes prompts of token ids."""

    @property
    def capabilities(self) -> Capabilities:
        """The prompts it can complete."""
        ...

    def complete(self, prompt: Prompt, max_tokens: int, sampler: Sampler) -> Completion:
        """Continue a prompt by up to `max_tokens` tokens (at least 1).

        Args:
            sampler: chooses every token from its logits, or gets it by `sampler.accept`.
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
        """Largest number of requests at a time."""
        ...

    def complete(self, requests: Sequence[Request]) -> Iterator[list[tuple[int, int]]]:
        """The tokens of every pass: (number of the request, its next token), in order.

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
    """The size of an engine's caches, without those that a completion has leased."""

    sequences: int
    """Number of idle cached sequences."""
    sequence_bytes: int
    """Theirs."""
    passage_bytes: int
    """Of keys and values of passages."""


@runtime_checkable
class CachingEngine(Engine, Protocol):
    """An engine whose caches are in this process."""

    @property
    def cache_use(self) -> CacheUse:
        """The size of the caches now; does not wait for a pass."""
        ...

    def fresh(self, share: int) -> "CachingEngine":
        """An engine of the same model with empty caches and 1/share of the budget."""
        ...

    def forget(self) -> None:
        """Empty all caches."""
        ...
