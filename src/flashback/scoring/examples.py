"""What is scored: a window, what was found for it, and how a reader is shown that.

Knows token ids. Knows nothing of models.
"""

from dataclasses import dataclass
from itertools import pairwise

from flashback.patterns.frame import Frame
from flashback.patterns.pattern import Boundary
from flashback.patterns.prompt import Ids, Prompt
from flashback.patterns.registry import PATTERNS
from flashback.scoring.windows import Window


@dataclass(frozen=True)
class Example:
    """A window and the passage tokens found for each of its cuts (empty: nothing found)."""

    window: Window
    passages: tuple[Ids, ...]
    """Of each cut, several of them one behind the other."""
    passage_tokens: int = 0
    """m: how long a passage can be, which decides where a slot ends."""
    most_passages: int = 1
    """k: how many a cut can have; likewise."""
    parts: tuple[tuple[Ids, ...], ...] = ()
    """The passages of each cut one by one; empty: there is one."""

    @property
    def prompts_grow(self) -> bool:
        """Whether each cut goes on where the one before ended, with the whole window in view."""
        cuts, stride = self.window.cuts, self.window.stride
        follow = all(b.boundary - a.boundary == stride for a, b in pairwise(cuts))
        return follow and self.window.shares_context


@dataclass(frozen=True)
class SlotLayout:
    """How a slot's passages are encoded and seen; as it is, it is what generation does.

    Everything else is there to be measured (docs/slot.md).
    """

    alone: bool = True
    """Whether a passage sees only itself, and not the context before its boundary."""
    kept: bool = True
    """Whether context tokens keep what they were computed with; else every stride is encoded on a
    context that has never seen a passage, as appending does."""
    dropped: Ids = ()
    """Encoded in front of every passage, and then not shown."""
    gap: int = 0
    """Positions left free between the slot and the context."""
    parallel: bool = False
    """Whether several passages stand at the same positions, each encoded on its own (Parallel
    Context Windows, Ratner et al. 2023)."""

    @property
    def notes(self) -> list[str]:
        """How it differs from what generation does, in words."""
        return [
            *([] if self.alone else ["passage sees the context"]),
            *([] if self.kept else ["context encoded without passages"]),
            *(["sink dropped"] if self.dropped else []),
            *([f"gap of {self.gap}"] if self.gap else []),
            *(["side by side"] if self.parallel else []),
        ]


@dataclass(frozen=True)
class Arrangement:
    """How a reader is shown what was found."""

    pattern: str
    frame: Frame = Frame()
    forbidden: Ids = ()
    """Ids that are never targets: their logits count as minus infinity."""
    layout: SlotLayout = SlotLayout()
    """Of the pattern `slot`."""

    def prompt(self, example: Example, at: int) -> Ids:
        """What the targets of a cut, by its number, are given: token by token, a slot first."""
        return self._prompt(example, at).arranged

    def _prompt(self, example: Example, at: int) -> Prompt:
        window = example.window
        context, passage = window.context(window.cuts[at]), example.passages[at]
        boundary = Boundary(context, passage, self.frame, window.bos, self.room(example))
        return PATTERNS[self.pattern].arrange(boundary)

    def room(self, example: Example) -> int:
        """R: the positions of the slot; 0 in other patterns."""
        pattern = PATTERNS[self.pattern]
        if not pattern.isolated:
            return 0
        shown = [self.in_slot(example, at) for at in range(len(example.passages))]
        longest = max((len(passage) for passages in shown for passage in passages), default=0)
        count = 1 if self.layout.parallel else example.most_passages
        room = pattern.reserved(count, example.passage_tokens, self.frame)
        return max(room, longest) + len(self.layout.dropped)

    def in_slot(self, example: Example, at: int) -> tuple[Ids, ...]:
        """What the targets of a cut see in the slot: framed passages, each encoded on its own."""
        alone = example.parts[at] if self.layout.parallel else (example.passages[at],)
        return tuple(self.frame.around(passage) for passage in alone if passage)

    def first_position(self, example: Example, at: int) -> int:
        """Where a cut's prompt begins: passages shorter than the slot stand at its end."""
        prompt = self._prompt(example, at)
        return prompt.reserved - len(prompt.passage)
