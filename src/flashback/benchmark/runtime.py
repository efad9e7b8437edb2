"""The paper's run-time test: seconds per stride against context length, pattern by pattern.

Random tokens, passages all different (paper section 4.3). The arms take turns stride by stride,
each with its own cache that begins empty, so that a machine whose speed drifts treats them alike.

    whole     every stride from the first context length to the last
    sampled   single strides at a grid of lengths, interpolated; the context is put into the cache
              first, so that a stride costs what it costs in the middle of a long text
"""

import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from flashback.benchmark.ceilings import Ceilings, bound_seconds, measure_ceilings
from flashback.benchmark.flops import Shape, stride_passes
from flashback.benchmark.settings import RuntimeSettings
from flashback.benchmark.shapes import shaped_reader, word
from flashback.engines.local import CachedSequence, LocalEngine
from flashback.errors import SettingsError
from flashback.generation import Generator, Stride
from flashback.reader import Reader
from flashback.retrieval.protocol import Hit, SearchOptions
from flashback.settings import (
    FrameText,
    Pattern,
    RetrievalSettings,
    Settings,
    StoppingSettings,
)


@dataclass(frozen=True)
class Measured:
    """One stride of one arm at one context length."""

    arm: str
    length: int
    """Context tokens at the boundary."""
    encode_seconds: float
    decode_seconds: float
    bound_seconds: float
    """What the same stride would take at the machine's ceilings."""

    @property
    def stride_seconds(self) -> float:
        return self.encode_seconds + self.decode_seconds

    @property
    def bound_share(self) -> float:
        """1 is the physical limit."""
        return self.bound_seconds / self.stride_seconds


class EveryLogitEngine(LocalEngine):
    """The logits of every position of a pass, as the authors' code computes them."""

    def _forward(self, sequence: CachedSequence, ids: Sequence[int], keep: int) -> Tensor:
        return super()._forward(sequence, ids, len(ids))[-keep:]


class RandomPassages:
    """A retriever whose passages are all different."""

    def __init__(self, reader: Reader, tokens: int, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._size = reader.vocabulary_size
        self._tokens = tokens

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        return [[self._passage() for _ in range(options.k)] for _ in queries]

    def _passage(self) -> Hit:
        text = " ".join(word(self._random.randrange(self._size)) for _ in range(self._tokens))
        return Hit("p", "d", "", text, 1.0)


def random_tokens(reader: Reader, count: int) -> list[int]:
    """A seeded random prompt."""
    generator = random.Random(1)
    return [generator.randrange(reader.vocabulary_size) for _ in range(count)]


def prepare(settings: RuntimeSettings) -> "Runtime":
    """Make the model and measure the machine's ceilings.

    Raises:
        SettingsError: an unknown shape, device or dtype, or lengths that do not fit.
    """
    lengths = parse_lengths(settings)
    reader = shaped_reader(settings.shape, device=settings.device, dtype=settings.dtype)
    needed = lengths[-1] + settings.passage_tokens + settings.stride
    if needed > reader.window:
        raise SettingsError(
            f"--lengths {settings.lengths}: needs {needed} positions, but {reader.name} has "
            f"{reader.window}"
        )
    shape, ceilings = Shape.of(reader.model), measure_ceilings(reader.placement)
    return Runtime(reader, settings, lengths, shape, ceilings)


@dataclass(frozen=True)
class Runtime:
    """A reader on a machine, ready to be measured."""

    reader: Reader
    settings: RuntimeSettings
    lengths: range
    """Context tokens at each boundary."""
    shape: Shape
    ceilings: Ceilings

    @property
    def strides_to_measure(self) -> int:
        points = len(grid(self.lengths)) if self.settings.sampled else len(self.lengths)
        return points * len(self.settings.arms) * self.settings.repeats

    def run(self, on_stride: Callable[[], None] = lambda: None) -> list[Measured]:
        """Measure every arm, `repeats` times; medians count.

        Args:
            on_stride: called after every measured stride.
        """
        self._sampled([4 * self.settings.stride], lambda: None)  # a warm-up, not counted
        runs = [
            self._sampled(grid(self.lengths), on_stride)
            if self.settings.sampled
            else self._whole(on_stride)
            for _ in range(self.settings.repeats)
        ]
        return _medians(runs)

    def _whole(self, on_stride: Callable[[], None]) -> list[Measured]:
        """Every stride while the context grows, all arms in turn."""
        arms = self.settings.arms
        writers = {arm: self.strides(arm, self.lengths[0], len(self.lengths)) for arm in arms}
        rows = []
        for length in self.lengths:
            for arm in arms:
                rows.append(self._measured(arm, length, next(writers[arm])))
                on_stride()
        return rows

    def _sampled(self, lengths: Sequence[int], on_stride: Callable[[], None]) -> list[Measured]:
        """One stride of every arm at each of these context lengths."""
        rows = []
        for length in lengths:
            for arm in self.settings.arms:
                strides = self.strides(arm, length - self.settings.stride, 2)
                next(strides)  # puts the context into the cache
                rows.append(self._measured(arm, length, next(strides)))
                on_stride()
        return rows

    def strides(self, arm: str, start: int, count: int) -> Iterator[Stride]:
        kind = EveryLogitEngine if arm == "authors_prepend" else LocalEngine
        engine = kind(self.reader.model, self.reader.window, self_check=False)
        settings = Settings(
            RetrievalSettings(
                pattern_of(arm),
                self.settings.stride,
                passage_tokens=self.settings.passage_tokens,
                frame=FrameText("", "", 0),
            ),
            stopping=StoppingSettings(count * self.settings.stride, ignore_eos=True),
        )
        retriever = RandomPassages(self.reader, self.settings.passage_tokens)
        writing = Generator(self.reader, engine, retriever).stream(
            random_tokens(self.reader, start), settings
        )
        return (event for event in writing if isinstance(event, Stride))

    def _measured(self, arm: str, length: int, stride: Stride) -> Measured:
        passes = stride_passes(
            pattern_of(arm),
            length,
            self.settings.stride,
            self.settings.passage_tokens,
            every_logit=arm == "authors_prepend",
        )
        bound = sum(bound_seconds(self.shape, one, self.ceilings) for one in passes)
        usage = stride.usage
        return Measured(arm, length, usage.encode_seconds, usage.decode_seconds, bound)


def pattern_of(arm: str) -> Pattern:
    """The context pattern of an arm."""
    return Pattern(arm.removeprefix("authors_"))


def _medians(runs: Sequence[Sequence[Measured]]) -> list[Measured]:
    """Over repeats, row by row."""
    return [
        Measured(
            rows[0].arm,
            rows[0].length,
            statistics.median(row.encode_seconds for row in rows),
            statistics.median(row.decode_seconds for row in rows),
            rows[0].bound_seconds,
        )
        for rows in zip(*runs, strict=True)
    ]


def total_seconds(rows: Sequence[Measured], arm: str, lengths: Sequence[int]) -> float:
    """The seconds of all strides at `lengths`, interpolated between the measured ones."""
    own = sorted((row.length, row.stride_seconds) for row in rows if row.arm == arm)
    known, seconds = zip(*own, strict=True)
    return float(np.interp(lengths, known, seconds).sum())


def ratios(rows: Sequence[Measured], lengths: Sequence[int]) -> dict[str, float]:
    """The comparisons of the paper, over all strides at `lengths`."""
    measured = {row.arm for row in rows}
    pairs = (
        ("prepend", "append"),
        ("append", "none"),
        ("authors_prepend", "append"),
        ("slot", "none"),
        ("prepend", "slot"),
    )
    seconds = {arm: total_seconds(rows, arm, lengths) for arm in measured}
    return {
        f"{above}/{below}": seconds[above] / seconds[below]
        for above, below in pairs
        if {above, below} <= measured
    }


def parse_lengths(settings: RuntimeSettings) -> range:
    """Context lengths at the boundaries.

    Contexts begin at FIRST tokens and end where a passage still fits LAST positions (T - m).

    Raises:
        SettingsError: not of that form, or no room for one stride.
    """
    text = settings.lengths
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal()):
        raise SettingsError(f"--lengths {text}: expected FIRST:LAST in tokens, such as 512:1024")
    lengths = range(int(first), int(last) - settings.passage_tokens, settings.stride)
    if len(lengths) < 2 or int(first) < 4 * settings.stride:
        raise SettingsError(
            f"--lengths {text}: expected FIRST from {4 * settings.stride} and LAST at least "
            f"{settings.passage_tokens + 2 * settings.stride} higher"
        )
    return lengths


def grid(lengths: range, points: int = 5) -> list[int]:
    """A few of the lengths, the first and the last among them, for `sampled`."""
    count = min(points, len(lengths))
    return [lengths[round(i * (len(lengths) - 1) / (count - 1))] for i in range(count)]
