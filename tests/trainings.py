"""Tiny trainings: made-up windows, settings, and a script that trains in a process of its own."""

import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from families import tiny_model
from flashback.corpus.documents import Document
from flashback.readers.card import WEIGHTS, AdapterCard
from flashback.readers.reader import Reader
from flashback.scoring.examples import Example
from flashback.scoring.window_settings import WindowSettings
from flashback.scoring.windows import Cut, Window
from flashback.settings import RetrievalSettings
from flashback.training.run import Run
from flashback.training.train import train
from flashback.training.trainer import OnStep
from flashback.training.training_settings import TrainingSettings

STRIDE, FIRST, PASSAGE = 4, 12, 9
RETRIEVAL = RetrievalSettings("append", stride=STRIDE, query_tokens=8, passage_tokens=PASSAGE)
WINDOWS = WindowSettings(window_tokens=64, first_boundary=FIRST)
SETTINGS = TrainingSettings(
    steps=7, windows_per_step=2, learning_rate=0.01, checkpoint_steps=2, log_steps=3
)
RUN = Run(SETTINGS, RETRIEVAL, WINDOWS)
TOKENS = range(2, 258)
"""Ids of the byte tokenizer's bytes."""


def run_with(**changes: Any) -> Run:
    """The usual run with other settings of the training, or `retrieval`."""
    retrieval = changes.pop("retrieval", RETRIEVAL)
    return replace(RUN, settings=replace(SETTINGS, **changes), retrieval=retrieval)


def made_up_examples(
    count: int, *, cuts: Sequence[int] = (1, 4, 2), seed: int = 0
) -> list[Example]:
    """Windows with BOS whose numbers of strides take turns, every passage of another length."""
    drawn = random.Random(seed)

    def ids(size: int) -> tuple[int, ...]:
        return tuple(drawn.choices(TOKENS, k=size))

    examples = []
    for number in range(count):
        strides = cuts[number % len(cuts)]
        text = (0, *ids(FIRST + strides * STRIDE - 1))
        boundaries = tuple(Cut(FIRST + STRIDE * at) for at in range(strides))
        document = Document(f"d{number}", f"Title {number}", "never read here")
        window = Window(document, text, 1, boundaries, STRIDE)
        passages = tuple(ids(drawn.randint(1, PASSAGE)) for _ in range(strides))
        examples.append(Example(window, passages))
    return examples


EXAMPLES = made_up_examples(5)
"""Three batches of two, two and one: the steps of a run cross epochs."""


def full_model(family: str) -> PreTrainedModel:
    """A tiny model without embedding rows to spare: marking tokens need new ones."""
    model = tiny_model(family)
    model.resize_token_embeddings(TOKENS.stop)
    return model


def lora_weights(folder: Path) -> dict[str, Tensor]:
    """What an adapter folder, or a checkpoint, holds."""
    return load_file(folder / WEIGHTS)


def farthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference of two sets of the same weights."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def train_usual(
    reader: Reader, out: Path, run: Run = RUN, *, on_step: OnStep = lambda _: None, **more: Any
) -> AdapterCard:
    """The usual training."""
    return train(reader, EXAMPLES, run, out, on_step=on_step, **more)


def slow_run() -> Run:
    """Long enough to be killed anywhere, with a checkpoint at every step."""
    return run_with(steps=12, checkpoint_steps=1)


def main() -> None:
    """Train into the folder given on the command line, with a line for each step."""
    from tiny_readers import tiny_reader

    torch.set_num_threads(1)
    train_usual(
        tiny_reader(), Path(sys.argv[1]), slow_run(), on_step=lambda _: print("step", flush=True)
    )


if __name__ == "__main__":
    main()
