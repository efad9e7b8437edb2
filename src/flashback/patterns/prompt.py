"""A prompt: the ids that an engine continues, where they stand, and what each of them sees.

Knows token ids and positions. Knows nothing of models, caches or retrieval.

Symbols: h history tokens, R reserved positions, n tokens of the text; positions are half-open
intervals.

    [0, h)           the text's first tokens, computed without a passage
    [h, h + R)       reserved: the passage in view stands at their end
    [h + R, n + R)   the rest of the text

Every token of the text sees all of the text before it. A passage in reserved positions sees itself,
and the sink: a copy of what a text begins with, right before the passage, which nothing else sees.
A token behind h also sees the passage that was in view when it was computed, so a
prompt names it for every segment: the continuation is a function of the prompt, whatever an engine
has cached. The first h tokens are computed as in a prompt without passages, whose cache is theirs.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

Ids = tuple[int, ...]
"""Token ids."""


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a text and a passage stand."""

    history: int = 0
    """h: the text's tokens before the reserved positions."""
    reserved: int = 0
    """R."""
    sink: Ids = ()
    """b tokens, at most h, that a passage is computed behind: attention goes to the first token of
    a text (Xiao et al. 2023, "attention sinks"), so a passage needs one, too."""

    def position(self, token: int) -> int:
        """The position of a token of the text, by its number."""
        return token if token < self.history else token + self.reserved

    @property
    def passage_end(self) -> int:
        """h + R, the position behind a passage."""
        return self.history + self.reserved

    def placed(self, passage: Ids, salt: str = "") -> "PlacedPassage":
        """A passage, with what it sees."""
        return PlacedPassage(passage, self.passage_end, self.sink, salt)

    def same_positions(self, other: "Layout") -> int:
        """How many of a text's first tokens stand where they do in another layout, at least.

        None of them sees a passage of only one of the two.
        """
        return sys.maxsize if self == other else min(self._plain, other._plain)

    @property
    def _plain(self) -> int:
        return self.history if self.reserved else sys.maxsize


@dataclass(frozen=True)
class View:
    """The passage that the text sees from one of its tokens on, until the next view."""

    start: int
    """The first token of the text that sees it."""
    passage: Ids
    """Frame included; empty: no passage is in view."""


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens of a text, at consecutive positions, computed with one passage in view."""

    ids: Ids
    start: int
    """Number of the first token in the text."""
    passage: Ids = ()


@dataclass(frozen=True)
class PlacedPassage:
    """A passage and what decides its keys and values: all that it sees, and where it stands."""

    ids: Ids
    """Frame included."""
    end: int
    """The position behind it."""
    sink: Ids = ()
    salt: str = ""
    """That of its prompt."""

    @property
    def behind_sink(self) -> Ids:
        """The sink and the passage."""
        return self.sink + self.ids

    @property
    def positions(self) -> range:
        """Of the sink and the passage."""
        return range(self.end - len(self.behind_sink), self.end)


@dataclass(frozen=True)
class Prompt:
    """The input of an engine: the segments of a text, in order and without gaps."""

    segments: tuple[Segment, ...]
    layout: Layout = Layout()
    salt: str = ""
    """Only prompts with the same one share what is cached, as vLLM's `cache_salt` has it: else the
    time of a request would tell what others asked."""

    def __post_init__(self) -> None:
        layout, end = self.layout, 0
        assert len(layout.sink) <= layout.history, "there is no position for the sink"
        for one in self.segments:
            assert one.start == end, f"a segment starts at {one.start}; expected {end}, no gap"
            end += len(one.ids)
            if layout.reserved:
                split = one.start < layout.history < end
                assert not split, "a segment stands before and behind the reserved positions"
            if one.passage:
                assert len(one.passage) <= layout.reserved, "a passage is longer than R"
                assert one.start >= layout.history, "a passage is in view before it stands"

    @classmethod
    def plain(cls, ids: Sequence[int]) -> "Prompt":
        """Ids from position 0 on, each seeing all before it."""
        return cls((Segment(tuple(ids), 0),))

    @classmethod
    def with_views(cls, ids: Ids, views: Sequence[View], layout: Layout) -> "Prompt":
        """A text and the passages that it saw.

        Args:
            ids: the text.
            views: in order; before the first, no passage is in view.
        """
        seen: dict[int, Ids] = {0: (), layout.history: ()}
        seen |= {view.start: view.passage for view in views}
        starts = sorted(start for start in seen if start < len(ids))
        ends = [*starts[1:], len(ids)]
        return cls(
            tuple(
                Segment(ids[start:end], start, seen[start])
                for start, end in zip(starts, ends, strict=True)
            ),
            layout,
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
                found.append(View(one.start, one.passage))
        return tuple(found)

    @property
    def passage(self) -> Ids:
        """The passage at the reserved positions now."""
        return self.segments[-1].passage

    def placed(self, passage: Ids) -> PlacedPassage:
        """One of its passages, with what it sees."""
        return self.layout.placed(passage, self.salt)

    @property
    def arranged(self) -> Ids:
        """Everything in view of the next token, in the order of positions."""
        history = self.layout.history
        return self.ids[:history] + self.passage + self.ids[history:]

    def after(self, done: int) -> Iterator[Segment]:
        """The segments without the first `done` tokens of the text."""
        for segment in self.segments:
            skipped = max(done - segment.start, 0)
            if skipped < len(segment.ids):
                yield Segment(segment.ids[skipped:], segment.start + skipped, segment.passage)
