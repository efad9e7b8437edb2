"""Targets per second of training, three ways: the same model, the same examples, the same losses.

    padded   as an ordinary Trainer does it: every stride a sequence of its own, in random order,
             batches padded, the logits of every position, the model's own loss
    sorted   the same sequences, those of similar length together; the targets' logits alone
    packed   as `flashback train` does it: the context once, branches on its cache

Forward and backward passes of LoRA on the query and value projections and of trained marks, around
appended passages; no optimizer. Random tokens, passages all different. Nothing is dropped out, and
no token forbidden, which the model's own loss cannot do: so the three losses must agree. The arms
take turns, a share of their work at a time, so that a machine whose speed drifts treats them alike.

Symbols: B sequences of a batch, T tokens of its longest, s stride, V vocabulary.
"""

import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flashback.benchmark.bench_settings import TrainingBenchSettings
from flashback.benchmark.shapes import shaped_reader
from flashback.corpus.documents import Document
from flashback.errors import FlashBackError, SettingsError
from flashback.patterns.prompt import Ids
from flashback.readers.lora import add_lora
from flashback.readers.lora_settings import LoraSettings
from flashback.readers.reader import Reader
from flashback.scoring.examples import Arrangement, Example
from flashback.scoring.targets import TargetScorer
from flashback.scoring.windows import Cut, Window

ARMS = ("padded", "sorted", "packed")
_NO_TARGET = -100
"""The label of a position that is none."""

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
class Measured:
    """One arm, trained on all targets."""

    arm: str
    targets: int
    runs: tuple[float, ...]
    """Seconds of each repeat."""
    loss: float
    """Nats per target."""

    @property
    def seconds(self) -> float:
        """The median of the repeats."""
        return statistics.median(self.runs)

    @property
    def targets_per_second(self) -> float:
        return self.targets / self.seconds

    @property
    def spread(self) -> float:
        """From the fastest repeat to the slowest, as a share of the median."""
        return (max(self.runs) - min(self.runs)) / self.seconds


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
                f"--window-tokens {settings.window_tokens}: needs {needed} positions with a "
                f"passage, but {reader.name} has {reader.window}"
            )
        arrangement = Arrangement("append", frame)
        return cls(reader, settings, model.eval(), arrangement, examples)

    @property
    def targets(self) -> int:
        return sum(example.window.target_count for example in self.examples)

    @property
    def turns(self) -> int:
        """How many times all arms take turns."""
        return self.settings.repeats * len(self.examples)

    def run(self, on_turn: Callable[[], None] = lambda: None) -> list[Measured]:
        """Measure every arm, `repeats` times; medians count.

        Args:
            on_turn: called after every turn of all arms.

        Raises:
            FlashBackError: the arms' losses differ.
        """
        works = {arm: self.works(arm) for arm in ARMS}
        for arm in ARMS:
            self._train(works[arm][:1])  # a warm-up, not counted
        runs = [self._repeat(works, on_turn) for _ in range(self.settings.repeats)]
        rows = [
            Measured(
                arm,
                self.targets,
                tuple(run[arm][0] for run in runs),
                runs[0][arm][1] / self.targets,
            )
            for arm in ARMS
        ]
        check_losses(rows, self.reader.placement.dtype)
        return rows

    def _repeat(
        self, works: dict[str, list[Work]], on_turn: Callable[[], None]
    ) -> dict[str, tuple[float, float]]:
        """All work once, in as many turns as there are windows: each arm's seconds and loss."""
        found = dict.fromkeys(ARMS, (0.0, 0.0))
        turns = len(self.examples)
        for turn in range(turns):
            for arm in ARMS:
                seconds, loss = self._train(works[arm][turn::turns])
                found[arm] = found[arm][0] + seconds, found[arm][1] + loss
            on_turn()
        return found

    def _train(self, works: Sequence[Work]) -> tuple[float, float]:
        """Forward and backward passes: their seconds, and the sum of the losses."""
        self.model.zero_grad(set_to_none=True)
        self._wait()
        started = time.perf_counter()
        total = torch.zeros((), device=self.reader.placement.device)
        for work in works:
            loss = work()
            (loss / self.targets).backward()
            total += loss.detach()
        self._wait()
        return time.perf_counter() - started, float(total)

    def _wait(self) -> None:
        device = self.reader.placement.device
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

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


def check_losses(rows: Sequence[Measured], dtype: torch.dtype) -> None:
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


def ratios(rows: Sequence[Measured]) -> dict[str, float]:
    """How many times as many targets per second packing trains on."""
    speeds = {row.arm: row.targets_per_second for row in rows}
    return {f"packed/{arm}": speeds["packed"] / speeds[arm] for arm in ("padded", "sorted")}
