"""The run-time test: seconds per stride against context length, pattern by pattern.

Random tokens, passages all different (paper section 4.3), or real text and an index; see
`benchmark/material.py`. The arms take turns stride by stride, each with its own cache that begins
empty, so that a machine whose speed drifts treats them alike.

    whole     every stride from the first context length to the last
    sampled   the first stride, and single later ones at a grid of lengths, interpolated; there the
              context is put into the cache first, so that a stride costs as much as
              in the middle of a long text
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property

from flashback.benchmark.arms import RuntimeArm, all_arms, arm_named
from flashback.benchmark.bench_settings import RuntimeSettings
from flashback.benchmark.calibration import calibrate
from flashback.benchmark.ceilings import Ceilings, bound_seconds, measure_ceilings
from flashback.benchmark.flops import Shape
from flashback.benchmark.harness import nothing, take_turns
from flashback.benchmark.machine import described
from flashback.benchmark.material import Material, random_material, real_material
from flashback.benchmark.report import Report
from flashback.benchmark.results import Measured, Results
from flashback.benchmark.runtime_report import retrieval_record, runtime_report
from flashback.benchmark.shapes import shaped_reader
from flashback.benchmark.sweep import bare_retrieval, grid, parse_lengths, text_size
from flashback.benchmark.timed import TimedEngine
from flashback.corpus.documents import Document
from flashback.engines.kernels.single_step import SingleStep
from flashback.engines.local import LocalEngine
from flashback.engines.self_check import fastest_step
from flashback.errors import CorpusError, SettingsError
from flashback.patterns.cost import Pass, StrideShape
from flashback.patterns.prompt import Ids, PlacedPassage
from flashback.patterns.registry import PATTERNS
from flashback.readers.inference import check_weights, for_inference
from flashback.readers.reader import Reader
from flashback.retrieval.protocol import Retriever
from flashback.settings import RetrievalSettings, Settings, StoppingSettings
from flashback.writing.generator import Generator, Stride

_RECORDED_AFTER = 3
"""Strides until the passes that they have in common are recorded."""


@dataclass(frozen=True)
class Written:
    """A stride that was written, and how its passes are counted."""

    stride: Stride
    shape: StrideShape
    unchanged: bool
    """The passage is that of the stride before."""
    cache_hit: bool
    """The passage is another one, and its keys and values were in the passage cache."""


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
    parse_lengths(settings)  # before a model is made
    if real is not None and settings.sampled:
        raise SettingsError(
            "--sampled=True with --index: on real text the strides differ, since some keep their "
            "passage; leave out --sampled=True"
        )
    check_weights(settings.weights, settings.device, settings.dtype)
    reader = shaped_reader(
        settings.shape, device=settings.device, dtype=settings.dtype, real_text=real is not None
    )
    arms = chosen_arms(settings, reader)
    frame = max(_frame_tokens(arm, settings, reader) for arm in arms)
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
    # Again: what else the machine did at first may be over by now.
    ceilings = ceilings.or_better(measure_ceilings(reader.placement))
    return Runtime(reader, settings, arms, lengths, material, shape, ceilings, calibrated, fixed)


def chosen_arms(settings: RuntimeSettings, reader: Reader) -> tuple[RuntimeArm, ...]:
    """Those asked for, each once; without any, all that the reader supports.

    Raises:
        SettingsError: an arm is asked for that the reader does not support.
    """
    asked = [arm_named(name) for name in dict.fromkeys(settings.arms)]
    for arm in asked:
        reader.check_pattern(arm.pattern)
    possible = (arm for arm in all_arms().values() if reader.can_have(arm.context_pattern))
    return tuple(asked or possible)


def _frame_tokens(arm: RuntimeArm, settings: RuntimeSettings, reader: Reader) -> int:
    return len(reader.frame(bare_retrieval(arm.pattern, settings).frame, arm.pattern))


@dataclass(frozen=True)
class Runtime:
    """A reader on a machine, ready to be measured."""

    reader: Reader
    settings: RuntimeSettings
    arms: tuple[RuntimeArm, ...]
    lengths: range
    """Context tokens at each boundary."""
    material: Material
    shape: Shape
    ceilings: Ceilings
    """The machine's."""
    calibrated: Ceilings
    """As this reader's own passes reach them; predictions are made from these."""
    fixed_passes: bool | None = None
    """Whether the engines have them; None: each finds out."""

    @property
    def title(self) -> str:
        """The measurement in one line."""
        placement, settings = self.reader.placement, self.settings
        return (
            f"{self.reader.name}, {placement.dtype_name} on {placement.device}, "
            f"batch {settings.batch_size}, {self.material.name}, "
            f"contexts {self.lengths[0]} to {self.lengths[-1]}, "
            f"s={settings.stride}, m={settings.passage_tokens}"
        )

    @property
    def _measured_lengths(self) -> Sequence[int]:
        """Where strides are measured."""
        if self.settings.sampled:
            return [self.lengths[0], *grid(self.lengths[1:])]
        return self.lengths

    @property
    def steps(self) -> int:
        """See `Benchmark.steps`: strides."""
        return len(self._measured_lengths) * len(self.arms) * self.settings.repeats

    @cached_property
    def joint_passes(self) -> bool:
        """Whether the engines prefill an isolated passage in the pass of the tokens behind it."""
        isolated = (arm for arm in self.arms if arm.context_pattern.isolated)
        arm = next(isolated, None)
        return arm is not None and self._engine(arm, 0).joins_passages

    def run(self, on_step: Callable[[], None] = nothing) -> Results:
        """Measure every arm, `repeats` times after a warm-up. See `Benchmark.run`.

        Raises:
            CorpusError: not one passage was found for a real text.
        """
        _ = self.joint_passes  # found out before anything is timed
        for arm in self.arms:
            self.later_stride(arm, 4 * self.settings.stride)  # the warm-up
        runs = []
        for _ in range(self.settings.repeats):
            runs.append(tuple(self._once(on_step)))
            self._check_found(runs[0])  # after one repeat, not after all
        return Results(self.lengths, tuple(runs))

    def _check_found(self, rows: Sequence[Measured]) -> None:
        """Refuse results of retrieval that found nothing.

        Raises:
            CorpusError: an arm that retrieves has not one stride with a passage, or one without
                where every one should have one.
        """
        for arm in self.arms:
            own = [row.passage_tokens for row in rows if row.arm == str(arm)]
            if not arm.context_pattern.retrieves or all(own):
                continue
            if not any(own) or not self.material.is_real:
                raise CorpusError(
                    f"no passage was found for {own.count(0) if any(own) else 'any'} of {len(own)} "
                    f"boundaries of {self.material.name} by {arm}; give an index of other texts"
                )

    def report(self, results: Results) -> Report:
        """See `Benchmark.report`."""
        own = {
            **described(self.reader, self.settings),
            "batch": self.settings.batch_size,
            "text": self.material.name,
            "settings": asdict(self.settings) | {"arms": [str(arm) for arm in self.arms]},
            "ceilings": asdict(self.ceilings),
            "calibrated": asdict(self.calibrated),
            "tokens": len(self.lengths) * self.settings.stride,
        }
        found = retrieval_record(results, self.arms) if self.material.is_real else {}
        return runtime_report(self.title, results, own | found)

    def _once(self, on_step: Callable[[], None]) -> Iterator[Measured]:
        """A stride of every arm at every length, all arms in turn."""
        start, count = self.lengths[0], len(self.lengths)
        if self.settings.sampled:
            strides = {arm: self._sampled(arm) for arm in self.arms}
        else:
            strides = {arm: self.strides(arm, start, count) for arm in self.arms}

        def measure(arm: RuntimeArm, _length: int) -> Measured:
            return self._measured(arm, next(strides[arm]))

        turns = take_turns(self.arms, self._measured_lengths, measure, on_step)
        return (measured for _, measured in turns)

    def _sampled(self, arm: RuntimeArm) -> Iterator[Written]:
        """The first stride, and single later ones."""
        first, *later = self._measured_lengths
        yield next(self.strides(arm, first, 1))
        yield from (self.later_stride(arm, length) for length in later)

    def later_stride(self, arm: RuntimeArm, length: int) -> Written:
        """The stride at a context length, with the context before it in the cache."""
        stride = self.settings.stride
        wanted = _RECORDED_AFTER if self.fixed_passes else 1
        before = min(wanted, (length - 1) // stride)
        return list(self.strides(arm, length - before * stride, before + 1))[-1]

    def strides(self, arm: RuntimeArm, start: int, count: int) -> Iterator[Written]:
        """Strides of an arm that begins with an empty cache and `start` tokens of context."""
        bare = bare_retrieval(arm.pattern, self.settings)
        again = replace(bare, recompute_tokens=self.settings.recompute_tokens)
        retrieval = self.material.forbidding(again)
        stopping = StoppingSettings(count * self.settings.stride, ignore_eos=True)
        engine = self._engine(arm, start)
        if arm.cached:
            contexts = range(start, start + count * self.settings.stride, self.settings.stride)
            self._fill_cache(engine, retrieval, contexts)
        writing = Generator(self.reader, engine, self.material.retriever).stream(
            self.material.text[:start], Settings(retrieval, stopping=stopping)
        )
        before: Stride | None = None
        misses = engine.passages.count.prefilled
        for stride in (event for event in writing if isinstance(event, Stride)):
            isolated, found = arm.context_pattern.isolated, bool(stride.passages)
            unchanged = before is not None and before.passages == stride.passages
            known = engine.passages.count.prefilled == misses
            hit = isolated and found and known and not unchanged
            shape = StrideShape(
                start,
                self.settings.stride,
                len(stride.arranged) - start,
                first=before is None,
                known=hit or unchanged,
                recomputed=1 if unchanged else retrieval.recomputed,
                history=len(self._bos),
                sink=len(self._bos),
                behind_passage=before is not None and bool(before.passages),
                every_logit=arm.every_logit,
                batch=self.settings.batch_size,
                joint=isolated and self.joint_passes,
            )
            yield Written(stride, shape, unchanged, hit)
            before, misses = stride, engine.passages.count.prefilled
            start += self.settings.stride

    def _fill_cache(
        self, engine: TimedEngine, retrieval: RetrievalSettings, contexts: range
    ) -> None:
        """Put the passages found at these context lengths into the passage cache."""
        frame = self.reader.frame(retrieval.frame, retrieval.pattern)
        found = self.material.passages(self.reader, contexts, retrieval)
        room = PATTERNS[retrieval.pattern].reserved(1, retrieval.passage_tokens, frame)
        bos = self._bos
        engine.keep(PlacedPassage(frame.around(one), len(bos) + room, bos) for one in found)

    @cached_property
    def _step(self) -> SingleStep | None:
        return fastest_step(self.reader.model)

    @property
    def _bos(self) -> Ids:
        """What the text begins with, in a history and in a sink."""
        bos = self.reader.bos
        return bos if self.material.text[: len(bos)] == bos else ()

    def _engine(self, arm: RuntimeArm, start: int) -> TimedEngine:
        isolated = arm.context_pattern.isolated
        limited = isolated and not arm.cached
        engine = TimedEngine(
            self.reader,
            iter(self.material.text[start:]),
            rows=self.settings.batch_size,
            every_logit=arm.every_logit,
            cache_bytes=self.settings.passage_megabytes * 10**6 if limited else sys.maxsize,
            fixed_passes=self.fixed_passes,
            step=self._step,
        )
        if isolated:
            _ = engine.joins_passages  # found out before anything is timed
        return engine

    def _measured(self, arm: RuntimeArm, written: Written) -> Measured:
        stride, shape = written.stride, written.shape
        passes = list(arm.context_pattern.passes(shape))
        return Measured(
            str(arm),
            shape.context,
            stride.usage.prefill_seconds,
            stride.usage.decode_seconds,
            bound_seconds=self._bound(passes, self.ceilings),
            decode_bound_seconds=self._bound(passes[1 - self.settings.stride :], self.ceilings),
            predicted_seconds=self._bound(passes, self.calibrated),
            retrieve_seconds=stride.retrieve_seconds,
            passage_tokens=shape.passage,
            unchanged=written.unchanged,
            cache_hit=written.cache_hit,
        )

    def _bound(self, passes: Sequence[Pass], ceilings: Ceilings) -> float:
        return sum(bound_seconds(self.shape, one, ceilings) for one in passes)
