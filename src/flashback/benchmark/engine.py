"""This engine against transformers' cache: each writes the same text, stride by stride in turns.

    dynamic    transformers' own cache, which copies itself at every token; plain linear layers
    ours       buffers that grow in place, and weights laid out for the processor
    int8       ours, with weights and inputs of 8 bits
    numba      ours, with single tokens multiplied by loops that numba compiles

`dynamic`, `ours` and `numba` in each dtype. Random tokens, passages all different, as in the
run-time test.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from flashback.benchmark.bench_settings import PRECISIONS, EngineBenchSettings
from flashback.benchmark.ceilings import Memory, synchronize
from flashback.benchmark.flops import Shape, pass_bytes
from flashback.benchmark.harness import Comparison, Series, by_arm, nothing, take_turns
from flashback.benchmark.machine import measured_on
from flashback.benchmark.material import Material, random_material
from flashback.benchmark.report import Report
from flashback.benchmark.shapes import shaped_reader
from flashback.benchmark.sweep import bare_retrieval, parse_lengths, text_size
from flashback.benchmark.timed import TimedEngine, TimedPasses
from flashback.engines.cache.sequence import CachedSequence
from flashback.engines.kernels.attention import UsualAttention
from flashback.engines.kernels.last_layer import WholeLastLayer
from flashback.engines.self_check import fastest_step
from flashback.errors import FlashBackError
from flashback.patterns.cost import Pass
from flashback.readers.inference import LARGE, check_weights, for_inference
from flashback.readers.placement import choose_placement
from flashback.readers.reader import Reader
from flashback.readers.weight_settings import Weights
from flashback.settings import Settings, StoppingSettings
from flashback.writing.generator import Generator, Stride

RATIOS = (
    ("ours float32", "dynamic float32"),
    ("ours bfloat16", "dynamic bfloat16"),
    ("ours bfloat16", "dynamic float32"),
    ("ours int8", "dynamic float32"),
    ("ours int8", "ours float32"),
    ("numba float32", "dynamic float32"),
    ("numba bfloat16", "dynamic bfloat16"),
    ("numba float32", "ours float32"),
    ("numba bfloat16", "ours bfloat16"),
)
"""Tokens per second that are compared, if both were measured."""
_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class EngineArm:
    """One way to run the reader."""

    engine: str
    """`dynamic`, `ours` or `numba`."""
    precision: str
    """`float32`, `bfloat16` or `int8`."""

    def __str__(self) -> str:
        return f"{self.engine} {self.precision}"

    @property
    def dynamic(self) -> bool:
        """With transformers' own cache."""
        return self.engine == "dynamic"

    @property
    def weights(self) -> Weights:
        """Layout of its weights; no effect on `dynamic`."""
        if self.precision == Weights.INT8:
            return Weights.INT8
        return Weights.NUMBA if self.engine == "numba" else Weights.FULL

    @property
    def dtype(self) -> str:
        """Of everything between the linear layers."""
        return "float32" if self.weights is Weights.INT8 else self.precision

    def reader(self, settings: EngineBenchSettings) -> Reader:
        """A reader laid out for this arm, with the weights of all others.

        Raises:
            SettingsError: an unknown shape or device, or weights that it does not support.
        """
        reader = shaped_reader(settings.shape, device=settings.device, dtype=self.dtype)
        if self.dynamic:
            return reader
        return for_inference(reader, self.weights)


def arms_on(settings: EngineBenchSettings) -> tuple[EngineArm, ...]:
    """The arms of a device, numba's if asked for; 8 bits are for CPUs.

    Raises:
        SettingsError: an unknown device, or numba where it is not supported.
    """
    dtypes = ("float32", "bfloat16")
    arms = [EngineArm(engine, dtype) for dtype in dtypes for engine in ("dynamic", "ours")]
    check_weights(settings.weights, settings.device, "float32")
    if settings.weights is Weights.NUMBA:
        from flashback.engines.kernels.one_row import reads

        arms += [EngineArm("numba", dtype) for dtype in dtypes if reads(getattr(torch, dtype))]
    if choose_placement(settings.device, "float32").device.type == "cpu":
        arms.append(EngineArm("ours", Weights.INT8))
    plain, wanted = arms[0], settings.precisions or PRECISIONS
    return tuple(arm for arm in arms if arm == plain or arm.precision in wanted)


class ArmPasses(TimedPasses):
    """Passes of one arm; `seconds` is how long the model took."""

    def __init__(self, reader: Reader, *, dynamic: bool) -> None:
        """Take over a reader's model.

        Args:
            dynamic: with transformers' own cache, attention and whole last layer.
        """
        model = reader.model
        attention = UsualAttention(model) if dynamic else None
        last_layer = WholeLastLayer(model) if dynamic else None
        step = None if dynamic else fastest_step(model)
        super().__init__(reader, attention=attention, last_layer=last_layer, step=step)
        self._dynamic = dynamic
        self.seconds = 0.0

    def new_sequence(self) -> CachedSequence:
        """See `Passes.new_sequence`."""
        if self._dynamic:
            return CachedSequence(cache=DynamicCache(config=self.model.config))
        return super().new_sequence()

    def extend(self, sequence: CachedSequence, ids: Sequence[int], keep: int = 1) -> Tensor:
        """See `Passes.extend`."""
        started = time.perf_counter()
        logits = super().extend(sequence, ids, keep)
        synchronize(self.model.device)
        self.seconds += time.perf_counter() - started
        return logits


@dataclass(frozen=True)
class MeasuredStride:
    """One stride of one arm."""

    seconds: float
    """From its beginning to its end, without retrieval."""
    model_seconds: float
    """Of these, the model's own passes."""
    decode_seconds: float = 0.0
    """Of single tokens."""
    bound_seconds: float = 0.0
    """What they take at least: to read every weight and the cache, as fast as memory was then."""


@dataclass(frozen=True)
class EngineSeries(Series):
    """All strides of an arm together."""

    model_seconds: float
    """Of all repeats, the model's own passes."""
    step_seconds: float = 0.0
    """Of a decode step: the median stride's."""
    bound_share: float = 0.0
    """The share of the decode steps that reading weights and cache takes at least."""

    @classmethod
    def of(cls, arm: str, stride: int, runs: Sequence[Sequence[MeasuredStride]]) -> "EngineSeries":
        """Sum up the strides, of `stride` tokens each, of every repeat."""
        seconds = tuple(sum(one.seconds for one in run) for run in runs)
        every = [one for run in runs for one in run]
        model_seconds = sum(one.model_seconds for one in every)
        steps = [one.decode_seconds / (stride - 1) for one in every]
        decoding = sum(one.decode_seconds for one in every)
        bound = sum(one.bound_seconds for one in every)
        share = bound / decoding if decoding else 0.0
        amount = len(runs[0]) * stride
        return cls(arm, amount, seconds, model_seconds, statistics.median(steps), share)

    @property
    def other_share(self) -> float:
        """The share of the seconds outside the model: sampling, detokenizing, bookkeeping."""
        return 1 - self.model_seconds / sum(self.runs)

    @property
    def cells(self) -> dict[str, str]:
        """See `Series.cells`."""
        return super().cells | {
            "ms/step": f"{1e3 * self.step_seconds:.1f}",
            "of the bound": f"{self.bound_share:.0%}",
            "other": f"{self.other_share:.1%}",
        }

    def record(self) -> dict[str, Any]:
        """See `Series.record`."""
        return super().record() | {
            "step_seconds": self.step_seconds,
            "bound_share": self.bound_share,
            "other_share": self.other_share,
        }


@dataclass(frozen=True)
class EngineBench:
    """A reader in every form, and a text."""

    settings: EngineBenchSettings
    lengths: range
    readers: dict[EngineArm, Reader]
    material: Material
    shape: Shape
    memory: Memory
    """Read beside every stride."""

    @property
    def steps(self) -> int:
        """See `Benchmark.steps`: strides."""
        return len(self.lengths) * len(self.readers) * self.settings.repeats

    def run(self, on_step: Callable[[], None] = nothing) -> Comparison[EngineSeries]:
        """Write the text with every arm, `repeats` times. See `Benchmark.run`."""
        self._once(self.lengths[:2])  # a warm-up
        runs = [self._once(self.lengths, on_step) for _ in range(self.settings.repeats)]
        stride = self.settings.stride
        rows = (EngineSeries.of(str(arm), stride, [run[arm] for run in runs]) for arm in runs[0])
        return Comparison(tuple(rows), RATIOS)

    def _once(
        self, lengths: Sequence[int], on_step: Callable[[], None] = nothing
    ) -> dict[EngineArm, list[MeasuredStride]]:
        writers = {arm: self.strides(arm, lengths) for arm in self.readers}
        return by_arm(take_turns(writers, lengths, lambda arm, _: next(writers[arm]), on_step))

    def strides(self, arm: EngineArm, lengths: Sequence[int]) -> Iterator[MeasuredStride]:
        """Write and measure a stride at each of these context lengths, from an empty cache."""
        reader, stride = self.readers[arm], self.settings.stride
        text = self.material.text
        passes = ArmPasses(reader, dynamic=arm.dynamic)
        engine = TimedEngine(
            reader,
            iter(text[lengths[0] :]),
            fixed_passes=False if arm.dynamic else None,
            passes=passes,
        )
        retrieval = bare_retrieval(self.settings.pattern, self.settings)
        stopping = StoppingSettings(len(lengths) * stride, ignore_eos=True)
        writer = Generator(reader, engine, self.material.retriever)
        writing = writer.stream(text[: lengths[0]], Settings(retrieval, stopping=stopping))
        for _ in lengths:
            before, started = passes.seconds, time.perf_counter()
            written = next(event for event in writing if isinstance(event, Stride))
            seconds = time.perf_counter() - started - written.retrieve_seconds
            read = sum(
                self._read_bytes(arm, len(written.arranged) + at) for at in range(stride - 1)
            )
            decoding, bound = written.usage.decode_seconds, read / self.memory.bytes_per_second(1)
            yield MeasuredStride(seconds, passes.seconds - before, decoding, bound)

    def _read_bytes(self, arm: EngineArm, cached: int) -> float:
        """What a decode step behind so many tokens must read at least."""
        if arm.precision != Weights.INT8:
            shape = replace(self.shape, bytes_per_value=_BYTES[arm.precision])
            return pass_bytes(shape, Pass(1, cached))
        wide = pass_bytes(replace(self.shape, bytes_per_value=4), Pass(1, cached))
        return wide - 3 * (self.shape.layer_weights + self.shape.hidden * self.shape.vocabulary)

    def report(self, results: Comparison[EngineSeries]) -> Report:
        """See `Benchmark.report`."""
        settings, reader = self.settings, next(iter(self.readers.values()))
        device = reader.placement.device
        title = (
            f"{reader.name} on {device}, {settings.pattern}, contexts {self.lengths[0]} to "
            f"{self.lengths[-1]}, s={settings.stride}, m={settings.passage_tokens}"
        )
        products = {str(arm): own.placement.products for arm, own in self.readers.items()}
        described = {"settings": asdict(settings), **measured_on(device), "products": products}
        return results.report(title, described)


def prepare(settings: EngineBenchSettings) -> EngineBench:
    """Make the reader in every form.

    Raises:
        SettingsError: an unknown shape, device or dtype, or lengths that do not fit.
    """
    lengths = parse_lengths(settings)
    readers = {arm: arm.reader(settings) for arm in arms_on(settings)}
    first = next(iter(readers.values()))
    first.check_pattern(settings.pattern)
    material = random_material(first, text_size(first, lengths, settings), settings.passage_tokens)
    plain = next(reader for arm, reader in readers.items() if arm.dynamic)
    memory = Memory(plain.placement.device)
    return EngineBench(settings, lengths, readers, material, Shape.of(plain.model), memory)


def check_never_slower(results: Comparison[EngineSeries], reader: Reader) -> None:
    """Refuse an engine that is slower than plain transformers, on a model that leaves the caches.

    Raises:
        FlashBackError: it is, in float32.
    """
    ratio = results.ratios.get("ours float32/dynamic float32")
    size = sum(one.numel() for one in reader.model.parameters())
    if ratio is not None and size >= LARGE and ratio < 1:
        raise FlashBackError(
            f"ours writes {ratio:.2f} times as many tokens a second as plain transformers; "
            "expected 1 or more: run it again on an idle machine, and report it if it stays"
        )
