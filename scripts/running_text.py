"""What a slot costs in running text: perplexity behind the 128 tokens before, against prepending.

    python scripts/running_text.py TEXT.txt[.gz] --model MODEL [--windows 60] [--window-tokens 384]

Each window of a text is scored with the tokens before it as its passage, in view from its beginning
on: nothing is exchanged, so that a slot and prepending differ in nothing but where passages stand.
"""

import argparse
import gzip
import math
import random
import statistics
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.progress import track

from flashback.corpus.documents import Document
from flashback.readers.load import load_reader
from flashback.readers.reader import Reader
from flashback.scoring.examples import Arrangement, Example
from flashback.scoring.targets import TargetScorer
from flashback.scoring.windows import Cut, Window

PATTERNS = ("none", "prepend", "slot")
FIRST = 32
"""Tokens of a window that are not scored."""


def examples(reader: Reader, text: str, count: int, tokens: int, passage: int) -> Iterator[Example]:
    """Windows drawn with seed 0, none of which overlaps another."""
    ids = reader.encode(text)
    starts = list(range(passage, len(ids) - tokens, tokens + passage))
    bos = reader.bos
    for start in random.Random(0).sample(starts, min(count, len(starts))):
        window = Window(
            Document("", "", ""),
            bos + tuple(ids[start : start + tokens]),
            len(bos),
            (Cut(len(bos) + FIRST),),
            tokens - FIRST,
        )
        yield Example(window, (tuple(ids[start - passage : start]),), passage)


@torch.no_grad()
def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--windows", type=int, default=60)
    parser.add_argument("--window-tokens", type=int, default=384)
    parser.add_argument("--passage-tokens", type=int, default=128)
    given = parser.parse_args()
    opened = gzip.open if given.file.suffix == ".gz" else open
    with opened(given.file, "rt", encoding="utf-8") as file:
        text = file.read()
    if given.window_tokens <= FIRST or given.passage_tokens < 1:
        parser.error(f"expected windows of more than {FIRST} tokens, and passages of 1 or more")
    reader = load_reader(given.model, dtype="float32")
    scorer = TargetScorer(reader.model)
    found: dict[str, list[float]] = {pattern: [] for pattern in PATTERNS}
    drawn = [*examples(reader, text, given.windows, given.window_tokens, given.passage_tokens)]
    if len(drawn) < 2:
        parser.error(
            f"{given.file}: found {len(drawn)} windows; expected 2 or more, for an interval"
        )
    for example in track(drawn, "scoring"):
        for pattern, nats in found.items():
            arrangement = Arrangement(pattern, reader.frame(None, pattern), reader.forbidden)
            (log_probs,) = scorer.log_probs([example], arrangement)
            nats.append(-float(log_probs.mean()))
    print(f"{given.model}, float32, {len(drawn)} windows of {given.window_tokens} tokens")
    for pattern, nats in found.items():
        pairs = zip(nats, found["prepend"], strict=True)
        differences = [one - prepended for one, prepended in pairs]
        mean = statistics.mean(differences)
        spread = 1.96 * statistics.stdev(differences) / math.sqrt(len(differences))
        ratio, low, high = (math.exp(mean + part) for part in (0, -spread, spread))
        perplexity = math.exp(statistics.mean(nats))
        print(f"{pattern:8} {perplexity:7.2f}  {ratio:.4f} of prepend ({low:.4f} to {high:.4f})")


if __name__ == "__main__":
    main()
