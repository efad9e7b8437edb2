"""Tiny seeded models in the folder format of sentence-transformers."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
)

WORDS = (
    *("the", "a", "cat", "dog", "bird", "fish", "sleeps", "runs", "sings", "says", "on", "mat"),
    *("roof", "nothing", "about", "and", "at", "cuckoo", "warm", "quiet", "barks", "lizard"),
    *("doctor", "it", "is", "of"),
)


def _tokenizer() -> PreTrainedTokenizerFast:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: at for at, word in enumerate([*special, *WORDS])}
    raw = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
    )


def _config(**more: Any) -> BertConfig:
    return BertConfig(
        vocab_size=len(WORDS) + 4,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        **more,
    )


def save_encoder(folder: Path, *, seed: int = 0, prompts: dict[str, str] | None = None) -> Path:
    """A bi-encoder: a BERT of one layer, and the mean of its states."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    plain = folder / "plain"
    torch.manual_seed(seed)
    BertModel(_config()).save_pretrained(plain)
    _tokenizer().save_pretrained(plain)
    reader = Transformer(str(plain))
    model = SentenceTransformer(modules=[reader, Pooling(16)], prompts=prompts, device="cpu")
    model.save(str(folder), create_model_card=False)
    return folder


def save_cross_encoder(folder: Path, *, seed: int = 0, labels: int = 1) -> Path:
    """A cross-encoder: a BERT of one layer that gives a pair of texts one number, or several."""
    torch.manual_seed(seed)
    BertForSequenceClassification(_config(num_labels=labels)).save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder
