"""Documents to train on and to score, and settings that fit a tiny model."""

import json
import random
from pathlib import Path

from command_line import run

FITS = (
    *("--device", "cpu", "--dtype", "float32"),
    *("--window-tokens", "96", "--first-boundary", "16", "--stride", "8"),
    *("--query-tokens", "22", "--passage-tokens", "40", "--resamples", "50"),
)
"""Settings for the tiny model's 192 positions."""


def write_corpus(path: Path, count: int, words: int = 40) -> Path:
    """Titled documents with words in common with all others."""
    drawn = random.Random(path.name)
    vocabulary = [f"word{number}" for number in range(60)] + ["雪", "été"]
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            name = f"{path.stem}{number}"
            text = " ".join(drawn.choices(vocabulary, k=words))
            file.write(json.dumps({"id": name, "title": f"Title {name}", "text": text}) + "\n")
    return path


class Corpora:
    """Documents to train on and to score, and an index of others."""

    def __init__(self, folder: Path) -> None:
        self.trained = write_corpus(folder / "train.jsonl", 3)
        self.scored = write_corpus(folder / "scored.jsonl", 3)
        self.others = write_corpus(folder / "others.jsonl", 12)
        self.index = folder / "IDX"
        run("index", self.others, "--out", self.index)
