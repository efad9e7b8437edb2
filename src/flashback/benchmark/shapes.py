"""Readers with random weights in the shapes of known models: run time needs no trained weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from flashback.errors import SettingsError
from flashback.readers.load import MINI, load_reader, shipped, window_of
from flashback.readers.placement import Placement, choose_placement
from flashback.readers.reader import Reader

SHAPES: dict[str, Callable[[], Any]] = {
    "gpt2": GPT2Config,
    "gpt2-6x512": lambda: GPT2Config(n_layer=6, n_embd=512, n_head=8),
    "opt-125m": OPTConfig,
    "opt-1.3b": lambda: OPTConfig(
        hidden_size=2048,
        word_embed_proj_dim=2048,
        ffn_dim=8192,
        num_hidden_layers=24,
        num_attention_heads=32,
    ),
    "opt-6.7b": lambda: OPTConfig(
        hidden_size=4096,
        word_embed_proj_dim=4096,
        ffn_dim=16384,
        num_hidden_layers=32,
        num_attention_heads=32,
    ),
    "llama-2-7b": lambda: LlamaConfig(max_position_embeddings=4096),
    "llama-2-7b-16k": lambda: LlamaConfig(max_position_embeddings=16384 + 512),
    "qwen3-0.6b": lambda: Qwen3Config(
        vocab_size=151936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40960,
        tie_word_embeddings=True,
    ),
}


def shaped_reader(
    name: str, *, device: str = "auto", dtype: str = "auto", real_text: bool = False
) -> Reader:
    """A random-weight reader by the name of a shape, or a real one by its folder or name.

    Args:
        real_text: give random weights the tokenizer of `flashback-mini`, so that they read texts.

    Raises:
        SettingsError: neither a known shape nor a folder.
        ReaderError: the folder holds no usable model.
    """
    if name == MINI or Path(name).is_dir():
        return load_reader(name, device=device, dtype=dtype)
    if name not in SHAPES:
        known = ", ".join(SHAPES)
        raise SettingsError(f"--shape {name}: expected a model's folder or one of {known}")
    tokenizer = AutoTokenizer.from_pretrained(shipped(MINI)) if real_text else None
    return random_reader(name, SHAPES[name](), choose_placement(device, dtype), tokenizer)


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
    """The word that a random reader's tokenizer takes for this id."""
    return f"w{token}"
