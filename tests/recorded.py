"""Texts with the logits that their tokens were chosen from."""

import random
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from torch import Tensor

import flashback.writing.generator as generator_module
from flashback.retrieval.protocol import Hit
from flashback.settings import SearchOptions, Settings
from flashback.writing.generator import Generation, Generator
from recompute import RecordingSampler


@contextmanager
def recording_samplers() -> Iterator[list[RecordingSampler]]:
    """The samplers of all texts that are begun within the block."""
    samplers: list[RecordingSampler] = []

    def recording(*arguments: object) -> RecordingSampler:
        samplers.append(RecordingSampler(*arguments))  # type: ignore[arg-type]
        return samplers[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generator_module, "Sampler", recording)
        yield samplers


def generate_and_record(
    writer: Generator, prompt: Sequence[int], settings: Settings
) -> tuple[Generation, list[Tensor]]:
    """A generation and all the logits it chose from."""
    with recording_samplers() as samplers:
        generation = writer.generate(prompt, settings)
    return generation, samplers[0].seen


def write_recorded(
    writer: Generator, prompts: Sequence[Sequence[int]], settings: Settings, rows: int
) -> tuple[list[Generation], list[list[Tensor]]]:
    """Every text of a batch, and the logits it chose from."""
    with recording_samplers() as samplers:
        texts = writer.generate_batch(prompts, settings, batch_size=rows)
    return texts, [sampler.seen for sampler in samplers]


class PassagesByQuery:
    """Passages of any length that depend on nothing but the query; for some queries none."""

    def __init__(self, empty: float = 0.25, longest: int = 40) -> None:
        self._empty = empty
        self._longest = longest
        self.asked: list[int] = []

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        self.asked.append(len(queries))
        return [self._answer(query, options.k) for query in queries]

    def _answer(self, query: str, k: int) -> list[Hit]:
        chosen = random.Random(zlib.crc32(query.encode()))
        if chosen.random() < self._empty:
            return []
        letters = "abcdefghij "
        texts = ["".join(chosen.choices(letters, k=chosen.randint(1, self._longest)))] * k
        return [Hit(f"p{n}", "d", "t", text, 1.0) for n, text in enumerate(texts)]
