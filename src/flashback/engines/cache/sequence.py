"""What a cached sequence holds, token by token, and how much of it a prompt can go on from."""

import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from transformers import DynamicCache

from flashback.engines.cache.layers import States, cache_reaches, show_passage
from flashback.patterns.prompt import Ids, Prompt, View
from flashback.sampling import Sampler


@dataclass(eq=False)
class HeldTokens:
    """The ids whose keys and values are held, and what was in view while they were encoded."""

    room: int = 0
    """R, positions of the slot; the first token stands at R."""
    ids: list[int] = field(default_factory=list)
    """The context."""
    views: list[View] = field(default_factory=list)
    """What was in the slot while they were encoded."""
    shown: Ids = ()
    """What is in the slot."""

    @property
    def end(self) -> int:
        """R + n: the column of the next token."""
        return self.room + len(self.ids)

    @property
    def first(self) -> int:
        """R - p: the first column that is not hidden."""
        return self.room - len(self.shown)

    def common_prefix(self, prompt: Prompt) -> int:
        """How many context tokens can be kept: the same ones, with the same passages in view.

        At least one token of the prompt is left to encode.
        """
        ids = prompt.ids
        if self.room != prompt.reserved:
            return 0
        limit = min(len(self.ids), len(ids) - 1, _views_differ(self.views, prompt.views))
        return next((i for i in range(limit) if self.ids[i] != ids[i]), limit)

    def keep(self, length: int) -> None:
        """Forget the tokens from `length` on."""
        del self.ids[length:]
        self.views = [view for view in self.views if view.start < length]

    def encoded(self, ids: Sequence[int]) -> None:
        """Take note of what a pass has put behind the rest."""
        if not self.views or self.views[-1].passage != self.shown:
            self.views.append(View(len(self.ids), self.shown))
        self.ids.extend(ids)


@dataclass(eq=False)
class CachedSequence(HeldTokens):
    """Held tokens, and the cache that holds them."""

    cache: DynamicCache = field(kw_only=True)
    writer: "weakref.ref[Sampler] | None" = field(default=None, kw_only=True)
    """Whose text it was last used for; dead when that text is finished."""

    def reaches(self, length: int) -> bool:
        """Whether the cache can be cut back to `length` and still be exact."""
        return cache_reaches(self.cache, length)

    def cut(self, length: int) -> None:
        """Forget everything from `length` on.

        Also called with nothing to forget: sliding-window layers learn from it what they may drop.
        """
        assert self.reaches(length)
        self.cache.crop(length - len(self.ids))
        self.keep(length)
        self.check()

    def show(self, passage: Ids, states: Sequence[States] | None) -> None:
        """Exchange what is in the slot."""
        show_passage(self.cache, states)
        self.shown = passage

    def check(self) -> None:
        held = len(self.shown) + len(self.ids)
        assert self.cache.get_seq_length() == held, "cache and ids are out of step"


def _views_differ(held: Sequence[View], wanted: Sequence[View]) -> int:
    """The first context token that would see another passage; large if there is none."""
    for one, other in zip_longest(held, wanted):
        if one != other:
            return min(view.start for view in (one, other) if view is not None)
    return sys.maxsize
