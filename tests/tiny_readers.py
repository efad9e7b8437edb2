"""Readers for tests: tiny models with a byte-level tokenizer, and made-up passages."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from families import tiny_model
from flashback.readers.placement import Placement
from flashback.readers.reader import Reader
from flashback.readers.text_reader import MARK_LEFT, MARK_RIGHT
from flashback.retrieval.protocol import Hit
from flashback.settings import SearchOptions


def byte_tokenizer(*, bos: bool = True, marks: bool = False) -> PreTrainedTokenizerFast:
    """One token per byte (ids from 2), BOS 0, EOS 1, marks behind; characters span tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<s>", "</s>"]
    vocabulary = {token: i for i, token in enumerate([*specials, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    if marks:
        fast.add_tokens([MARK_LEFT, MARK_RIGHT], special_tokens=True)
    return fast


def tiny_reader(
    family: str = "llama",
    *,
    model: PreTrainedModel | None = None,
    window: int = 192,
    bos: bool = True,
    marks: bool = False,
) -> Reader:
    """A reader around a tiny model."""
    placement = Placement(torch.device("cpu"), torch.float32, "a test")
    model = model or tiny_model(family)
    return Reader(
        name=family,
        tokenizer=byte_tokenizer(bos=bos, marks=marks),
        window=window,
        window_reason="a test",
        model=model,
        placement=placement,
    )


def deaf_reader(characters: str, **options: Any) -> Reader:
    """A tiny reader whose tokenizer loses these characters without a word."""
    reader = tiny_reader(**options)
    lost = normalizers.Replace(Regex(f"[{characters}]"), "")
    reader.tokenizer.backend_tokenizer.normalizer = lost
    return reader


def sentencepiece_reader() -> Reader:
    """As Llama 2's: a space belongs to the word behind it, and none begins a text; or bytes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "▁the", "▁json", "▁a", "the", "s", "a", "\ufffd"]
    model = models.BPE(
        {piece: at for at, piece in enumerate(pieces)},
        [],
        byte_fallback=True,
        unk_token="<unk>",
        ignore_merges=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=True)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    return replace(tiny_reader(), tokenizer=fast)


class MadeUpRetriever:
    """Passages that depend on nothing but the seed and the number of the query."""

    def __init__(self, seed: int = 0, longest: int = 40, empty: float = 0.2, same: float = 0.2):
        """Passages of up to `longest` bytes; shares of empty and of repeated answers."""
        self._random = random.Random(seed)
        self._longest = longest
        self._empty = empty
        self._same = same
        self._last: list[Hit] = []
        self.queries: list[str] = []

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        return [self._answer(query, options.k) for query in queries]

    def _answer(self, query: str, k: int) -> list[Hit]:
        self.queries.append(query)
        draw = self._random.random()
        if draw < self._empty:
            return []
        if draw > 1 - self._same and self._last:
            return self._last
        self._last = [self._hit(score) for score in range(k, 0, -1)]
        return self._last

    def _hit(self, score: int) -> Hit:
        letters = "abcdefghijklmnopqrstuvwxyz "
        size = self._random.randint(1, self._longest)
        text = "".join(self._random.choice(letters) for _ in range(size))
        return Hit(f"p{score}", "d", "t", text, float(score))
