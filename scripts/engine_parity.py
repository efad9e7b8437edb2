"""Greedy texts of a server of the engine `openai` beside our own engine's, token by token.

    python scripts/engine_parity.py URL --model FOLDER --served NAME --contexts 1000 1500

Prompts and passages are documentation strings of this Python. Each text is written by the server
and by our engine in float32, with every pattern that both have. Where they part, the two tokens'
logits decide whether our model was undecided there. A line of JSON for each pattern and length.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from flashback.corpus.python_docs import find_modules, read_python_docs
from flashback.engines.local import LocalEngine
from flashback.engines.openai_settings import RemoteSettings
from flashback.loading import load
from flashback.readers.load import load_reader
from flashback.readers.reader import Reader
from flashback.retrieval.protocol import Hit
from flashback.settings import RetrievalSettings, SearchOptions, Settings, StoppingSettings
from flashback.writing.generator import Generation, Generator

UNDECIDED = 1e-4
"""Difference of two logits below which either token is right."""


def in_blocks(reader: Reader, block: int) -> LocalEngine:
    """Our engine, with a slot made of blocks as a server has it."""
    engine = LocalEngine(reader.model, reader.window)
    engine.capabilities = replace(engine.capabilities, block=block)
    return engine


class InTurn:
    """A retriever: another passage at every search, the same ones for every text."""

    def __init__(self, passages: Sequence[str]) -> None:
        self._passages = passages
        self._at = 0

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        found = []
        for _ in queries:
            text = self._passages[self._at % len(self._passages)]
            found.append([Hit(f"p{self._at}", f"p{self._at}", "", text, 1.0)])
            self._at += 1
        return found

    def rewind(self) -> None:
        """Begin again with the first passage."""
        self._at = 0


@dataclass(frozen=True)
class Compared:
    """A text of both engines."""

    tokens: int
    equal: int
    """Tokens before the first that differs."""
    gap: float | None
    """Of our logits of the two tokens there; None: all are equal."""
    cached: tuple[float, ...]
    """The share of the context that the server had cached, from the second stride on."""
    seconds: tuple[float, ...]
    """The server's, of each stride from the second on; of texts together, each one's share."""
    prefill_seconds: tuple[float, ...]
    """Those before the first token."""


def texts(characters: int) -> Iterator[str]:
    """Documents of at least so many characters."""
    modules = [one for one in find_modules() if "." in one[0]]
    for document in read_python_docs(modules):
        if len(document.text) >= characters:
            yield document.text


def material(
    reader: Reader, longest: int, prompts: int, passages: int
) -> tuple[list[list[int]], list[str]]:
    """Prompts of `longest` ids, and passages of other documents."""
    found: list[list[int]] = []
    shown: list[str] = []
    for text in texts(8 * longest):
        if len(found) < prompts:
            ids = reader.encode_prompt(text)
            if len(ids) >= longest:
                found.append(ids[:longest])
        elif len(shown) < passages:
            shown.append(text[1000:2000])
        else:
            return found, shown
    raise SystemExit("too few documents of that length in this Python")


def settings(pattern: str, strides: int) -> Settings:
    """Greedy, over ends of texts."""
    retrieval = RetrievalSettings(pattern, stride=16, passage_tokens=128)
    return Settings(retrieval, stopping=StoppingSettings(16 * strides, ignore_eos=True))


def compare(
    reader: Reader,
    ours: Generator,
    theirs: Generator,
    prompts: Sequence[list[int]],
    own: Settings,
    together: int,
) -> list[Compared]:
    """All texts by both, so many at a time: theirs first."""
    passages = ours.retriever
    assert isinstance(passages, InTurn)
    written = []
    for writer in (theirs, ours):
        passages.rewind()
        written.append(writer.generate_batch(prompts, own, batch_size=together))
    return [
        _compared(reader, len(ids), remote, local, in_front=own.retrieval.pattern == "prepend")
        for ids, remote, local in zip(prompts, *written, strict=True)
    ]


def _compared(
    reader: Reader, context: int, remote: Generation, local: Generation, *, in_front: bool
) -> Compared:
    """One text by both; a passage in front of it may be cached by another text that had it."""
    equal = sum(1 for _ in _same(local.tokens, remote.tokens))
    gap = None if equal == len(local.tokens) else _gap(reader, local, remote, equal)
    later = remote.strides[1:]
    lengths = [context + 16 * at for at in range(1, len(remote.strides))]
    return Compared(
        len(local.tokens),
        equal,
        gap,
        tuple(
            min(max(one.usage.cached - in_front * (len(one.arranged) - length), 0), length) / length
            for one, length in zip(later, lengths, strict=True)
        ),
        tuple(one.usage.prefill_seconds + one.usage.decode_seconds for one in later),
        tuple(one.usage.prefill_seconds for one in later),
    )


def _same(first: Sequence[int], second: Sequence[int]) -> Iterator[int]:
    for one, other in zip(first, second, strict=True):
        if one != other:
            return
        yield one


@torch.inference_mode()
def _gap(reader: Reader, local: Generation, remote: Generation, at: int) -> float:
    """How far apart our model's logits of the two tokens at a place are."""
    stride = local.strides[at // 16]
    ids = [*stride.arranged, *stride.tokens[: at % 16]]
    logits = reader.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
    return float(logits[local.tokens[at]] - logits[remote.tokens[at]])


def record(pattern: str, context: int, found: Sequence[Compared]) -> dict[str, Any]:
    """The figures of a pattern and a length."""
    gaps = [one.gap for one in found if one.gap is not None]
    cached = [share for one in found for share in one.cached]
    return {
        "pattern": pattern,
        "context": context,
        "texts": len(found),
        "equal": sum(one.gap is None for one in found),
        "undecided": sum(gap < UNDECIDED for gap in gaps),
        "gaps": [round(gap, 6) for gap in gaps],
        "cached_share": [round(min(cached), 3), round(statistics.median(cached), 3)],
        "seconds_per_stride": _median(found, "seconds"),
        "before_first_token": _median(found, "prefill_seconds"),
    }


def _median(found: Sequence[Compared], name: str) -> float:
    values: list[float] = [value for one in found for value in getattr(one, name)]
    return round(statistics.median(values), 3)


def main() -> None:
    """Compare, and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url")
    parser.add_argument("--model", required=True, help="folder of the model, for our engine")
    parser.add_argument("--served", required=True, help="its name at the server")
    parser.add_argument("--contexts", type=int, nargs="+", default=[1000, 1500])
    parser.add_argument("--patterns", nargs="+", default=["none", "append", "prepend"])
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--strides", type=int, default=10)
    parser.add_argument("--together", type=int, default=1, help="texts at a time")
    given = parser.parse_args()
    reader = load_reader(given.model, device="cpu", dtype="float32")
    prompts, passages = material(reader, max(given.contexts), given.prompts, 16)
    retriever = InTurn(passages)
    remote = RemoteSettings(base_url=given.url, tokenizer=given.model, token_limit=600.0)
    theirs = load(given.served, engine="openai", remote=remote, retriever=retriever)
    theirs.retriever = retriever
    ours = Generator(reader, in_blocks(reader, theirs.engine.capabilities.block), retriever)
    for pattern in given.patterns:
        for context in given.contexts:
            began = time.perf_counter()
            own = settings(pattern, given.strides)
            cut = [ids[-context:] for ids in prompts]
            found = compare(reader, ours, theirs, cut, own, given.together)
            line = record(pattern, context, found)
            line["took"] = round(time.perf_counter() - began)
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
