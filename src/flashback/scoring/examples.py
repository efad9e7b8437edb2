"""A window with its retrieved passages, and the prompts that a pattern makes of them.

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
class Arrangement:
    """How passages are arranged in a reader's prompts."""

    pattern: str
    frame: Frame = Frame()
    forbidden: Ids = ()
    """Ids that are never targets: their logits count as minus infinity."""

    def arrange(self, example: Example, at: int, before: Prompt | None = None) -> Prompt:
        """The prompt of a cut.

        Args:
            at: the number of the cut.
            before: the prompt of the cut before, if this one continues it.
        """
        window = example.window
        context, passage = window.context(window.cuts[at]), example.passages[at]
        reserved = self.reserved(example)
        prompt = min(window.cuts[0].boundary, len(context))  # the text before the first stride
        boundary = Boundary(context, passage, self.frame, window.bos, reserved, before, prompt)
        return PATTERNS[self.pattern].arrange(boundary)

    def reserved(self, example: Example) -> int:
        """R: positions before the text for passages that are exchanged in place; else 0."""
        pattern = PATTERNS[self.pattern]
        if not pattern.isolated:
            return 0
        longest = max(len(self.frame.around(passage)) for passage in example.passages)
        reserved = pattern.reserved(example.most_passages, example.passage_tokens, self.frame)
        return max(reserved, longest)

    def whole(self, example: Example) -> Prompt:
        """All cuts as one prompt, up to the last target: its segments name what each token sees.

        For cuts that continue each other (`Example.prompts_grow`).
        """
        window, prompt = example.window, None
        for at in range(len(window.cuts)):
            prompt = self.arrange(example, at, prompt)
        assert prompt is not None
        ids = window.ids[: window.cuts[-1].boundary + window.stride - 1]
        return Prompt.with_views(ids, prompt.views, prompt.reserved)
