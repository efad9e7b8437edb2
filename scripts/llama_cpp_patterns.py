"""Greedy texts by llama.cpp beside our own engine's, token by token, and tokens per second of both.

    python scripts/llama_cpp_patterns.py FILE.gguf [--ours MODEL] [--prompts 10] [--strides 10]

Prompts and passages are documentation strings of this Python; every stride has another passage.
The patterns take turns for each prompt, so that a slow minute slows all of them. Our engine runs
the same file, dequantized to float32, or MODEL. The seconds are the engines', from the second
stride on. A line of JSON for each pattern.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from flashback.corpus.python_docs import find_modules, read_python_docs
from flashback.loading import load
from flashback.retrieval.protocol import Hit
from flashback.settings import RetrievalSettings, SearchOptions, Settings, StoppingSettings
from flashback.writing.generator import Generation, Generator

_LONG = 4000
"""Characters of a document that is a prompt, or has a passage."""


@dataclass
class InTurn:
    """A retriever: another passage at every search, the same ones for every text."""

    passages: Sequence[str]
    at: int = 0

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        """The next ones."""
        found = []
        for _ in queries:
            name = f"p{self.at}"
            text = self.passages[self.at % len(self.passages)]
            found.append([Hit(name, name, "", text, 1.0)])
            self.at += 1
        return found


@dataclass
class Pattern:
    """The figures of a pattern."""

    name: str
    equal: int = 0
    """Texts with the same tokens."""
    undecided: list[float] = field(default_factory=list)
    """Where tokens differ first: the difference of our logits of the two."""
    difference: float = 0.0
    """The largest one of a logit, up to where tokens differ."""
    rates: dict[str, list[float]] = field(default_factory=dict)
    """Tokens per second of every text, by engine."""

    def compare(self, theirs: "Written", ours: "Written") -> None:
        """Add a text of both."""
        pairs = zip(theirs.text.tokens, ours.text.tokens, strict=True)
        differ = next((at for at, (one, two) in enumerate(pairs) if one != two), None)
        seen = None if differ is None else differ + 1
        for one, two in zip(theirs.logits[:seen], ours.logits[:seen], strict=True):
            self.difference = max(self.difference, float((one - two).abs().max()))
        if differ is None:
            self.equal += 1
        else:
            row = ours.logits[differ]
            tokens = ours.text.tokens[differ], theirs.text.tokens[differ]
            self.undecided.append(round(float(row[tokens[0]] - row[tokens[1]]), 6))

    def record(self, texts: int) -> dict[str, Any]:
        """As it is printed."""
        return {
            "pattern": self.name,
            "texts": texts,
            "equal": self.equal,
            "undecided": self.undecided,
            "largest_difference": self.difference,
            "tokens_per_second": {
                name: round(statistics.median(rates), 2) for name, rates in self.rates.items()
            },
        }


@dataclass(frozen=True)
class Written:
    """A text, and the logits that its tokens were chosen from."""

    text: Generation
    logits: list[Tensor]

    @property
    def rate(self) -> float:
        """Tokens per second of the engine, from the second stride on."""
        later = self.text.strides[1:]
        seconds = sum(one.usage.prefill_seconds + one.usage.decode_seconds for one in later)
        return sum(len(one.tokens) for one in later) / seconds


def write(writer: Generator, passages: InTurn, ids: Sequence[int], settings: Settings) -> Written:
    """A text by one engine, from the first passage on."""
    passages.at = 0
    logits: list[Tensor] = []

    def keep(row: Tensor | None, token: int) -> None:
        assert row is not None
        logits.append(row.to(torch.float32, copy=True))

    return Written(writer.stream(ids, settings, on_token=keep).finish(), logits)


def texts() -> Iterator[str]:
    """Long documents."""
    modules = [one for one in find_modules() if "." in one[0]]
    return (one.text for one in read_python_docs(modules) if len(one.text) >= _LONG)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file")
    parser.add_argument("--ours", help="what our engine runs; default: the file")
    parser.add_argument("--patterns", nargs="+", default=["none", "slot", "append", "prepend"])
    parser.add_argument("--context", type=int, default=500, help="tokens of a prompt")
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--strides", type=int, default=10)
    parser.add_argument("--stride", type=int, default=16)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--alone", action="store_true", help="leave our engine out")
    return parser.parse_args()


def main() -> None:
    """Write, compare, print."""
    given = parsed()
    torch.set_num_threads(given.threads)
    long = texts()
    prompts = [text for text, _ in zip(long, range(given.prompts), strict=False)]
    passages = InTurn([text[1000:2000] for text, _ in zip(long, range(16), strict=False)])
    window = min(2048, given.context + given.stride * given.strides + 320)
    common: dict[str, Any] = {"retriever": passages, "window": window, "device": "cpu"}
    writers = {"llama.cpp": load(given.file, engine="llama.cpp", **common)}
    if not given.alone:
        writers["ours"] = load(given.ours or given.file, dtype="float32", **common)
    found = {name: Pattern(name) for name in given.patterns}
    stopping = StoppingSettings(given.stride * given.strides, ignore_eos=True)
    for prompt in prompts:
        ids = writers["llama.cpp"].reader.encode_prompt(prompt)[: given.context]
        for name, pattern in found.items():
            settings = Settings(RetrievalSettings(name, stride=given.stride), stopping=stopping)
            began = time.perf_counter()
            written = {by: write(one, passages, ids, settings) for by, one in writers.items()}
            for by, one in written.items():
                pattern.rates.setdefault(by, []).append(one.rate)
            if len(written) == 2 and given.ours is None:
                pattern.compare(*written.values())
            record = pattern.record(len(pattern.rates["llama.cpp"]))
            record["took"] = round(time.perf_counter() - began)
            print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
