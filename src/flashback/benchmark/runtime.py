"""The run-time test: seconds per stride against context length, pattern by pattern.

Random tokens, passages all different (paper section 4.3), or real text and an index; see
`benchmark/material.py`. The arms take turns stride by stride, each with its own cache that begins
empty, so that a machine whose speed drifts treats them alike.

    whole     every stride from the first context length to the last
    sampled   the first stride, and single later ones at a grid of lengths, interpolated; there the
              context is put into the cache first, so that a stride costs what it costs in the
              middle of a long text
"""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from flashback.benchmark.bench_settings import ARMS, RuntimeSettings
from flashback.benchmark.calibration import calibrate
from flashback.benchmark.ceilings import Ceilings, bound_seconds, measure_ceilings
from flashback.benchmark.flops import Pass, Shape, stride_passes
from flashback.benchmark.material import Material, random_material, real_material
from flashback.benchmark.results import Measured, Results
from flashback.benchmark.shapes import shaped_reader
from flashback.benchmark.timed import TimedEngine
from flashback.corpus.documents import Document
from flashback.engines.local import LocalEngine
from flashback.errors import CorpusError, SettingsError
from flashback.patterns.registry import PATTERNS
from flashback.readers.inference import check_weights, for_inference
from flashback.readers.reader import Reader
from flashback.retrieval.protocol import Retriever
from flashback.settings import (
    FrameText,
    RetrievalSettings,
    Settings,
    StoppingSettings,
)
from flashback.writing.generator import Generator, Stride

_RECORDED_AFTER = 3
"""Strides until the passes that they have in common are recorded."""
_SAMPLE_EVERY = 384
"""Tokens between the lengths of a sampled sweep, at most, where five are enough for that."""


@dataclass(frozen=True)
class Written:
    """A stride, and what the one before it had left of use."""

    stride: Stride
    first: bool
    """Nothing was cached."""
    unchanged: bool
    """The passage is that of the stride before."""
    behind_passage: bool
    """The stride before had a passage."""
    kept: bool
    """The passage is another one, and its keys and values were in the passage cache (slot)."""


@dataclass(frozen=True)
class RealText:
    """Where real text and its passages come from."""

    documents: Iterable[Document]
    retriever: Retriever


def prepare(settings: RuntimeSettings, real: RealText | None = None) -> "Runtime":
    """Make the model, choose the text, and measure the machine's ceilings.

    Args:
        real: random tokens and passages if None.

    Raises:
        SettingsError: an unknown shape, device or dtype, or lengths that do not fit.
        CorpusError: no document is long enough, or nothing is found for it.
    """
    lengths = parse_lengths(settings)
    if real is not None and settings.sampled:
        raise SettingsError(
            "--sampled with --index: on real text the strides differ, since some keep their "
            "passage; leave out --sampled"
        )
    check_weights(settings.weights, settings.device, settings.dtype)
    reader = shaped_reader(
        settings.shape, device=settings.device, dtype=settings.dtype, real_text=real is not None
    )
    arms = _arms(settings, reader)
    frame = max(
        len(reader.frame(bare_retrieval(pattern, settings).frame, pattern))
        for pattern in map(pattern_of, arms)
    )
    lengths = parse_lengths(settings, frame)
    size = text_size(reader, lengths, settings, frame)
    if real is None:
        material = random_material(reader, size, settings.passage_tokens)
    else:
        material = real_material(reader, real.documents, real.retriever, size)
    shape = Shape.of(reader.model)
    # From here on its linear layers have no plain weights.
    reader = for_inference(reader, settings.weights)
    ceilings = measure_ceilings(reader.placement)
    fixed = LocalEngine(reader.model, reader.window).passes.fixed is not None
    calibrated = calibrate(reader, shape, lengths[0], settings.batch_size, fixed)
    # Whatever else the machine did at first is over by now, or the other way round.
    ceilings = ceilings.or_better(measure_ceilings(reader.placement))
    return Runtime(reader, settings, arms, lengths, material, shape, ceilings, calibrated, fixed)


def _arms(settings: RuntimeSettings, reader: Reader) -> tuple[str, ...]:
    """Those asked for; without any, all that the reader can have.

    Raises:
        SettingsError: a slot is asked for, and the reader has layers with a sliding window.
    """
    for arm in settings.arms:
        reader.check_pattern(pattern_of(arm))
    possible = (arm for arm in ARMS if reader.can_have(PATTERNS[pattern_of(arm)]))
    return tuple(dict.fromkeys(settings.arms or possible))


@dataclass(frozen=True)
class Runtime:
    """A reader on a machine, ready to be measured."""

    reader: Reader
    settings: RuntimeSettings
    arms: tuple[str, ...]
    lengths: range
    """Context tokens at each boundary."""
    material: Material
    shape: Shape
    ceilings: Ceilings
    """The machine's."""
    calibrated: Ceilings
    """As this reader's own passes reach them: what predictions are made from."""
    fixed_passes: bool | None = None
    """Whether the engines have them; None: each finds out."""

    @property
    def strides_to_measure(self) -> int:
        points = 1 + len(grid(self.lengths[1:])) if self.settings.sampled else len(self.lengths)
        return points * len(self.arms) * self.settings.repeats

    @cached_property
    def joint_passes(self) -> bool:
        """Whether the engines encode a slot's passage in the pass of the tokens behind it."""
        return self._engine("slot", 0).joins_passages

    def run(self, on_stride: Callable[[], None] = lambda: None) -> Results:
        """Measure every arm, `repeats` times.

        Args:
            on_stride: called after every measured stride.

        Raises:
            CorpusError: not one passage was found for a real text.
        """
        if any(pattern_of(arm) == "slot" for arm in self.arms):
            _ = self.joint_passes  # found out before anything is timed
        warm_up = [4 * self.settings.stride]
        for arm in self.arms:  # not counted
            list(self.later_strides(arm, warm_up))
        measure = self._sampled if self.settings.sampled else self._whole
        runs = (tuple(measure(on_stride)) for _ in range(self.settings.repeats))
        return Results(self.lengths, tuple(runs))

    def _whole(self, on_stride: Callable[[], None]) -> Iterator[Measured]:
        """Every stride while the context grows, all arms in turn."""
        writers = {arm: self.strides(arm, self.lengths[0], len(self.lengths)) for arm in self.arms}
        found = False
        for length in self.lengths:
            for arm in self.arms:
                written = next(writers[arm])
                found = found or bool(written.stride.passages)
                yield self._measured(arm, length, written)
                on_stride()
        if not found and any(PATTERNS[pattern_of(arm)].retrieves for arm in self.arms):
            raise CorpusError(
                f"no passage was found for any of {len(self.lengths)} boundaries of "
                f"{self.material.name}; give an index of other texts"
            )

    def _sampled(self, on_stride: Callable[[], None]) -> Iterator[Measured]:
        """The first stride and a few later ones, all arms in turn."""
        for arm in self.arms:
            yield self._measured(arm, self.lengths[0], next(self.strides(arm, self.lengths[0], 1)))
            on_stride()
        for length in grid(self.lengths[1:]):
            for arm in self.arms:
                yield from (
                    self._measured(arm, length, written)
                    for written in self.later_strides(arm, [length])
                )
                on_stride()

    def later_strides(self, arm: str, lengths: Sequence[int]) -> Iterator[Written]:
        """A stride at each of these context lengths, with the context before it in the cache."""
        stride = self.settings.stride
        for length in lengths:
            wanted = _RECORDED_AFTER if self.fixed_passes else 1
            before = min(wanted, (length - 1) // stride)
            yield list(self.strides(arm, length - before * stride, before + 1))[-1]

    def strides(self, arm: str, start: int, count: int) -> Iterator[Written]:
        """Strides of an arm that begins with an empty cache and `start` tokens of context."""
        pattern = pattern_of(arm)
        retrieval = self.material.forbidding(bare_retrieval(pattern, self.settings))
        stopping = StoppingSettings(count * self.settings.stride, ignore_eos=True)
        engine = self._engine(arm, start)
        if arm == "slot_cached":
            contexts = range(start, start + count * self.settings.stride, self.settings.stride)
            frame = self.reader.frame(retrieval.frame, pattern)
            found = self.material.passages(self.reader, contexts, retrieval)
            room = PATTERNS[pattern].reserved(1, self.settings.passage_tokens, frame)
            engine.keep(map(frame.around, found), room)
        retriever = self.material.new_retriever()
        writing = Generator(self.reader, engine, retriever).stream(
            self.material.text[:start], Settings(retrieval, stopping=stopping)
        )
        before: Stride | None = None
        encoded = engine.passages.count.prefilled
        for stride in (event for event in writing if isinstance(event, Stride)):
            unchanged = before is not None and before.passages == stride.passages
            known = engine.passages.count.prefilled == encoded
            kept = pattern == "slot" and bool(stride.passages) and not unchanged and known
            behind_passage = before is not None and bool(before.passages)
            yield Written(stride, before is None, unchanged, behind_passage, kept)
            before, encoded = stride, engine.passages.count.prefilled

    def _engine(self, arm: str, start: int) -> TimedEngine:
        limit = self.settings.passage_megabytes * 10**6 if arm == "slot" else sys.maxsize
        engine = TimedEngine(
            self.reader,
            iter(self.material.text[start:]),
            rows=self.settings.batch_size,
            every_logit=arm == "authors_prepend",
            passage_bytes=limit,
            fixed_passes=self.fixed_passes,
        )
        if pattern_of(arm) == "slot":
            _ = engine.joins_passages  # found out before anything is timed
        return engine

    def _measured(self, arm: str, length: int, written: Written) -> Measured:
        stride = written.stride
        passage = len(stride.arranged) - length
        passes = list(
            stride_passes(
                pattern_of(arm),
                length,
                self.settings.stride,
                passage,
                first=written.first,
                known=written.kept or written.unchanged,
                behind_passage=written.behind_passage,
                every_logit=arm == "authors_prepend",
                batch=self.settings.batch_size,
                joint=pattern_of(arm) == "slot" and self.joint_passes,
            )
        )
        return Measured(
            arm,
            length,
            stride.usage.prefill_seconds,
            stride.usage.decode_seconds,
            bound_seconds=self._bound(passes, self.ceilings),
            decode_bound_seconds=self._bound(passes[1 - self.settings.stride :], self.ceilings),
            predicted_seconds=self._bound(passes, self.calibrated),
            retrieve_seconds=stride.retrieve_seconds,
            passage_tokens=passage,
            unchanged=written.unchanged,
            kept=written.kept,
        )

    def _bound(self, passes: Sequence[Pass], ceilings: Ceilings) -> float:
        return sum(bound_seconds(self.shape, one, ceilings) for one in passes)


def pattern_of(arm: str) -> str:
    """The context pattern of an arm."""
    return arm.removeprefix("authors_").removesuffix("_cached")


_LONGEST_LENGTHS = 20
"""Characters of two numbers that a machine can count to."""


class Sweep(Protocol):
    """Settings of a text that grows."""

    @property
    def lengths(self) -> str: ...
    @property
    def stride(self) -> int: ...
    @property
    def passage_tokens(self) -> int: ...


def parse_lengths(settings: Sweep, frame: int = 0) -> range:
    """Context lengths at the boundaries.

    Contexts begin at FIRST tokens and end where a passage still fits LAST positions (T - m).

    Args:
        frame: tokens that stand around a passage in one of the arms: BOS, in a slot. A context that
            left no room for them would jump.

    Raises:
        SettingsError: not of that form, or no room for one stride.
    """
    text = settings.lengths
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and len(text) < _LONGEST_LENGTHS):
        raise SettingsError(f"--lengths {text}: expected FIRST:LAST in tokens, such as 512:1024")
    lengths = range(int(first), int(last) - settings.passage_tokens, settings.stride)
    if lengths and frame:
        lengths = range(lengths[0], lengths[-1] - frame + 1, settings.stride)
    if len(lengths) < 2 or int(first) < 4 * settings.stride:
        raise SettingsError(
            f"--lengths {text}: expected FIRST from {4 * settings.stride} and LAST at least "
            f"{settings.passage_tokens + frame + 2 * settings.stride} higher"
        )
    return lengths


def bare_retrieval(pattern: str, settings: Sweep) -> RetrievalSettings:
    """Passages with no words around them, as in the paper's test."""
    return RetrievalSettings(
        pattern,
        settings.stride,
        passage_tokens=settings.passage_tokens,
        frame=FrameText("", "", 0),
    )


def text_size(reader: Reader, lengths: range, settings: Sweep, frame: int = 0) -> int:
    """How many tokens the text needs.

    Args:
        frame: tokens around a passage.

    Raises:
        SettingsError: with a passage, they are more than the reader has positions for.
    """
    size = lengths[-1] + settings.stride
    needed = size + settings.passage_tokens + frame
    if needed > reader.window:
        raise SettingsError(
            f"--lengths {settings.lengths}: needs {needed} positions, but {reader.name} has "
            f"{reader.window}"
        )
    return size


def grid(lengths: range) -> list[int]:
    """A few of the lengths, the first and the last among them, for `sampled`: 3 to 5."""
    apart = math.ceil((lengths[-1] - lengths[0]) / _SAMPLE_EVERY)
    count = min(max(3, min(1 + apart, 5)), len(lengths))
    if count == 1:
        return [lengths[0]]
    return [lengths[round(i * (len(lengths) - 1) / (count - 1))] for i in range(count)]
