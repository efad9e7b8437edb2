"""The engine against what it was: the same text written by each, stride by stride in turns.

    dynamic    transformers' own cache, which copies itself at every token; plain linear layers
    ours       buffers that grow in place, and weights laid out for the processor
    int8       ours, with weights and inputs of 8 bits
    numba      ours, with single tokens multiplied by loops that numba compiles

`dynamic`, `ours` and `numba` in each dtype. Random tokens, passages all different, as in the
run-time test.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import DynamicCache

from flashback.benchmark.batch import Measured
from flashback.benchmark.bench_settings import EngineBenchSettings
from flashback.benchmark.ceilings import synchronize
from flashback.benchmark.material import Material, random_material
from flashback.benchmark.runtime import bare_retrieval, parse_lengths, text_size
from flashback.benchmark.shapes import shaped_reader
from flashback.benchmark.timed import TimedEngine, TimedPasses
from flashback.engines.cache.sequence import CachedSequence
from flashback.engines.kernels.attention import UsualAttention
from flashback.engines.kernels.last_layer import WholeLastLayer
from flashback.readers.inference import check_weights, for_inference
from flashback.readers.placement import choose_placement
from flashback.readers.reader import Reader
from flashback.settings import Settings, StoppingSettings, Weights
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


@dataclass(frozen=True)
class Arm:
    """One way to run the reader."""

    engine: str
    """`dynamic`, `ours` or `numba`."""
    number: str
    """`float32`, `bfloat16` or `int8`."""

    def __str__(self) -> str:
        return f"{self.engine} {self.number}"

    @property
    def dynamic(self) -> bool:
        """With transformers' own cache."""
        return self.engine == "dynamic"

    @property
    def weights(self) -> Weights:
        if self.number == Weights.INT8:
            return Weights.INT8
        return Weights.NUMBA if self.engine == "numba" else Weights.FULL

    @property
    def dtype(self) -> str:
        """What is computed in between the linear layers."""
        return "float32" if self.weights is Weights.INT8 else self.number

    def reader(self, settings: EngineBenchSettings) -> Reader:
        """A reader laid out for this arm, with the weights of all others.

        Raises:
            SettingsError: an unknown shape or device, or 8 bits or numba where they cannot be had.
        """
        reader = shaped_reader(settings.shape, device=settings.device, dtype=self.dtype)
        if self.dynamic:
            return reader
        return for_inference(reader, self.weights)


def arms_on(settings: EngineBenchSettings) -> tuple[Arm, ...]:
    """All that there are on a device, with numba's if asked for: 8 bits are for CPUs.

    Raises:
        SettingsError: an unknown device, or numba where it cannot be had.
    """
    numbers = ("float32", "bfloat16")
    arms = [Arm(engine, number) for number in numbers for engine in ("dynamic", "ours")]
    check_weights(settings.weights, settings.device, "float32")
    if settings.weights is Weights.NUMBA:
        from flashback.engines.kernels.one_row import reads

        arms += [Arm("numba", number) for number in numbers if reads(getattr(torch, number))]
    on_cpu = choose_placement(settings.device, "float32").device.type == "cpu"
    return (*arms, Arm("ours", Weights.INT8)) if on_cpu else tuple(arms)


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
        super().__init__(reader, attention=attention, last_layer=last_layer)
        self._dynamic = dynamic
        self.seconds = 0.0

    def new_sequence(self, reserved: int = 0) -> CachedSequence:
        """See `Passes.new_sequence`."""
        if self._dynamic:
            return CachedSequence(reserved, cache=DynamicCache(config=self.model.config))
        return super().new_sequence(reserved)

    def extend(self, sequence: CachedSequence, ids: Sequence[int], keep: int = 1) -> Tensor:
        """See `Passes.extend`."""
        started = time.perf_counter()
        logits = super().extend(sequence, ids, keep)
        synchronize(self.model.device)
        self.seconds += time.perf_counter() - started
        return logits


class ArmEngine(TimedEngine):
    """An engine of one arm."""

    def __init__(self, reader: Reader, text: Iterator[int], *, dynamic: bool) -> None:
        """Take over a reader.

        Args:
            text: the tokens that are written.
            dynamic: see `ArmPasses`.
        """
        self._timed = ArmPasses(reader, dynamic=dynamic)
        super().__init__(reader, text, fixed_passes=False if dynamic else None, passes=self._timed)

    @property
    def model_seconds(self) -> float:
        """Spent in the model's passes."""
        return self._timed.seconds


@dataclass(frozen=True)
class MeasuredStride:
    """One stride of one arm."""

    length: int
    """Context tokens at its boundary."""
    seconds: float
    """From its beginning to its end, without retrieval."""
    model_seconds: float
    """Of these, the model's own passes."""


@dataclass(frozen=True)
class Results:
    """Every stride of every arm, in each repeat."""

    stride: int
    runs: tuple[dict[str, list[MeasuredStride]], ...]

    @cached_property
    def arms(self) -> tuple[str, ...]:
        return tuple(self.runs[0])

    def row(self, arm: str) -> Measured:
        """All strides of an arm together."""
        seconds = tuple(sum(one.seconds for one in run[arm]) for run in self.runs)
        return Measured(arm, len(self.runs[0][arm]) * self.stride, seconds)

    def other_share(self, arm: str) -> float:
        """What is not the model's: choosing, detokenising, arranging, keeping books."""
        strides = [one for run in self.runs for one in run[arm]]
        total = sum(one.seconds for one in strides)
        return 1 - sum(one.model_seconds for one in strides) / total

    def ratios(self) -> dict[str, float]:
        """Tokens per second of one arm by those of another."""
        return {
            f"{above}/{below}": self.row(above).tokens_per_second
            / self.row(below).tokens_per_second
            for above, below in RATIOS
            if {above, below} <= set(self.arms)
        }


@dataclass(frozen=True)
class EngineBench:
    """A reader in every form, and a text."""

    settings: EngineBenchSettings
    lengths: range
    readers: dict[Arm, Reader]
    material: Material

    @property
    def strides(self) -> int:
        """How many will be measured."""
        return len(self.lengths) * len(self.readers) * self.settings.repeats

    def run(self, on_stride: Callable[[], None] = lambda: None) -> Results:
        """Write the text with every arm, `repeats` times.

        Args:
            on_stride: called after every measured stride.
        """
        self._once(self.lengths[:2], lambda: None)  # a warm-up
        runs = [self._once(self.lengths, on_stride) for _ in range(self.settings.repeats)]
        return Results(self.settings.stride, tuple(runs))

    def _once(
        self, lengths: Sequence[int], on_stride: Callable[[], None]
    ) -> dict[str, list[MeasuredStride]]:
        writers = {arm: self._measure(arm, lengths) for arm in self.readers}
        found: dict[str, list[MeasuredStride]] = {str(arm): [] for arm in self.readers}
        for _ in lengths:
            for arm, writer in writers.items():
                found[str(arm)].append(next(writer))
                on_stride()
        return found

    def _measure(self, arm: Arm, lengths: Sequence[int]) -> Iterator[MeasuredStride]:
        reader, stride = self.readers[arm], self.settings.stride
        text = self.material.text
        engine = ArmEngine(reader, iter(text[lengths[0] :]), dynamic=arm.dynamic)
        retrieval = bare_retrieval(self.settings.pattern, self.settings)
        stopping = StoppingSettings(len(lengths) * stride, ignore_eos=True)
        writer = Generator(reader, engine, self.material.new_retriever())
        writing = writer.stream(text[: lengths[0]], Settings(retrieval, stopping=stopping))
        for length in lengths:
            before, started = engine.model_seconds, time.perf_counter()
            written = next(event for event in writing if isinstance(event, Stride))
            seconds = time.perf_counter() - started - written.retrieve_seconds
            yield MeasuredStride(length, seconds, engine.model_seconds - before)


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
    return EngineBench(settings, lengths, readers, material)
