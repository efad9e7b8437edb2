"""The paper's run-time test on one machine, in one interleaved run.

    python benchmarks/stride_speed.py [--start 512] [--end 1024] [--json]

A random-weight reader of the OPT-125M shape, float32, batch 1, random tokens, passages all
different (paper section 4.3): four ways to write the same number of tokens, stride by stride in
turn, each with its own cache. Contexts grow from `start` to `end` less one passage.

    none             no retrieval
    append           FlashBack
    prepend          everything recomputed; logits at the last position only
    authors' prepend everything recomputed; logits over the vocabulary at every position, as the
                     authors' code computes them
"""

import argparse
import json
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from flashback.engines.local import CachedSequence, LocalEngine
from flashback.generation import Generator, Stride
from flashback.reader import Placement, Reader
from flashback.retrieval.protocol import Hit, SearchOptions
from flashback.settings import (
    FrameText,
    Pattern,
    RetrievalSettings,
    Settings,
    StoppingSettings,
)

STRIDE, PASSAGE = 16, 128


class EveryLogitEngine(LocalEngine):
    """Recomputes everything every stride, with the logits of every position."""

    def _forward(self, sequence: CachedSequence, ids: Sequence[int], keep: int) -> Tensor:
        return super()._forward(sequence, ids, len(ids))[-keep:]


class RandomPassages:
    """A retriever of passages that are all different."""

    def __init__(self, words: int) -> None:
        self._random = random.Random(0)
        self._words = words

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        return [[self._passage() for _ in range(options.k)] for _ in queries]

    def _passage(self) -> Hit:
        text = " ".join(f"w{self._random.randrange(self._words)}" for _ in range(PASSAGE))
        return Hit("p", "d", "", text, 1.0)


@dataclass
class Arm:
    """One way of writing, and the strides it has written."""

    name: str
    strides_to_come: Iterator[Stride]
    strides: list[Stride] = field(default_factory=list)

    @property
    def stride_seconds(self) -> list[float]:
        return [s.usage.encode_seconds + s.usage.decode_seconds for s in self.strides]

    @property
    def seconds(self) -> float:
        return sum(self.stride_seconds)


def random_reader() -> Reader:
    """The OPT-125M shape with random weights and one token per word `w0`, `w1`, …"""
    torch.manual_seed(0)
    config = OPTConfig()  # transformers' default is the 125M shape
    vocabulary = {f"w{i}": i for i in range(config.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    placement = Placement(torch.device("cpu"), torch.float32, "the paper's precision")
    model = OPTForCausalLM(config).eval()
    return Reader("opt-125m shape", model, fast, placement, config.max_position_embeddings, "")


def make_arm(name: str, reader: Reader, prompt: Sequence[int], tokens: int) -> Arm:
    pattern = Pattern(name.removeprefix("authors' "))
    kind = EveryLogitEngine if name.startswith("authors'") else LocalEngine
    engine = kind(reader.model, reader.window, self_check=False)
    settings = Settings(
        RetrievalSettings(pattern, STRIDE, passage_tokens=PASSAGE, frame=FrameText("", "")),
        stopping=StoppingSettings(tokens, ignore_eos=True),
    )
    writing = Generator(reader, engine, RandomPassages(reader.vocabulary_size)).stream(
        prompt, settings
    )
    return Arm(name, (event for event in writing if isinstance(event, Stride)))


def run(start: int, end: int) -> list[Arm]:
    """Write from `start` to `end` - m tokens in every way, stride by stride in turn."""
    reader = random_reader()
    generator = random.Random(1)
    prompt = [generator.randrange(reader.vocabulary_size) for _ in range(start)]
    names = ("none", "append", "prepend", "authors' prepend")
    for name in names:  # let libraries allocate and tune themselves
        next(make_arm(name, reader, prompt, STRIDE).strides_to_come)
    arms = [make_arm(name, reader, prompt, end - PASSAGE - start) for name in names]
    for _ in range((end - PASSAGE - start) // STRIDE):
        for arm in arms:
            arm.strides.append(next(arm.strides_to_come))
    return arms


def ratios(arms: Sequence[Arm]) -> dict[str, float]:
    seconds = {arm.name: arm.seconds for arm in arms}
    return {
        "prepend/append": seconds["prepend"] / seconds["append"],
        "authors' prepend/append": seconds["authors' prepend"] / seconds["append"],
        "append/none": seconds["append"] / seconds["none"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--start", type=int, default=512, help="first context length, tokens")
    parser.add_argument("--end", type=int, default=1024, help="positions in all, tokens")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    arms = run(arguments.start, arguments.end)
    rows = [
        {
            "pattern": arm.name,
            "seconds": arm.seconds,
            "median_stride_seconds": statistics.median(arm.stride_seconds),
            "encode_seconds": sum(stride.usage.encode_seconds for stride in arm.strides),
            "decode_seconds": sum(stride.usage.decode_seconds for stride in arm.strides),
        }
        for arm in arms
    ]
    if arguments.json:
        record = {"shape": "opt-125m", "device": "cpu", "dtype": "float32", "rows": rows}
        print(json.dumps(record | {"ratios": ratios(arms)}, indent=2))
        return
    table = Table(title=f"OPT-125M shape, float32, CPU, contexts {arguments.start} to "
                  f"{arguments.end - PASSAGE}, s=16, m=128")  # fmt: skip
    table.add_column("pattern")
    for heading in ("seconds", "encoding", "decoding", "median stride, ms"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            str(row["pattern"]),
            f"{row['seconds']:.2f}",
            f"{row['encode_seconds']:.2f}",
            f"{row['decode_seconds']:.2f}",
            f"{1000 * float(row['median_stride_seconds']):.0f}",
        )
    console = Console()
    console.print(table)
    for name, value in ratios(arms).items():
        console.print(f"{name}: {value:.2f}")


if __name__ == "__main__":
    main()
