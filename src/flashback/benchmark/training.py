"""Targets per second of training, three ways: the same model, the same examples, the same losses.

    padded   as transformers' Trainer does it: every stride a sequence of its own, in random order,
             batches padded, the logits of every position, the model's own loss
    sorted   the same sequences, those of similar length together; the targets' logits alone
    packed   as `flashback train` does it: the context once, branches on its cache, frozen weights
             laid out for this processor

Forward and backward passes of LoRA on the query and value projections and of trained marks, around
appended passages; no optimizer. Random tokens, passages all different. No dropout, and no
forbidden tokens, which the model's own loss does not support: so the three losses must agree. The
arms take turns, a share of their work at a time, so that a drift of speed treats them alike.

What packed training multiplies, in both passes, is counted as it runs, and compared with the rate
of large matrices on the same machine before and after: the share of a machine that it uses.

Symbols: B sequences of a batch, T tokens of its longest, s stride, V vocabulary.
"""

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from flashback.benchmark.bench_settings import TrainingBenchSettings
from flashback.benchmark.ceilings import operations_per_second, synchronize
from flashback.benchmark.harness import Comparison, Series, by_arm, nothing, take_turns, timed
from flashback.benchmark.machine import described
from flashback.benchmark.operations import operations_of
from flashback.benchmark.report import Report
from flashback.benchmark.shapes import shaped_reader
from flashback.corpus.documents import Document
from flashback.engines.kernels.frozen import FrozenWeights
from flashback.errors import FlashBackError, SettingsError
from flashback.patterns.prompt import Ids
from flashback.readers.inference import for_training
from flashback.readers.lora import add_lora
from flashback.readers.lora_settings import LoraSettings
from flashback.readers.reader import Reader
from flashback.scoring.examples import Arrangement, Example
from flashback.scoring.targets import TargetScorer
from flashback.scoring.windows import Cut, Window

ARMS = ("padded", "sorted", "packed")
RATIOS = (("packed", "padded"), ("packed", "sorted"))
_NO_TARGET = -100
"""The label of positions that are no targets."""

Work = Callable[[], Tensor]
"""A forward pass, or a few, over some targets: the sum of their losses in nats."""


@dataclass(frozen=True)
class Separate:
    """A stride of targets as a sequence of its own."""

    prompt: Ids
    targets: Ids

    def __len__(self) -> int:
        return len(self.prompt) + len(self.targets)


@dataclass(frozen=True)
class Trained(Series):
    """One arm, trained on all targets."""

    unit: ClassVar[str] = "targets"
    loss: float
    """Nats per target."""

    @property
    def cells(self) -> dict[str, str]:
        """See `Series.cells`."""
        return super().cells | {"nats per target": f"{self.loss:.4f}"}

    def record(self) -> dict[str, Any]:
        """See `Series.record`."""
        return super().record() | {"loss": self.loss}


@dataclass(frozen=True)
class TrainingComparison(Comparison[Trained]):
    """All arms, and the share of the machine's matrix rate that the packed one reaches."""

    operations: int
    """Multiplications and additions of the packed arm's products in a repeat."""
    operations_per_second: float
    """Of large matrices."""

    @property
    def share(self) -> float:
        """The packed arm's operations per second by those of large matrices."""
        (packed,) = (row for row in self.rows if row.arm == "packed")
        return self.operations / packed.seconds / self.operations_per_second

    def report(self, title: str, described: Mapping[str, Any]) -> Report:
        """See `Comparison.report`."""
        rate = {
            "operations": self.operations,
            "operations_per_second": self.operations_per_second,
            "share_of_matrix_rate": self.share,
        }
        found = super().report(title, {**described, **rate})
        line = (
            f"packed: {self.operations / 1e9:,.0f} GFLOP of products, {self.share:.0%} of the "
            f"matrix rate, {self.operations_per_second / 1e9:,.0f} GFLOP/s"
        )
        return replace(found, notes=(*found.notes, line))


def prepare(settings: TrainingBenchSettings) -> "Training":
    """Make the model and the examples.

    Raises:
        SettingsError: an unknown shape, device or dtype, or windows that do not fit the reader.
        ReaderError: a folder holds no usable model.
    """
    reader = shaped_reader(settings.shape, device=settings.device, dtype=settings.dtype)
    return Training.of(reader, settings)


def made_up_examples(settings: TrainingBenchSettings, reader: Reader) -> tuple[Example, ...]:
    """Windows of seeded random tokens with a passage at every boundary."""
    drawn = random.Random(0)
    vocabulary = range(reader.vocabulary_size)
    boundaries = range(
        settings.first_boundary, settings.window_tokens - settings.stride + 1, settings.stride
    )
    examples = []
    for number in range(settings.windows):
        text = drawn.choices(vocabulary, k=boundaries[-1] + settings.stride - len(reader.bos))
        window = Window(
            Document(str(number), "", ""),
            reader.bos + tuple(text),
            len(reader.bos),
            tuple(map(Cut, boundaries)),
            settings.stride,
        )
        lengths = (
            drawn.randint(-(-settings.passage_tokens * 3 // 4), settings.passage_tokens)
            for _ in boundaries
        )
        passages = tuple(tuple(drawn.choices(vocabulary, k=length)) for length in lengths)
        examples.append(Example(window, passages))
    return tuple(examples)


@dataclass(frozen=True)
class Training:
    """A model and examples, ready to be trained on."""

    reader: Reader
    settings: TrainingBenchSettings
    model: nn.Module
    arrangement: Arrangement
    examples: tuple[Example, ...]
    frozen: FrozenWeights
    """Of the packed arm."""

    @classmethod
    def of(cls, reader: Reader, settings: TrainingBenchSettings) -> "Training":
        """Put fresh LoRA weights and marks on a reader's model, and make up the examples.

        Raises:
            SettingsError: windows that do not fit the reader.
        """
        examples = made_up_examples(settings, reader)
        model, frame, _ = add_lora(reader, LoraSettings(dropout=0.0), seed=0)
        needed = settings.window_tokens + len(frame) + settings.passage_tokens
        if needed > reader.window:
            raise SettingsError(
                f"--window-tokens={settings.window_tokens}: needs {needed} positions with a "
                f"passage, but {reader.name} has {reader.window}"
            )
        arrangement = Arrangement("append", frame)
        return cls(reader, settings, model.eval(), arrangement, examples, for_training(model))

    @property
    def targets(self) -> int:
        return sum(example.window.target_count for example in self.examples)

    @property
    def steps(self) -> int:
        """See `Benchmark.steps`."""
        return self.settings.repeats * len(self.examples) * len(ARMS)

    def run(self, on_step: Callable[[], None] = nothing) -> TrainingComparison:
        """Measure every arm on all targets, `repeats` times. See `Benchmark.run`.

        Raises:
            FlashBackError: the arms' losses differ.
        """
        works = {arm: self.works(arm) for arm in ARMS}
        for own in works.values():
            self._train(own[:1])  # a warm-up, not counted
        operations = operations_of(lambda: self._train(works["packed"]))
        rates = [operations_per_second(self.reader.placement)]
        runs = [self._repeat(works, on_step) for _ in range(self.settings.repeats)]
        rows = []
        for arm in ARMS:
            seconds, losses = zip(*(run[arm] for run in runs), strict=True)
            rows.append(Trained(arm, self.targets, seconds, losses[0] / self.targets))
        check_losses(rows, self.reader.placement.dtype)
        rates.append(operations_per_second(self.reader.placement))
        return TrainingComparison(tuple(rows), RATIOS, operations, max(rates))

    def _repeat(
        self, works: dict[str, list[Work]], on_step: Callable[[], None]
    ) -> dict[str, tuple[float, float]]:
        """All work once, in as many turns as there are windows: each arm's seconds and loss."""
        turns = len(self.examples)

        def train(arm: str, turn: int) -> tuple[float, float]:
            with self.frozen.packed() if arm == "packed" else contextlib.nullcontext():
                return self._train(works[arm][turn::turns])

        found = by_arm(take_turns(ARMS, range(turns), train, on_step))
        return {
            arm: (sum(seconds for seconds, _ in pieces), sum(loss for _, loss in pieces))
            for arm, pieces in found.items()
        }

    def _train(self, works: Sequence[Work]) -> tuple[float, float]:
        """Forward and backward passes: their seconds, and the sum of the losses."""
        self.model.zero_grad(set_to_none=True)
        device = self.reader.placement.device

        def forward_and_backward() -> Tensor:
            total = torch.zeros((), device=device)
            for work in works:
                loss = work()
                (loss / self.targets).backward()
                total += loss.detach()
            return total

        seconds, total = timed(forward_and_backward, partial(synchronize, device))
        return seconds, float(total)

    def report(self, results: TrainingComparison) -> Report:
        """See `Benchmark.report`."""
        placement, settings = self.reader.placement, self.settings
        title = (
            f"{self.reader.name}, {placement.dtype_name} on {placement.device}, "
            f"{self.targets} targets, N={settings.window_tokens}, s={settings.stride}, "
            f"m={settings.passage_tokens}, batches of {settings.batch_size}"
        )
        return results.report(title, described(self.reader, settings))

    def works(self, arm: str) -> list[Work]:
        """An arm's passes over all targets."""
        if arm == "packed":
            scorer = TargetScorer(self.model)
            return [partial(packed_loss, scorer, one, self.arrangement) for one in self.examples]
        samples = list(self.samples())
        if arm == "padded":
            random.Random(0).shuffle(samples)
        else:
            samples.sort(key=len)
        loss = padded_loss if arm == "padded" else sorted_loss
        starts = range(0, len(samples), self.settings.batch_size)
        batches = (samples[start : start + self.settings.batch_size] for start in starts)
        return [partial(loss, self.model, batch) for batch in batches]

    def samples(self) -> Iterator[Separate]:
        """Every stride as a sequence of its own."""
        for example in self.examples:
            window = example.window
            for at, cut in enumerate(window.cuts):
                prompt = self.arrangement.arrange(example, at).arranged
                yield Separate(prompt, window.targets(cut))


def packed_loss(scorer: TargetScorer, example: Example, arrangement: Arrangement) -> Tensor:
    """The context once, branches on its cache."""
    return -torch.cat(scorer.log_probs([example], arrangement)).sum()


def padded_loss(model: nn.Module, batch: Sequence[Separate]) -> Tensor:
    """The logits of every position, and the model's own loss, which is the targets' mean."""
    inputs = padded(model, batch)
    labels = torch.full_like(inputs["input_ids"], _NO_TARGET)
    for at, one in enumerate(batch):
        labels[at, len(one.prompt) : len(one)] = inputs["input_ids"][at, len(one.prompt) : len(one)]
    loss: Tensor = model(**inputs, labels=labels, use_cache=False).loss
    return loss * sum(len(one.targets) for one in batch)


def sorted_loss(model: nn.Module, batch: Sequence[Separate]) -> Tensor:
    """The targets' logits alone."""
    inputs = padded(model, batch)
    device = inputs["input_ids"].device
    first = torch.tensor([len(one.prompt) - 1 for one in batch], device=device)
    stride = len(batch[0].targets)
    places = first[:, None] + torch.arange(stride, device=device)  # (B, s)
    logits: Tensor = model(**inputs, logits_to_keep=places, use_cache=False).logits  # (B, s, V)
    targets = torch.tensor([one.targets for one in batch], device=device)
    return nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), reduction="sum"
    )


def padded(model: nn.Module, batch: Sequence[Separate]) -> dict[str, Any]:
    """Ids and mask (B, T), padded on the right."""
    longest = max(map(len, batch))
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for at, one in enumerate(batch):
        ids[at, : len(one)] = torch.tensor(one.prompt + one.targets)
        mask[at, : len(one)] = 1
    device = next(model.parameters()).device
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def check_losses(rows: Sequence[Trained], dtype: torch.dtype) -> None:
    """Refuse to compare arms that did not compute the same.

    Raises:
        FlashBackError: losses differ by more than the dtype explains.
    """
    tolerance = 1e-4 if dtype is torch.float32 else 2e-2
    first = rows[0].loss
    if not all(abs(row.loss - first) <= tolerance * first for row in rows):  # nor if one is NaN
        shown = ", ".join(f"{row.arm} {row.loss:.6f}" for row in rows)
        raise FlashBackError(
            f"the losses of the same targets differ ({shown}), expected within {tolerance:g} of "
            "one another: their speeds cannot be compared; this is a bug, please report it"
        )
