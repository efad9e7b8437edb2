"""A window with its retrieved passages, and the prompts that a pattern makes of them.

Knows token ids. Knows nothing of models.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from flashback.patterns.frame import Frame
from flashback.patterns.pattern import Boundary
from flashback.patterns.prompt import Ids, Prompt
from flashback.patterns.registry import PATTERNS
from flashback.scoring.windows import Window


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
    recomputed: int = 1
    """e: how many tokens before a cut are computed again where passages are exchanged in place."""
    history: int = 0
    """h: how many of a context's first tokens see no passage at reserved positions."""

    @property
    def prompts_grow(self) -> bool:
        """Whether each cut continues the one before, with the whole window in view."""
        cuts, stride = self.window.cuts, self.window.stride
        follow = all(b.boundary - a.boundary == stride for a, b in pairwise(cuts))
        return follow and self.window.shares_context

    def drawn(self, strides: int, seed: int) -> "Example":
        """The same window with some of its strides, in order.

        Args:
            strides: how many; 0: all.
            seed: with the window's tokens, decides which.
        """
        count = len(self.window.cuts)
        if not 0 < strides < count:
            return self
        draw = random.Random(f"{seed} {self.window.document.id} {self.window.ids}")
        kept = sorted(draw.sample(range(count), strides))
        cuts = tuple(self.window.cuts[at] for at in kept)
        passages = tuple(self.passages[at] for at in kept)
        return replace(self, window=replace(self.window, cuts=cuts), passages=passages)


@dataclass(frozen=True)
class Arrangement:
    """How passages are arranged in a reader's prompts."""

    pattern: str
    frame: Frame = Frame()
    forbidden: Ids = ()
    """Ids that are never targets: their logits count as minus infinity."""
    block: int = 1
    """See `Capabilities.block`."""

    def arrange(self, example: Example, at: int, before: Prompt | None = None) -> Prompt:
        """The prompt of a cut.

        Args:
            at: the number of the cut.
            before: the prompt of the cut before, if this one continues it.
        """
        window = example.window
        context, passage = window.context(window.cuts[at]), example.passages[at]
        boundary = Boundary(
            context,
            passage,
            self.frame,
            window.bos,
            self.reserved(example),
            example.history,
            example.recomputed,
            before,
            min(window.cuts[0].boundary, len(context)),  # the text before the first stride
            self.block,
        )
        return PATTERNS[self.pattern].arrange(boundary)

    def prompts(self, example: Example) -> Iterator[Prompt]:
        """Those of all cuts, each continuing the one before if the cuts do."""
        prompt = None
        for at in range(len(example.window.cuts)):
            prompt = self.arrange(example, at, prompt if example.prompts_grow else None)
            yield prompt

    def reserved(self, example: Example) -> int:
        """R: positions for passages that are exchanged in place; else 0."""
        pattern = PATTERNS[self.pattern]
        if not pattern.isolated:
            return 0
        longest = max(len(self.frame.around(passage)) for passage in example.passages)
        reserved = pattern.reserved(example.most_passages, example.passage_tokens, self.frame)
        return max(reserved, longest)
