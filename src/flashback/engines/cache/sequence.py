"""Cached sequences: tokens, and the cache that holds their keys and values."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import DynamicCache

from flashback.engines.cache.layers import (
    cache_reaches,
    copy_beginning,
    make_room,
    show_passage,
)
from flashback.engines.kernels.states import States
from flashback.patterns.held import HeldTokens
from flashback.patterns.prompt import Ids, Layout
from flashback.sampling import Sampler


@dataclass(eq=False)
class CachedSequence(HeldTokens):
    """Tokens and the cache that holds their keys and values."""

    cache: DynamicCache = field(kw_only=True)
    writer: "weakref.ref[Sampler] | None" = field(default=None, kw_only=True)
    """The sampler of the text that it was last used for; dead when that text is finished."""
    used: int = field(default=0, kw_only=True)
    """The `Budget.tick` at which its last completion ended."""

    def lay_out(self, layout: Layout, salt: str = "") -> None:
        """Let the next tokens stand where another prompt has them."""
        if (layout, salt) == (self.layout, self.salt):
            return
        self.salt = salt
        self.show((), None)  # the passage in view stands elsewhere
        self.layout = layout
        if (needed := layout.reserved + len(layout.sink)) > self.room:
            make_room(self.cache, needed)
            self.room = needed

    def copy_beginning(self, empty: "CachedSequence", length: int) -> None:
        """Write the first `length` tokens to an empty sequence; no passage is in view there."""
        copy_beginning(self.cache, empty.cache, length)
        empty.ids, empty.views, empty.salt = [*self.ids], [*self.views], self.salt
        empty.keep(length)

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
