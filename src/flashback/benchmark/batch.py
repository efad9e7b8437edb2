"""Tokens per second of many texts, one by one and together: the same prompts, the same texts.

Random prompts of different lengths, evenly spaced; random passages that depend on the query alone,
so that both arms find the same. Each arm starts from empty caches, and the arms take turns.
"""

import random
import statistics
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from flashback.benchmark.bench_settings import BatchBenchSettings
from flashback.benchmark.shapes import shaped_reader, word
from flashback.engines.local import LocalEngine
from flashback.errors import FlashBackError, SettingsError
from flashback.patterns.prompt import Ids
from flashback.readers.inference import for_inference
from flashback.readers.reader import Reader
from flashback.retrieval.protocol import Hit
from flashback.settings import RetrievalSettings, SearchOptions, Settings, StoppingSettings
from flashback.writing.generator import Generator

ARMS = ("one by one", "batch")


@dataclass(frozen=True)
class Measured:
    """One arm, all texts written."""

    arm: str
    tokens: int
    runs: tuple[float, ...]
    """Seconds of each repeat."""

    @property
    def seconds(self) -> float:
        """The median of the repeats."""
        return statistics.median(self.runs)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def spread(self) -> float:
        """From the fastest repeat to the slowest, as a share of the median."""
        return (max(self.runs) - min(self.runs)) / self.seconds


@dataclass(frozen=True)
class QueryPassages:
    """A retriever of random passages, each made from its query."""

    reader: Reader
    tokens: int

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        """See `Retriever.search`."""
        return [[self._passage(query, rank) for rank in range(options.k)] for query in queries]

    def _passage(self, query: str, rank: int) -> Hit:
        drawn = random.Random(zlib.crc32(query.encode()) + rank)
        size = self.reader.vocabulary_size
        text = " ".join(word(drawn.randrange(size)) for _ in range(self.tokens))
        return Hit(str(rank), "", "", text, 1.0)


def random_prompts(reader: Reader, settings: BatchBenchSettings) -> list[Ids]:
    """One prompt for each row, from half of the longest length to the longest."""
    drawn = random.Random(0)
    longest, count = settings.prompt_tokens, settings.batch_size
    shortest = -(-longest // 2)
    lengths = [shortest + (longest - shortest) * row // (count - 1) for row in range(count)]
    return [tuple(drawn.choices(range(reader.vocabulary_size), k=length)) for length in lengths]


class BatchBench:
    """A reader, its prompts and the two ways to go on with them."""

    def __init__(self, reader: Reader, settings: BatchBenchSettings) -> None:
        self.reader = reader
        self.settings = settings
        self._engine = LocalEngine(reader.model, reader.window)
        retriever = QueryPassages(reader, settings.passage_tokens)
        self._writer = Generator(reader, self._engine, retriever)
        self._prompts = random_prompts(reader, settings)
        self._generation = Settings(
            RetrievalSettings(
                settings.pattern, settings.stride, passage_tokens=settings.passage_tokens
            ),
            stopping=StoppingSettings(settings.new_tokens, ignore_eos=True),
        )

    def run(self, on_turn: Callable[[], None] = lambda: None) -> list[Measured]:
        """Measure both arms, `repeats` times after one that is not counted.

        Args:
            on_turn: called after every turn of both arms.

        Raises:
            FlashBackError: in float32, the texts of the arms differ.
        """
        seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
        for turn in range(self.settings.repeats + 1):
            texts = {}
            for arm, rows in zip(ARMS, (1, self.settings.batch_size), strict=True):
                texts[arm], taken = self._write(rows)
                if turn:
                    seconds[arm].append(taken)
            self._check(texts)
            on_turn()
        tokens = self.settings.batch_size * self.settings.new_tokens
        return [Measured(arm, tokens, tuple(seconds[arm])) for arm in ARMS]

    def _write(self, rows: int) -> tuple[list[Ids], float]:
        self._engine.forget()
        began = time.perf_counter()
        texts = self._writer.generate_batch(self._prompts, self._generation, batch_size=rows)
        return [text.tokens for text in texts], time.perf_counter() - began

    def _check(self, texts: dict[str, list[Ids]]) -> None:
        one_by_one, batch = (texts[arm] for arm in ARMS)
        if self.reader.placement.dtype is torch.float32 and one_by_one != batch:
            different = sum(one != other for one, other in zip(one_by_one, batch, strict=True))
            raise FlashBackError(f"{different} of {len(batch)} texts differ from one by one")


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
            f"--prompt-tokens {settings.prompt_tokens}: with {settings.new_tokens} new and "
            f"{settings.passage_tokens} passage tokens, {needed} positions are needed, but "
            f"{reader.name} has {reader.window}"
        )
    return BatchBench(for_inference(reader), settings)
