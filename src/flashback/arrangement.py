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

from dataclasses import dataclass

from flashback.errors import SettingsError
from flashback.patterns.context import Context, context_budget
from flashback.patterns.frame import Frame
from flashback.patterns.prompt import Ids, Prompt, View
from flashback.settings import Pattern

__all__ = ["Context", "Frame", "Ids", "Prompt", "Slot", "arrange", "context_budget", "slot_room"]


@dataclass(frozen=True)
class Slot:
    """Positions before the context, and what they held while the context was written."""

    room: int = 0
    """R: how many positions are reserved; the context begins at R."""
    history: tuple[View, ...] = ()

    @classmethod
    def of(cls, prompt: Prompt) -> "Slot":
        """As a prompt leaves it."""
        return cls(prompt.reserved, prompt.views)

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
        if self.history and self.history[-1].passage == passage:
            return self
        view = View(context - 1 if self.history else 0, passage)
        earlier = tuple(one for one in self.history if one.start < view.start)
        return Slot(self.room, (*earlier, view))


_NO_SLOT = Slot()


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
        shown = slot.showing(framed, len(context))
        return Prompt.with_views(context, shown.history, shown.room)
    if not passage or pattern is Pattern.NONE:
        return Prompt.plain(context)
    framed = frame.around(passage)
    if pattern is Pattern.APPEND:
        return Prompt.plain(context + framed + frame.echoed(context[bos:]))
    assert pattern is Pattern.PREPEND, "see Generator.settled"
    return Prompt.plain(context[:bos] + framed + context[bos:])


def slot_room(passages: int, passage_tokens: int, frame: Frame) -> int:
    """R = k·m + f: the positions of the slot."""
    return passages * passage_tokens + len(frame.before) + len(frame.after)
