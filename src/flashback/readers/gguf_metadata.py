"""The metadata of a GGUF file as configuration and tokenizer of transformers.

What transformers makes of a file is compared with the file's metadata. A value that can simply be
taken over is; any other difference is refused, or said in a warning.
"""

import json
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from tokenizers import Regex, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import AutoConfig, PreTrainedTokenizerFast
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
from transformers.integrations.gguf.gguf_tokenizer_mapping import (
    GGUF_PRE_TOKENIZER_SPLITS,
    convert_gguf_tokenizer,
    get_gguf_tokenizer,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from flashback.errors import FlashBackWarning, ReaderError
from flashback.readers.gguf import LLAMA3, GgufFile

# How llama.cpp reads the name of a pre-tokenizer (`tokenizer.ggml.pre`) that transformers does not.
_LIKE_GPT2 = {
    *("gpt-2", "phi-2", "mpt", "olmo"),
    *("jais", "trillion", "granite-docling", "gigachat"),
    *("a.x-4.0", "mellum", "modern-bert", "jina-es"),
    *("jina-de", "jina-v1-en", "jina-v2-es", "jina-v2-de"),
    *("jina-v2-code", "roberta-bpe"),
}
_DIGITS_APART = {
    *("smollm", "starcoder", "refact", "command-r"),
    *("codeshell", "exaone", "minerva-7b"),
}
_LIKE_QWEN2 = {"stablelm2", "hunyuan"}

_WITHOUT_EFFECT = {
    *("vocab_size", "feed_forward_length", "block_count", "embedding_length"),
    *("tensor_data_layout", "causal", "rope.dimension_count", "attention.key_length"),
    *(
        "attention.value_length",
        "leading_dense_block_count",
        "attention.head_count_kv",
        "rope.scaling.finetuned",
    ),
    *(
        "attention.max_alibi_bias",
        "use_parallel_residual",
        "expert_feed_forward_length",
        "interleave_moe_layer_step",
    ),
}
"""Words that shapes of weights check, or that change nothing."""
_SAME_IN_CONFIG = {
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "logit_scale": "logit_scale",
}
_TAKEN = {
    *("context_length", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor"),
    *("rope.scaling.original_context_length",),
}
"""Words that are put into the configuration here."""
_WINDOW_TAKEN = {"mistral", "phi3", "starcoder2"}
"""Kinds whose sliding window transformers does not take from the file."""
_SCALED_BY_HIDDEN_SIZE = {("gemma2", 46), ("gemma3", 62)}
"""The 27B models, which scale their scores by hidden size / heads; the file does not say so."""


# The configuration


def gguf_config(file: GgufFile) -> Any:
    """The configuration that transformers makes of a file, with the file's own values in it.

    Raises:
        ReaderError: the file says something that the configuration cannot.
    """
    config: Any = AutoConfig.from_pretrained(file.path.parent, gguf_file=file.path.name)
    for key in ("bos", "eos"):
        setattr(config, f"{key}_token_id", _token(file, f"{key}_token_id"))
    if (size := file.word("context_length")) is not None:
        config.max_position_embeddings = int(size)
    if config.model_type in _WINDOW_TAKEN:
        config.sliding_window = file.word("attention.sliding_window")
    _take_rotation(file, config)
    if (file.architecture, file.word("block_count")) in _SCALED_BY_HIDDEN_SIZE:
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads
    if different := list(_different(file, config)):
        raise ReaderError(f"model {file.name}: transformers reads it wrongly: {different[0]}")
    if unread := _unread(file):
        warnings.warn(
            f"model {file.name}: transformers does not read {', '.join(unread)}; what it computes "
            "may differ from the file's own model",
            FlashBackWarning,
            stacklevel=2,
        )
    return config


def _token(file: GgufFile, key: str) -> int | None:
    """An id that the file names.

    Raises:
        ReaderError: the file has fewer tokens.
    """
    found = file.token_word(key)
    if found is not None and found >= file.vocabulary:
        raise ReaderError(
            f"model {file.name}: its {key} is {found}, but it lists {file.vocabulary} tokens; the "
            "file is damaged"
        )
    return None if found is None else int(found)


def _take_rotation(file: GgufFile, config: Any) -> None:
    """The base, scaling and factors of rotary positions, as the file gives them."""
    rope = _rotation(config)
    if (base := file.word("rope.freq_base")) is not None and rope:
        rope["rope_theta"] = float(base)
    kind = file.word("rope.scaling.type")
    if kind in ("linear", "yarn") and file.word("rope.scaling.factor"):
        rope |= {"rope_type": kind, "factor": float(file.word("rope.scaling.factor"))}
        if (original := file.word("rope.scaling.original_context_length")) is not None:
            rope["original_max_position_embeddings"] = int(original)
    elif kind not in (None, "none", rope.get("rope_type")):
        raise ReaderError(
            f"model {file.name}: its rotary positions are scaled by {kind!r}, which cannot be read "
            "from a GGUF file; use the model's safetensors"
        )
    if any(name.startswith("rope_factors_") for name in file.tensors):
        raise ReaderError(
            f"model {file.name}: its rotary positions have long and short factors, which "
            "transformers does not read from a GGUF file; use the model's safetensors"
        )
    if "rope_freqs.weight" in file.tensors:
        _take_factors(file, config, rope)


def _rotation(config: Any) -> dict[str, Any]:
    """The rotary parameters that a file's metadata are about: those of full attention."""
    rope = getattr(config, "rope_parameters", None) or {}
    found: dict[str, Any] = rope.get("full_attention", rope)
    return found


def _take_factors(file: GgufFile, config: Any, rope: dict[str, Any]) -> None:
    """Llama 3's scaling, which the file has as a factor for each frequency.

    Raises:
        ReaderError: the factors are not Llama 3's.
    """
    from gguf import GGUFReader

    tensor = next(one for one in GGUFReader(file.path).tensors if one.name == "rope_freqs.weight")
    wanted = torch.tensor(tensor.data, dtype=torch.float32)
    count = wanted.numel()
    rope |= {
        "rope_type": "llama3",
        "factor": float(wanted.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    plain = rope["rope_theta"] ** -(torch.arange(count) / count)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    if scaled.shape != wanted.shape or not torch.allclose(plain / scaled, wanted, rtol=1e-3):
        raise ReaderError(
            f"model {file.name}: its rotary positions have factors (rope_freqs.weight) that are "
            "not Llama 3's; use the model's safetensors"
        )


def _different(file: GgufFile, config: Any) -> Iterator[str]:
    """What the file says otherwise than the configuration does."""
    for key, member in _SAME_IN_CONFIG.items():
        found, said = getattr(config, member, None), file.word(key)
        if said is not None and said != found:
            yield f"{key} is {said}, but {member} {found}"
    rotated, rope = file.word("rope.dimension_count"), _rotation(config)
    if rotated is not None and rope:
        heads = config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        found = getattr(config, "rotary_dim", size * rope.get("partial_rotary_factor", 1))
        if rotated != int(found):
            yield f"{rotated} values of a head are rotated, but {int(found)} by the configuration"


def _unread(file: GgufFile) -> list[str]:
    """Words about the model that nobody reads and that may change what it computes."""
    plain = file.architecture.replace("-", "").replace("_", "")
    spelled = next((one for one in GGUF_CONFIG_MAPPING if one.replace("_", "") == plain), "")
    known: Any = GGUF_CONFIG_MAPPING.get(spelled, ())
    read = {*known, *_TAKEN, *_SAME_IN_CONFIG, *_WITHOUT_EFFECT}
    prefix = f"{file.architecture}."
    own = [key.removeprefix(prefix) for key in file.metadata if key.startswith(prefix)]
    return [key for key in own if key not in read and spelled]


# The tokenizer


def gguf_tokenizer(file: GgufFile) -> Tokenizer:
    """The tokenizer of a file, with its BOS, EOS and chat template.

    transformers builds it; its pre-tokenizer is ours where transformers does not know the file's.

    Raises:
        ReaderError: it gives special tokens other ids than the file does.
    """
    architecture, parts, settings = get_gguf_tokenizer(str(file.path))
    backend, more = convert_gguf_tokenizer(architecture, parts)
    if backend.get_vocab_size() > file.vocabulary:
        backend = _without_strangers(backend, file.vocabulary)
    if file.token_word("model") == "gpt2":
        _split_as_trained(file, backend)
    elif file.token_word("add_space_prefix") is False and "Metaspace" in str(backend.pre_tokenizer):
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, **settings | more | {"add_bos_token": file.adds_bos}
    )
    template = file.metadata.get("tokenizer.chat_template")
    if template is not None:
        tokenizer.chat_template = template
    _check_tokens(file, tokenizer)
    return tokenizer


def _without_strangers(backend: Any, vocabulary: int) -> Any:
    """A tokenizer without tokens behind its vocabulary: GPT-2's `<|endoftext|>`, added to all."""
    record = json.loads(backend.to_str())
    record["added_tokens"] = [one for one in record["added_tokens"] if one["id"] < vocabulary]
    return Backend.from_str(json.dumps(record))


def _split_as_trained(file: GgufFile, backend: Any) -> None:
    """Split text into words as the vocabulary was learned, where transformers does otherwise."""
    kind = file.token_word("pre")
    if kind in LLAMA3:
        backend.model.ignore_merges = True
    if kind in _DIGITS_APART:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    elif kind in _LIKE_QWEN2:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(
                    Regex(GGUF_PRE_TOKENIZER_SPLITS["qwen2"]), behavior="isolated"
                ),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    elif kind not in {*GGUF_PRE_TOKENIZER_SPLITS, *_LIKE_GPT2}:
        warnings.warn(
            f"model {file.name}: its tokenizer splits texts as {kind!r} does, which is not known "
            "here; some texts may get other ids than the model was trained with",
            FlashBackWarning,
            stacklevel=2,
        )


def _check_tokens(file: GgufFile, tokenizer: Tokenizer) -> None:
    for kind in ("bos", "eos"):
        wanted, found = _token(file, f"{kind}_token_id"), getattr(tokenizer, f"{kind}_token_id")
        if wanted != found:
            raise ReaderError(
                f"model {file.name}: its {kind.upper()} is token {wanted}, but transformers' "
                f"tokenizer gives it the id {found}; use the model's safetensors"
            )
    if len(tokenizer) > file.vocabulary:
        raise ReaderError(
            f"model {file.name}: it lists {file.vocabulary} tokens, but transformers' tokenizer "
            f"has {len(tokenizer)}; use the model's safetensors"
        )
