"""The order of tokens in a prompt: the only place where the paper's context patterns differ.

Knows token ids and lengths. Knows nothing of models, caches or retrieval.

Symbols: s stride, m passage limit, k passages, f frame tokens (before, after, echo), B budget of
the context, all in tokens; positions are half-open intervals.

    none      [0, c) context
    append    [0, c) context   [c, c+f+p) frame, passage, echo       p <= k·m
    prepend   [0, b) BOS       [b, b+f+p) frame and passage    [b+f+p, c+f+p) rest of the context
    slot      [R-f-p, R) frame and passage, [R, R+c) context         R = k·m + f, no echo

**The slot** (not the paper's). The positions [0, R) before the context hold the passage, right-
aligned. It attends to itself alone, and the context attends to it: each of its tokens to the
passage that was in the slot when it was computed. So a prompt says which passage was in view from
which context token on, and its continuation is a function of the prompt, whatever is cached.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from flashback.errors import PromptTooLong, SettingsError
from flashback.settings import Pattern

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Frame:
    """The ids around a passage: trained marking tokens, plain text, or nothing."""

    before: Ids = ()
    after: Ids = ()
    echo: int = 0
    """How many of the context's last tokens are repeated behind an appended passage, so that what
    is written next has its own text right before it."""

    def __len__(self) -> int:
        return len(self.before) + len(self.after) + self.echo

    def around(self, passage: Ids) -> Ids:
        return self.before + passage + self.after

    def echoed(self, text: Ids) -> Ids:
        """The end of the text that is repeated."""
        return text[max(len(text) - self.echo, 0) :]


@dataclass(frozen=True)
class InView:
    """What the context sees in the slot from one of its tokens on, until something else is."""

    start: int
    """The first context token that sees it."""
    passage: Ids
    """With its frame; empty: nothing is in the slot."""


_NOTHING = (InView(0, ()),)


@dataclass(frozen=True)
class Slot:
    """Positions before the context, and what they held while the context was written."""

    room: int = 0
    """R: how many positions are reserved; the context begins at R."""
    history: tuple[InView, ...] = ()

    @property
    def views(self) -> tuple[InView, ...]:
        """In order, without gaps, from the first context token."""
        return self.history or _NOTHING

    @property
    def passage(self) -> Ids:
        """What is in the slot now."""
        return self.views[-1].passage

    def showing(self, passage: Ids, context: int) -> "Slot":
        """The slot when its passage is exchanged behind `context` tokens.

        The last of them sees the new passage, since it is what the next token is computed from; the
        first passage is seen by the whole context.

        Raises:
            SettingsError: the passage is longer than the room for it.
        """
        if len(passage) > self.room:
            raise SettingsError(
                f"a passage of {len(passage)} tokens with its frame; the slot has {self.room}"
            )
        if self.history and self.passage == passage:
            return self
        view = InView(context - 1 if self.history else 0, passage)
        earlier = tuple(one for one in self.history if one.start < view.start)
        return Slot(self.room, (*earlier, view))


_NO_SLOT = Slot()


@dataclass(frozen=True)
class Prompt:
    """What an engine is asked to continue; without a slot in the paper's three patterns."""

    context: Ids
    slot: Slot = _NO_SLOT

    @property
    def arranged(self) -> Ids:
        """What the reader has in view now, token by token."""
        return self.slot.passage + self.context

    def pieces(self, start: int) -> Iterator[tuple[Ids, Ids]]:
        """The context from `start` on, cut where the view changes: passages, and who sees them."""
        views = self.slot.views
        ends = [*(view.start for view in views[1:]), len(self.context)]
        for view, end in zip(views, ends, strict=True):
            if end > start:
                yield view.passage, self.context[max(view.start, start) : end]


def arrange(
    pattern: Pattern, context: Ids, passage: Ids, frame: Frame, bos: int, slot: Slot = _NO_SLOT
) -> Prompt:
    """Put the passage where the pattern wants it.

    Args:
        context: the text so far, beginning with its `bos` BOS tokens.
        passage: the retrieved tokens, no special ones among them; empty when nothing was found.
        bos: how many leading tokens of the context stay at position 0 in every other pattern.
        slot: for the pattern `slot`, as it was before.
    """
    if pattern is Pattern.SLOT:
        framed = frame.around(passage) if passage else ()
        return Prompt(context, slot.showing(framed, len(context)))
    if not passage or pattern is Pattern.NONE:
        return Prompt(context)
    framed = frame.around(passage)
    if pattern is Pattern.APPEND:
        return Prompt(context + framed + frame.echoed(context[bos:]))
    assert pattern is Pattern.PREPEND, "see Generator.settled"
    return Prompt(context[:bos] + framed + context[bos:])


def slot_room(passages: int, passage_tokens: int, frame: Frame) -> int:
    """R = k·m + f: the positions of the slot."""
    return passages * passage_tokens + len(frame.before) + len(frame.after)


def context_budget(window: int, passages: int, passage_tokens: int, frame: int, stride: int) -> int:
    """B = window - (k·m + f) - s: the longest context that always fits, the same for every pattern.

    Raises:
        SettingsError: nothing useful would fit.
    """
    budget = window - (passages * passage_tokens + frame) - stride
    if budget // 2 <= stride:
        raise SettingsError(
            f"the reader's window of {window} tokens leaves {budget} for the context beside "
            f"{passages} x {passage_tokens} passage, {frame} frame and {stride} new tokens, but "
            f"{2 * stride + 2} are needed; lower --passage-tokens, --passages or --stride"
        )
    return budget


@dataclass
class Context:
    """The text so far and the part of it that the reader sees.

    When the visible part no longer fits the budget B, it *jumps*: BOS and the last B/2 tokens
    remain. Jumping that far at once keeps the cache valid until the next jump.
    """

    bos: Ids
    """What the text begins with and keeps in front of it after a jump."""
    budget: int
    """B, tokens."""
    ids: list[int]
    """All tokens, from the first."""
    start: int = 0
    """The first visible token; 0 before any jump."""
    jumps: list[int] = field(default_factory=list)
    """The lengths of the text at which the context jumped."""

    @classmethod
    def of_prompt(cls, ids: Sequence[int], bos: Ids, budget: int, truncate: bool) -> "Context":
        """Begin with a prompt; one over the budget is refused, or cut from the left.

        Raises:
            PromptTooLong: the prompt is over the budget and `truncate` is false.
            SettingsError: the prompt has no tokens.
        """
        if not ids:
            raise SettingsError("the prompt is empty; expected at least one token of text")
        if tuple(ids[: len(bos)]) != bos:
            bos = ()
        if len(ids) > budget:
            if not truncate:
                raise PromptTooLong(
                    f"the prompt has {len(ids)} tokens, but only {budget} fit the reader's window "
                    "beside passages and new tokens; shorten it, or use --truncate to keep its end"
                )
            ids = [*bos, *ids[len(ids) - budget + len(bos) :]]
        return cls(bos, budget, list(ids))

    @property
    def visible(self) -> Ids:
        if self.start == 0:
            return tuple(self.ids)
        return self.bos + tuple(self.ids[self.start :])

    def jump_if_full(self) -> bool:
        """Move the visible part on if it is over the budget; say whether it moved."""
        if len(self.visible) <= self.budget:
            return False
        self.start = len(self.ids) - self.budget // 2
        self.jumps.append(len(self.ids))
        return True
