"""Readers with random weights in the shapes of known models: run time needs no trained weights."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from flashback.benchmark.bench_settings import SHAPES
from flashback.errors import SettingsError
from flashback.readers.load import MINI, load_reader, window_of
from flashback.readers.placement import Placement, choose_placement
from flashback.readers.reader import Reader
from flashback.readers.shipped import shipped


def shaped_reader(
    name: str, *, device: str = "auto", dtype: str = "auto", real_text: bool = False
) -> Reader:
    """A random-weight reader by the name of a shape, or a real one by its folder or name.

    A shape's name is no folder's, even if one is called so: that is `./NAME`.

    Args:
        real_text: give random weights the tokenizer of `flashback-mini`, so that they read texts.

    Raises:
        SettingsError: neither a known shape nor a folder.
        ReaderError: the folder holds no usable model.
    """
    if name not in SHAPES:
        if name == MINI or Path(name).is_dir():
            return load_reader(name, device=device, dtype=dtype)
        known = ", ".join(SHAPES)
        raise SettingsError(f"--shape={name!r}: expected a model's folder or one of {known}")
    tokenizer = AutoTokenizer.from_pretrained(shipped(MINI)) if real_text else None
    return random_reader(name, config_of(name), choose_placement(device, dtype), tokenizer)


def config_of(name: str) -> Any:
    """The configuration of a known shape."""
    return AutoConfig.for_model(**SHAPES[name])


def random_reader(
    name: str,
    config: Any,
    placement: Placement,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Reader:
    """A model of this configuration with seeded random weights.

    Args:
        tokenizer: one word per token if None.
    """
    torch.manual_seed(0)
    with placement.device:
        model = AutoModelForCausalLM.from_config(config, dtype=placement.dtype).eval()
    tokenizer = tokenizer or _one_word_per_token(config.vocab_size)
    window, reason = window_of(config, tokenizer)
    return Reader(
        name=name,
        tokenizer=tokenizer,
        window=window,
        window_reason=reason,
        model=model,
        placement=placement,
    )


def _one_word_per_token(size: int) -> PreTrainedTokenizerFast:
    vocabulary = {word(i): i for i in range(size)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=word(0)))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def word(token: int) -> str:
    """The word of a token in the vocabulary of a random reader."""
    return f"w{token}"
