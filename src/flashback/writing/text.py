"""One text being written: its queries, its prompts, its tokens, and when it ends.

The rules of a stride, the same for one text and for a batch. Stop texts, end-of-text tokens and
penalties are handled here, since they may span strides.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from flashback.engines.protocol import Usage
from flashback.patterns.context import Context
from flashback.patterns.frame import Frame
from flashback.patterns.pattern import Boundary
from flashback.patterns.prompt import Ids, Prompt
from flashback.patterns.registry import PATTERNS
from flashback.readers.passages import passage_ids
from flashback.readers.queries import query_text
from flashback.readers.text_reader import TextReader
from flashback.retrieval.protocol import Hit
from flashback.sampling import Sampler
from flashback.settings import Settings
from flashback.writing.chat import Cut
from flashback.writing.detokenization import Detokenizer, StopFinder

Query = Callable[[str], str]
"""The query for what was written so far, without characters that are held back."""
FinishReason = Literal["length", "stop", "eos"]


@dataclass(frozen=True)
class Stride:
    """A finished stride."""

    arranged: Ids
    tokens: Ids
    text: str
    """The text yielded during this stride; the texts of all strides, joined, are the whole."""
    passages: tuple[Hit, ...]
    usage: Usage
    retrieve_seconds: float
    """Waited for the search, and spent on tokenizing and placing what it found."""


@dataclass(frozen=True)
class Generation:
    """A finished text and its strides."""

    prompt_tokens: Ids
    """As used: after truncation, BOS included."""
    strides: tuple[Stride, ...]
    finish_reason: FinishReason
    jumps: tuple[int, ...]
    """Text lengths in tokens at which the context jumped."""
    seconds: float
    """Spent on writing, without the caller's own time between events. In a batch: a share of it,
    so that the seconds of its texts add up."""
    cut: Cut | None = None
    """What a conversation's prompt leaves out, if it outgrew the window."""

    @property
    def text(self) -> str:
        return "".join(stride.text for stride in self.strides)

    @property
    def tokens(self) -> Ids:
        return tuple(token for stride in self.strides for token in stride.tokens)

    @property
    def sources(self) -> tuple[Hit, ...]:
        """The passages that were in view, each once."""
        return tuple({hit.id: hit for one in self.strides for hit in one.passages}.values())

    @property
    def reused(self) -> int:
        return sum(stride.usage.reused for stride in self.strides)

    @property
    def prefilled(self) -> int:
        return sum(stride.usage.prefilled for stride in self.strides)

    @property
    def encoded(self) -> int:
        """Deprecated: `prefilled`."""
        message = "Generation.encoded is now Generation.prefilled"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return self.prefilled

    @property
    def decoded(self) -> int:
        return sum(stride.usage.decoded for stride in self.strides)

    @property
    def tokens_per_second(self) -> float:
        return len(self.tokens) / self.seconds


@dataclass
class Text:
    """A text from its prompt to its end.

    Stride by stride: `begin_stride` gives the query, `arrange` the prompt made of the hits, `take`
    adds each of up to `stride_tokens` new tokens, `end_stride` records the stride.
    """

    reader: TextReader
    settings: Settings
    frame: Frame
    context: Context
    sampler: Sampler
    reserved: int = 0
    """R: positions reserved for passages, for patterns that need them."""
    block: int = 1
    """See `Capabilities.block`."""
    strides: list[Stride] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    seconds: float = 0.0
    stride_tokens: int = 0
    """Tokens of this stride at most."""
    query: Query | None = None
    """The query of each stride, instead of the text of the last tokens."""
    begun: int = 0
    """How many of the prompt's last tokens are the beginning of what is written."""
    cut: Cut | None = None
    """See `Generation`."""

    def __post_init__(self) -> None:
        self.prompt_tokens: Ids = tuple(self.context.ids)
        self._history = max(self.settings.retrieval.history_tokens - self.context.cut, 0)
        self._detokenizer = Detokenizer(self.reader, self.context.ids)
        self._stops = StopFinder(self.settings.stopping.stop)
        self._left = self.settings.stopping.max_new_tokens
        self._lookahead = self.settings.retrieval.lookahead
        self._tokens: list[int] = []
        self._pieces: list[str] = []
        self._hits: tuple[Hit, ...] = ()
        self._before: Prompt | None = None
        """The prompt of the stride before; None at the first one, and after a jump."""
        self.next_query: str | None = None
        """The query of the next stride, once it is certain; before that, None."""
        self._asked: str | None = None
        """The query of the stride that has begun; None between strides."""

    def begin_stride(self) -> str:
        """Start the next stride, once; its query."""
        if self._asked is not None:
            return self._asked
        retrieval = self.settings.retrieval
        if self.context.jump_if_full():
            self._before = None
        self.stride_tokens = min(retrieval.stride, self._left)
        self._left -= self.stride_tokens
        self._tokens, self._pieces = [], []
        query, self.next_query = self.next_query, None
        self._asked = self._query() if query is None else query
        return self._asked

    def _query(self) -> str:
        """The query now: the text of the last tokens, unless the request has a query of its own."""
        if self.query is not None:
            return self.query("".join([*(stride.text for stride in self.strides), *self._pieces]))
        tokens = (*self.context.visible, *self._tokens)
        return query_text(self.reader, tokens, self.settings.retrieval)

    def arrange(self, hits: Sequence[Hit]) -> Prompt:
        """The prompt of the stride: the retrieved passages where the pattern puts them."""
        context, retrieval = self.context, self.settings.retrieval
        boundary = Boundary(
            context.visible,
            passage_ids(self.reader, (hit.text for hit in hits), retrieval),
            self.frame,
            len(context.bos),
            self.reserved,
            context.visible_of(self._history),
            retrieval.recomputed,
            self._before,
            context.visible_of(len(self.prompt_tokens) - self.begun),
            self.block,
        )
        prompt = PATTERNS[retrieval.pattern].arrange(boundary)
        if self.settings.cache_salt:
            prompt = replace(prompt, salt=self.settings.cache_salt)
        self._before, self._hits = prompt, tuple(hits)
        return prompt

    def take(self, token: int) -> str:
        """Add a new token; the text that is final because of it, often empty."""
        self._tokens.append(token)
        ahead = self._lookahead and self._left
        if ahead and len(self._tokens) == self.stride_tokens - self._lookahead:
            self.next_query = self._query()
        text = self._shown(token)
        at_limit = self._left == 0 and len(self._tokens) == self.stride_tokens
        if at_limit and self.finish_reason is None:
            self.finish_reason = "length"
        if self.finish_reason in ("length", "eos"):
            text += self.held_back()
        if text:
            self._pieces.append(text)
        return text

    def end_soon(self) -> None:
        """Let the next token of the stride be the last one; at its end, the text's."""
        if len(self._tokens) >= self.stride_tokens:
            self.finish_reason = self.finish_reason or "length"
        self._left, self.stride_tokens = 0, len(self._tokens) + 1

    def end_stride(self, usage: Usage, retrieve_seconds: float) -> Stride:
        """Add the stride's tokens to the context."""
        self.context.ids.extend(self._tokens)
        self._asked = None
        stride = Stride(
            arranged=() if self._before is None else self._before.arranged,
            tokens=tuple(self._tokens),
            text="".join(self._pieces),
            passages=self._hits,
            usage=usage,
            retrieve_seconds=retrieve_seconds,
        )
        self.strides.append(stride)
        return stride

    def result(self) -> Generation:
        """The finished text.

        Raises:
            RuntimeError: it is not finished.
        """
        if self.finish_reason is None:
            raise RuntimeError("the text is not finished: iterate over all events first")
        jumps = tuple(self.context.jumps)
        strides = tuple(self.strides)
        return Generation(
            self.prompt_tokens, strides, self.finish_reason, jumps, self.seconds, self.cut
        )

    def _shown(self, token: int) -> str:
        if token in self.reader.eos and not self.settings.stopping.ignore_eos:
            self.finish_reason = "eos"
            return ""
        text, stopped = self._stops.push(self._detokenizer.push(token))
        if stopped:
            self.finish_reason = "stop"
        return text

    def held_back(self) -> str:
        """At the end: what waited for the rest of a character or of a stop text."""
        text, stopped = self._stops.push(self._detokenizer.finish())
        if stopped:
            self.finish_reason = "stop"
            return text
        return text + self._stops.finish()
