"""Tokens per second of many texts, one by one and together: the same prompts, the same texts.

Random prompts of different lengths, evenly spaced; random passages that depend on the query alone,
so that both arms find the same. Each arm starts from empty caches, and the arms take turns.
"""

import random
from collections.abc import Callable
from functools import partial

import torch

from flashback.benchmark.bench_settings import BatchBenchSettings
from flashback.benchmark.harness import Comparison, Series, by_arm, nothing, take_turns, timed
from flashback.benchmark.machine import described
from flashback.benchmark.material import RandomPassages
from flashback.benchmark.report import Report
from flashback.benchmark.shapes import shaped_reader
from flashback.engines.local import LocalEngine
from flashback.errors import FlashBackError, SettingsError
from flashback.patterns.prompt import Ids
from flashback.readers.inference import for_inference
from flashback.readers.reader import Reader
from flashback.settings import RetrievalSettings, Settings, StoppingSettings
from flashback.writing.generator import Generator

ARMS = ("one_by_one", "batch")
RATIOS = (("batch", "one_by_one"),)


def random_prompts(reader: Reader, settings: BatchBenchSettings) -> list[Ids]:
    """One prompt for each row, from half of the longest length to the longest."""
    drawn = random.Random(0)
    longest, count = settings.prompt_tokens, settings.batch_size
    shortest = -(-longest // 2)
    lengths = [shortest + (longest - shortest) * row // (count - 1) for row in range(count)]
    return [tuple(drawn.choices(range(reader.vocabulary_size), k=length)) for length in lengths]


class BatchBench:
    """A reader, its prompts and the two ways to continue them."""

    def __init__(self, reader: Reader, settings: BatchBenchSettings) -> None:
        self.reader = reader
        self.settings = settings
        self._rows = dict(zip(ARMS, (1, settings.batch_size), strict=True))
        self._engine = LocalEngine(reader.model, reader.window)
        retriever = RandomPassages(reader, settings.passage_tokens)
        self._writer = Generator(reader, self._engine, retriever)
        self._prompts = random_prompts(reader, settings)
        self._generation = Settings(
            RetrievalSettings(
                settings.pattern, settings.stride, passage_tokens=settings.passage_tokens
            ),
            stopping=StoppingSettings(settings.new_tokens, ignore_eos=True),
        )

    @property
    def steps(self) -> int:
        """See `Benchmark.steps`."""
        return self.settings.repeats * len(ARMS)

    def run(self, on_step: Callable[[], None] = nothing) -> Comparison[Series]:
        """Measure both arms, `repeats` times after a warm-up. See `Benchmark.run`.

        Raises:
            FlashBackError: in float32, the texts of the arms differ.
        """
        self._check(by_arm(take_turns(ARMS, [0], self._write)))  # the warm-up
        turns = range(self.settings.repeats)
        written = by_arm(take_turns(ARMS, turns, self._write, on_step))
        self._check(written)
        tokens = self.settings.batch_size * self.settings.new_tokens
        rows = (
            Series(arm, tokens, tuple(seconds for seconds, _ in runs))
            for arm, runs in written.items()
        )
        return Comparison(tuple(rows), RATIOS)

    def _write(self, arm: str, _turn: int) -> tuple[float, list[Ids]]:
        """Write all texts from empty caches: the seconds, and the texts."""
        self._engine.forget()
        rows = self._rows[arm]
        write = partial(self._writer.generate_batch, self._prompts, batch_size=rows)
        seconds, texts = timed(lambda: write(self._generation))
        return seconds, [text.tokens for text in texts]

    def _check(self, written: dict[str, list[tuple[float, list[Ids]]]]) -> None:
        if self.reader.placement.dtype is not torch.float32:
            return
        for (_, alone), (_, together) in zip(*written.values(), strict=True):
            different = sum(one != other for one, other in zip(alone, together, strict=True))
            if different:
                raise FlashBackError(f"{different} of {len(together)} texts differ from one by one")

    def report(self, results: Comparison[Series]) -> Report:
        """See `Benchmark.report`."""
        title = f"{self.reader.name}, {self.reader.placement}, {self.settings.batch_size} texts"
        return results.report(title, described(self.reader, self.settings))


def prepare(settings: BatchBenchSettings) -> BatchBench:
    """Make the model and the prompts.

    Raises:
        SettingsError: an unknown shape, device or dtype, or not enough positions.
        ReaderError: a folder holds no usable model.
    """
    reader = shaped_reader(settings.shape, device=settings.device, dtype=settings.dtype)
    needed = settings.prompt_tokens + settings.new_tokens + settings.passage_tokens
    if needed > reader.window:
        raise SettingsError(
            f"--prompt-tokens={settings.prompt_tokens}: with {settings.new_tokens} new and "
            f"{settings.passage_tokens} passage tokens, {needed} positions are needed, but "
            f"{reader.name} has {reader.window}"
        )
    return BatchBench(for_inference(reader), settings)
