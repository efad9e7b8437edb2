"""What is scored: a window, its retrieved passages, and the prompts that a pattern makes of them.

Knows token ids. Knows nothing of models.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from flashback.arrangement import Frame, Ids, Prompt, Slot, arrange, slot_room
from flashback.scoring.windows import Window
from flashback.settings import Pattern


@dataclass(frozen=True)
class Example:
    """A window and the passage tokens of each of its cuts (empty: nothing was found)."""

    window: Window
    passages: tuple[Ids, ...]
    """Of each cut; several passages are concatenated."""
    passage_tokens: int = 0
    """m: the most tokens of a passage, which decides how many positions are reserved."""
    most_passages: int = 1
    """k: the most passages of a cut; likewise."""

    @property
    def prompts_grow(self) -> bool:
        """Whether each cut continues the one before, with the whole window in view."""
        cuts, stride = self.window.cuts, self.window.stride
        follow = all(b.boundary - a.boundary == stride for a, b in pairwise(cuts))
        return follow and self.window.shares_context


@dataclass(frozen=True)
class Piece:
    """Consecutive tokens of a window that see the same passage at reserved positions."""

    ids: Ids
    position: int
    """Of the first token."""
    passage: Ids
    """Frame included; empty: none."""


@dataclass(frozen=True)
class Arrangement:
    """How passages are arranged in a reader's prompts."""

    pattern: Pattern
    frame: Frame = Frame()
    forbidden: Ids = ()
    """Ids that are never targets: their logits count as minus infinity."""

    def prompt(self, example: Example, at: int) -> Ids:
        """The ids that the targets of a cut, by its number, are conditioned on, in order."""
        return self._prompt(example, at, Slot(self.reserved(example))).arranged

    def first_position(self, example: Example, at: int) -> int:
        """The position of a cut's first prompt token: above 0 if reserved positions stay empty."""
        prompt = self._prompt(example, at, Slot(self.reserved(example)))
        return prompt.slot.room - len(prompt.slot.passage)

    def reserved(self, example: Example) -> int:
        """R: positions before the text that passages are exchanged in; 0 in most patterns."""
        if self.pattern is not Pattern.SLOT:
            return 0
        longest = max(len(self.frame.around(passage)) for passage in example.passages)
        room = slot_room(example.most_passages, example.passage_tokens, self.frame)
        return max(room, longest)

    def pieces(self, example: Example) -> Iterator[Piece]:
        """The window up to its last target, cut where the passage in view changes.

        For patterns whose passages are exchanged in place, and cuts that continue each other.
        """
        window, slot = example.window, Slot(self.reserved(example))
        for at in range(len(window.cuts)):
            slot = self._prompt(example, at, slot).slot
        whole = Prompt(window.ids[: window.cuts[-1].boundary + window.stride - 1], slot)
        done = 0
        for passage, ids in whole.pieces(0):
            yield Piece(ids, slot.room + done, passage)
            done += len(ids)

    def _prompt(self, example: Example, at: int, slot: Slot) -> Prompt:
        window = example.window
        context, passage = window.context(window.cuts[at]), example.passages[at]
        return arrange(self.pattern, context, passage, self.frame, window.bos, slot)
