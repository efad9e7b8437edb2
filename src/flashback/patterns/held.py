"""Tokens whose keys and values are held somewhere, and how many of them a prompt shares."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from flashback.patterns.prompt import Ids, Layout, PlacedPassage, Prompt, View


@dataclass(eq=False)
class HeldTokens:
    """The ids whose keys and values are held, and what was in view when they were computed."""

    layout: Layout = field(default_factory=Layout)
    """Where they stand."""
    room: int = 0
    """Columns before the text's for a passage, and for its sink where both share a pass."""
    ids: list[int] = field(default_factory=list)
    """The text."""
    views: list[View] = field(default_factory=list)
    """The passages that were in view when they were computed."""
    passage: Ids = ()
    """The passage in view now."""
    salt: str = ""
    """That of the prompts that may share them."""

    @property
    def end(self) -> int:
        """The column of the next token."""
        return self.room + len(self.ids)

    @property
    def first(self) -> int:
        """The first column that is not hidden."""
        return self.room - len(self.passage)

    @property
    def position(self) -> int:
        """The position of the next token."""
        return self.layout.position(len(self.ids))

    def positions(self, start: int, count: int) -> list[int]:
        """Of `count` tokens from the one numbered `start` on."""
        return [self.layout.position(token) for token in range(start, start + count)]

    def placed(self, passage: Ids) -> PlacedPassage:
        """A passage at the reserved positions, with what it sees."""
        return self.layout.placed(passage, self.salt)

    def common_prefix(self, prompt: Prompt) -> int:
        """Number of tokens that can be kept: the same ones, at the same positions, with the same
        passages in view.

        At least one token of the prompt is left to prefill.
        """
        if self.salt != prompt.salt:
            return 0
        ids = prompt.ids
        limit = min(
            len(self.ids),
            len(ids) - 1,
            self.layout.same_positions(prompt.layout),
            _views_differ(self.views, prompt.views),
        )
        return next((i for i in range(limit) if self.ids[i] != ids[i]), limit)

    def keep(self, length: int) -> None:
        """Forget the tokens from `length` on."""
        del self.ids[length:]
        self.views = [view for view in self.views if view.start < length]

    def append(self, ids: Sequence[int]) -> None:
        """Take note of tokens that a pass has cached behind the rest."""
        if not self.views or self.views[-1].passage != self.passage:
            self.views.append(View(len(self.ids), self.passage))
        self.ids.extend(ids)


def _views_differ(held: Sequence[View], wanted: Sequence[View]) -> int:
    """The first token that would see another passage; large if there is none."""
    for one, other in zip_longest(held, wanted):
        if one != other:
            return min(view.start for view in (one, other) if view is not None)
    return sys.maxsize
