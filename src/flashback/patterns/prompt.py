"""A prompt: the ids that an engine continues, where they stand, and what each of them sees.

Knows token ids and positions. Knows nothing of models, caches or retrieval.

Symbols: R reserved positions, n tokens of the text; positions are half-open intervals.

    [0, R)       reserved: the passage in view stands at their end, right before the text
    [R, R + n)   the text, cut into segments; everything in it sees all of the text before it

A passage in reserved positions attends to itself alone. A segment's tokens attend to the passage
that was in view when they were computed, so a prompt names it for every segment: the continuation
is a function of the prompt, whatever an engine has cached.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

Ids = tuple[int, ...]
"""Token ids."""


@dataclass(frozen=True)
class View:
    """The passage that the text sees from one of its tokens on, until the next view."""

    start: int
    """The first token of the text that sees it."""
    passage: Ids
    """Frame included; empty: no passage is in view."""


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens of a text that are computed with one passage in view."""

    ids: Ids
    start: int
    """Position of the first token; the others follow."""
    passage: Ids = ()
    """In view: stands right before position R, and attends to itself alone."""


@dataclass(frozen=True)
class Prompt:
    """The input of an engine: the segments of a text, in order and without gaps."""

    segments: tuple[Segment, ...]
    reserved: int = 0
    """R: positions before the text."""

    def __post_init__(self) -> None:
        end = self.reserved
        for one in self.segments:
            assert one.start == end, f"a segment starts at {one.start}; expected {end}, no gap"
            assert len(one.passage) <= self.reserved, "a passage is longer than what is reserved"
            end += len(one.ids)

    @classmethod
    def plain(cls, ids: Sequence[int]) -> "Prompt":
        """Ids from position 0 on, each seeing all before it."""
        return cls((Segment(tuple(ids), 0),))

    @classmethod
    def with_views(cls, ids: Ids, views: Sequence[View], reserved: int) -> "Prompt":
        """A text and the passages that it saw.

        Args:
            ids: the text.
            views: the first starts at 0; none: no passage is in view.
            reserved: R.
        """
        views = views or (View(0, ()),)
        ends = [*(view.start for view in views[1:]), len(ids)]
        return cls(
            tuple(
                Segment(ids[view.start : end], reserved + view.start, view.passage)
                for view, end in zip(views, ends, strict=True)
            ),
            reserved,
        )

    @cached_property
    def ids(self) -> Ids:
        """The text: all tokens but those at reserved positions."""
        if len(self.segments) == 1:
            return self.segments[0].ids
        return tuple(token for segment in self.segments for token in segment.ids)

    @cached_property
    def views(self) -> tuple[View, ...]:
        """The passages that the text saw, in order; neighbours differ."""
        found: list[View] = []
        for one in self.segments:
            if not found or found[-1].passage != one.passage:
                found.append(View(one.start - self.reserved, one.passage))
        return tuple(found)

    @property
    def passage(self) -> Ids:
        """The passage at the reserved positions now."""
        return self.segments[-1].passage

    @property
    def arranged(self) -> Ids:
        """Everything in view of the next token, in the order of positions."""
        return self.passage + self.ids

    def after(self, done: int) -> Iterator[Segment]:
        """The segments without the first `done` tokens of the text."""
        for segment in self.segments:
            skipped = max(done - (segment.start - self.reserved), 0)
            if skipped < len(segment.ids):
                yield Segment(segment.ids[skipped:], segment.start + skipped, segment.passage)
