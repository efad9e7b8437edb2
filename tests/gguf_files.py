"""GGUF files for tests: tiny models as llama.cpp's conversion writes them."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GemmaTokenizer,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

VOCABULARY = 300
TEMPLATE = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 160,
}
_CONTROL, _UNUSED, _NORMAL = 3, 5, 1


def tiny_llama(**changes: Any) -> PreTrainedModel:
    """A seeded Llama with grouped heads, whose output is not its embedding."""
    shape = _SHAPE | {"num_hidden_layers": 2, "bos_token_id": 0, "eos_token_id": 1}
    return _seeded(LlamaConfig(**shape | {"rope_theta": 5e4} | changes))


def tiny_gemma() -> PreTrainedModel:
    """A seeded Gemma 3 with one full layer in six, whose norms are not ones."""
    shape = _SHAPE | {"num_hidden_layers": 6, "sliding_window": 24, "query_pre_attn_scalar": 256}
    return _seeded(Gemma3TextConfig(**shape, bos_token_id=2, eos_token_id=1, pad_token_id=0))


def _seeded(config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(weight.data, 0.5, 0.2)
    model.eval()
    return model


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with a few merges, no BOS in front, and a chat template; digits are apart."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "a"), ("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ġ", "Ġ"), ("1", "2")]
    tokens = ["<s>", "</s>", *alphabet, *(left + right for left, right in merges)]
    tokens += [f"[PAD{number}]" for number in range(len(tokens), VOCABULARY)]
    bpe = Tokenizer(models.BPE(vocab={one: i for i, one in enumerate(tokens)}, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
    )
    return tokenizer


def gemma_tokenizer() -> GemmaTokenizer:
    """Gemma's own, with letters, a few merges, and BOS in front."""
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "a")]
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    tokens = [*specials, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += ["▁", *"abcdefghijklmnopqrst", *(left + right for left, right in merges)]
    tokens += [f"[PAD{number}]" for number in range(len(tokens), VOCABULARY)]
    build: Any = GemmaTokenizer  # whose merges are said to be strings
    tokenizer: GemmaTokenizer = build(vocab={one: i for i, one in enumerate(tokens)}, merges=merges)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 2)]
    )
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken(one, special=True) for one in specials]}
    )
    return tokenizer


def words_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The metadata that llama.cpp's conversion writes."""
    config: Any = model.config
    own = {
        "context_length": config.max_position_embeddings,
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope_parameters.get("full_attention", config.rope_parameters)[
            "rope_theta"
        ],
        "rope.dimension_count": config.head_dim,
    }
    if config.model_type == "gemma3_text":
        own |= {"attention.sliding_window": config.sliding_window}
        own |= {"attention.key_length": config.head_dim}
    arch = _architecture(model)
    return {
        "general.architecture": arch,
        **{f"{arch}.{key}": value for key, value in own.items()},
        **_tokenizer_words(tokenizer),
    }


def _tokenizer_words(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    tokens = tokenizer.convert_ids_to_tokens(list(range(VOCABULARY)))
    special = set(tokenizer.all_special_tokens)
    kinds = [_CONTROL if one in special else _NORMAL for one in tokens]
    kinds = [
        _UNUSED if one.startswith("[PAD") else kind for one, kind in zip(tokens, kinds, strict=True)
    ]
    words: dict[str, Any] = {"tokens": tokens, "token_type": kinds}
    words |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    if isinstance(tokenizer, GemmaTokenizer):
        words |= {
            "model": "llama",
            "pre": "default",
            "scores": [-float(i) for i in range(VOCABULARY)],
        }
        words |= {"add_bos_token": True, "add_space_prefix": False, "unknown_token_id": 3}
    else:
        merges = ["Ġ a", "t h", "th e", "Ġ the", "Ġ Ġ", "1 2"]
        words |= {"model": "gpt2", "pre": "smollm", "merges": merges, "add_bos_token": False}
    found = {f"tokenizer.ggml.{key}": value for key, value in words.items()}
    if tokenizer.chat_template is not None:
        found["tokenizer.chat_template"] = tokenizer.chat_template
    return found


def _architecture(model: PreTrainedModel) -> str:
    return str(model.config.model_type).removesuffix("_text")


def weights_of(model: PreTrainedModel) -> dict[str, np.ndarray[Any, Any]]:
    """Weights by their GGUF names: rows of queries and keys permuted, norms of Gemma plus one."""
    config: Any = model.config
    kind = {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}[_architecture(model)]
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    found = {}
    for name, weight in model.named_parameters():
        renamed = names.get_name(name.removesuffix(".weight"))
        assert renamed is not None, name
        values = weight.detach().numpy()
        if _architecture(model) == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_" in name else config.num_key_value_heads
            halves = values.reshape(heads, 2, values.shape[0] // heads // 2, -1)
            values = halves.swapaxes(1, 2).reshape(values.shape)
        if _architecture(model) == "gemma3" and "norm" in name:
            values = values + 1
        found[f"{renamed}.weight"] = np.ascontiguousarray(values)
    return found


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    words: dict[str, Any] | None = None,
    without: Collection[str] = (),
    more: dict[str, np.ndarray[Any, Any]] | None = None,
    quantized: bool = False,
) -> Path:
    """Write a model as a GGUF file in float32.

    Args:
        words: metadata in place of the model's own; None as a value: left out.
        without: weights to leave out.
        more: weights to add.
        quantized: matrices in Q8_0.
    """
    metadata = words_of(model, tokenizer) | (words or {})
    writer = gguf.GGUFWriter(path, metadata["general.architecture"])
    for key, value in metadata.items():
        if value is not None and key != "general.architecture":
            _add(writer, key, value)
    for name, values in (weights_of(model) | (more or {})).items():
        if name in without:
            continue
        if quantized and values.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
