"""The tokens of a cached sequence, and how many of them a prompt shares."""

import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from transformers import DynamicCache

from flashback.engines.cache.layers import cache_reaches, show_passage
from flashback.engines.kernels.states import States
from flashback.patterns.prompt import Ids, Prompt, View
from flashback.sampling import Sampler


@dataclass(eq=False)
class HeldTokens:
    """The ids whose keys and values are held, and what was in view when they were computed."""

    reserved: int = 0
    """R, positions before the text; its first token stands at R."""
    ids: list[int] = field(default_factory=list)
    """The text."""
    views: list[View] = field(default_factory=list)
    """The passages that were in view when they were computed."""
    passage: Ids = ()
    """The passage in view now."""

    @property
    def end(self) -> int:
        """R + n: the column of the next token."""
        return self.reserved + len(self.ids)

    @property
    def first(self) -> int:
        """R - p: the first column that is not hidden."""
        return self.reserved - len(self.passage)

    def common_prefix(self, prompt: Prompt) -> int:
        """Number of tokens that can be kept: the same ones, with the same passages in view.

        At least one token of the prompt is left to prefill.
        """
        ids = prompt.ids
        if self.reserved != prompt.reserved:
            return 0
        limit = min(len(self.ids), len(ids) - 1, _views_differ(self.views, prompt.views))
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


@dataclass(eq=False)
class CachedSequence(HeldTokens):
    """Tokens and the cache that holds their keys and values."""

    cache: DynamicCache = field(kw_only=True)
    writer: "weakref.ref[Sampler] | None" = field(default=None, kw_only=True)
    """The sampler of the text that it was last used for; dead when that text is finished."""

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
        """Exchange the passage in view."""
        show_passage(self.cache, states)
        self.passage = passage

    def check(self) -> None:
        """Assert that the cache has as many columns as there are tokens in view."""
        held = len(self.passage) + len(self.ids)
        assert self.cache.get_seq_length() == held, "cache and ids are out of step"


def _views_differ(held: Sequence[View], wanted: Sequence[View]) -> int:
    """The first token that would see another passage; large if there is none."""
    for one, other in zip_longest(held, wanted):
        if one != other:
            return min(view.start for view in (one, other) if view is not None)
    return sys.maxsize
