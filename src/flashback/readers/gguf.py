"""A model in a GGUF file, the format of llama.cpp: found, checked, and read by transformers.

What transformers makes of a file is compared with the file's own words (its metadata). A word that
can simply be taken is; any other difference is refused, or said in a warning. Knows nothing of
where other models are found.
"""

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, pre_tokenizers
from transformers import AutoConfig, GgufConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.utils import is_gguf_available

from flashback.errors import FlashBackWarning, ReaderError

MAGIC = b"GGUF"
_OLDEST = "0.17"
"""Of the package `gguf`, with which transformers reads most architectures."""
_PIECE = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
_PART = re.compile(r"\.gguf\.part\w*$", re.IGNORECASE)

# How llama.cpp reads the name of a pre-tokenizer (`tokenizer.ggml.pre`) that transformers does not.
_LIKE_GPT2 = frozenset(
    "gpt-2 phi-2 mpt olmo jais trillion granite-docling gigachat a.x-4.0 mellum modern-bert "
    "jina-es jina-de jina-v1-en jina-v2-es jina-v2-de jina-v2-code roberta-bpe".split()
)
_DIGITS_APART = frozenset("smollm starcoder refact command-r codeshell exaone minerva-7b".split())
_LIKE_QWEN2 = frozenset({"stablelm2", "hunyuan", "qwen2"})
_LLAMA3 = frozenset(
    "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 tekken".split()
)
"""BOS unless the file says otherwise, and a word of the vocabulary is one token without merges."""

_WITHOUT_EFFECT = frozenset(
    "vocab_size feed_forward_length block_count embedding_length tensor_data_layout causal "
    "rope.dimension_count attention.key_length attention.value_length leading_dense_block_count "
    "attention.head_count_kv rope.scaling.finetuned attention.max_alibi_bias "
    "use_parallel_residual expert_feed_forward_length interleave_moe_layer_step".split()
)
"""Words that shapes of weights check, or that change nothing."""
_SAME_IN_CONFIG = {
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "logit_scale": "logit_scale",
}
_TAKEN = frozenset(
    "context_length rope.freq_base rope.scaling.type rope.scaling.factor "
    "rope.scaling.original_context_length".split()
)
"""Words that are put into the configuration here."""
_WINDOW_TAKEN = {"mistral", "phi3", "starcoder2"}
"""Kinds whose sliding window transformers does not take from the file."""
_NO_WEIGHTS = {"rope_freqs.weight", "output.weight"}
"""The first is taken into the configuration; the second may repeat the embedding."""
_SCALED_BY_HIDDEN_SIZE = {("gemma2", 46), ("gemma3", 62)}
"""The 27B models, which scale their scores by hidden size / heads; the file does not say so."""


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file that can be read, and its words."""

    name: str
    """As users name it."""
    path: Path
    metadata: dict[str, Any]
    tensors: tuple[str, ...]
    """The names of its weights."""

    @property
    def architecture(self) -> str:
        """As the file names it."""
        return str(self.metadata["general.architecture"])

    def word(self, key: str) -> Any:
        """What the file says of its model; None: nothing."""
        return self.metadata.get(f"{self.architecture}.{key}")

    def token_word(self, key: str) -> Any:
        """What the file says of its tokenizer; None: nothing."""
        return self.metadata.get(f"tokenizer.ggml.{key}")

    @property
    def vocabulary(self) -> int:
        """How many tokens the file lists."""
        tokens = self.token_word("tokens")
        return len(tokens) if isinstance(tokens, list) else int(tokens or 0)

    @cached_property
    def adds_bos(self) -> bool:
        """Whether texts begin with BOS: the file's word, else what llama.cpp does without one."""
        given = self.token_word("add_bos_token")
        if given is None:
            return self.token_word("model") == "llama" or self.token_word("pre") in _LLAMA3
        return bool(given)

    @property
    def ends(self) -> list[int]:
        """The ids that end a text or a turn."""
        words = (self.token_word(f"{kind}_token_id") for kind in ("eos", "eot", "eom"))
        return list(dict.fromkeys(int(word) for word in words if word is not None))


def find_gguf(path: Path, name: str) -> Path | None:
    """The GGUF file that a path means: itself, or the only one in a folder; None: there is none.

    Raises:
        ReaderError: it is a piece of a split file, or one of several in its folder.
    """
    if path.is_dir():
        return _only_one(path, name)
    if _PART.search(path.name):
        whole = path.name[: path.name.lower().rindex(".gguf") + len(".gguf")]
        raise ReaderError(
            f"model {name}: this is one part of a cut file; join all of them, in order: "
            f"cat {whole}.part* > {whole}"
        )
    if not path.is_file():
        return None
    if _PIECE.search(path.name):
        _refuse_piece(path, name)
    return path if path.suffix.lower() == ".gguf" or _begins(path) == MAGIC else None


def _only_one(folder: Path, name: str) -> Path | None:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    found = [path for path in files if path.suffix.lower() == ".gguf"]
    pieces = [path for path in found if _PIECE.search(path.name)]
    if pieces and len(pieces) == len(found):
        _refuse_piece(pieces[0], name)
    if len(found) > 1:
        listed = ", ".join(path.name for path in found)
        raise ReaderError(
            f"model {name}: the folder has {len(found)} GGUF files; name one: {listed}"
        )
    parts = [path for path in files if _PART.search(path.name)]
    if parts and not found:
        find_gguf(parts[0], name)  # refuses it
    return found[0] if found else None


def _refuse_piece(path: Path, name: str) -> None:
    whole = _PIECE.sub(".gguf", path.name)
    raise ReaderError(
        f"model {name}: {path.name} is one piece of a split file; join all of them: "
        f"llama-gguf-split --merge {path.name} {whole}"
    )


def _begins(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(len(MAGIC))


def open_gguf(path: Path, name: str) -> GgufFile:
    """Check a file's first bytes, its architecture and what is needed to read it.

    Raises:
        ReaderError: it is no GGUF file, is damaged, or is of an architecture that transformers does
            not convert; or the package `gguf` is missing.
    """
    from transformers.integrations.gguf import read_gguf_metadata

    if (found := _begins(path)) != MAGIC:
        raise ReaderError(
            f"model {name}: {path.name} begins with {found!r}, not with {MAGIC!r}; it is no GGUF "
            "file, or its download was cut off"
        )
    try:
        metadata, tensors = read_gguf_metadata(str(path))
    except Exception as error:  # of a damaged header
        kind = type(error).__name__
        raise ReaderError(
            f"model {name}: the header of {path.name} is damaged ({kind}: {error})"
        ) from error
    file = GgufFile(name, path, metadata, tensors)
    _check_architecture(file)
    return file


def _check_architecture(file: GgufFile) -> None:
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    known = {*GGUF_CONFIG_ARCHS, *GGUF_SUPPORTED_ARCHITECTURES} - {"general", "tokenizer"}
    # As the files spell those that transformers spells differently.
    known |= {"qwen2moe", "qwen3moe", "gpt-oss", "minimax-m2"}
    if file.architecture not in known:
        raise ReaderError(
            f"model {file.name}: transformers converts no GGUF file of architecture "
            f"{file.architecture!r}; it does of {', '.join(sorted(known))}"
        )
    if file.architecture not in GGUF_CONFIG_ARCHS:
        check_package(file.name)


def check_package(name: str) -> None:
    """Refuse, before a file is read, if the package that reads it is missing.

    Raises:
        ReaderError: it is, or it is too old.
    """
    if not is_gguf_available(_OLDEST):
        raise ReaderError(
            f"model {name}: reading GGUF files needs the package gguf {_OLDEST} or newer; "
            "pip install 'flashback-ralm[gguf]'"
        )


# The configuration


def gguf_config(file: GgufFile) -> Any:
    """The configuration that transformers makes of a file, with the file's own words in it.

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
    """The rotary parameters that a file's words are about: those of full attention."""
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
        **{"rope_type": "llama3", "factor": float(wanted.max())},
        **{"low_freq_factor": 1.0, "high_freq_factor": 4.0},
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
            yield f"{rotated} values of each head are rotated, but {int(found)} by the configuration"


def _unread(file: GgufFile) -> list[str]:
    """Words about the model that nobody reads and that may change what it computes."""
    from transformers.integrations import GGUF_CONFIG_MAPPING

    plain = file.architecture.replace("-", "").replace("_", "")
    spelled = next((one for one in GGUF_CONFIG_MAPPING if one.replace("_", "") == plain), "")
    read = {*GGUF_CONFIG_MAPPING.get(spelled, ()), *_TAKEN, *_SAME_IN_CONFIG, *_WITHOUT_EFFECT}
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
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

    architecture, parts, settings = get_gguf_tokenizer(str(file.path))
    backend, more = convert_gguf_tokenizer(architecture, parts)
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


def _split_as_trained(file: GgufFile, backend: Any) -> None:
    """Split text into words as the vocabulary was learned, where transformers does otherwise."""
    from transformers.integrations.gguf import gguf_tokenizer_mapping as mapping

    kind = file.token_word("pre")
    if kind in _LLAMA3:
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
                    Regex(mapping.GGUF_PRE_TOKENIZER_SPLITS["qwen2"]), behavior="isolated"
                ),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    elif kind not in {*mapping.GGUF_PRE_TOKENIZER_SPLITS, *_LIKE_GPT2}:
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


# The weights


def gguf_arguments(file: GgufFile) -> dict[str, Any]:
    """What `from_pretrained` is told, so that it reads the file's weights, dequantized."""
    from transformers import modeling_gguf_pytorch_utils as conversion
    from transformers.utils import logging

    setattr(conversion, "tqdm", logging.tqdm)  # its bar obeys the switch of transformers' others
    return {
        "gguf_file": file.path.name,
        "quantization_config": GgufConfig(dequantize=True),
    }


def finish_gguf(file: GgufFile, model: PreTrainedModel) -> None:
    """Check that all weights of the file are in the model, and give it the file's EOS.

    Raises:
        ReaderError: some are not.
    """
    if unread := _unread_weights(file, model):
        raise ReaderError(
            f"model {file.name}: transformers leaves out {len(unread)} of its weights, such as "
            f"{unread[0]}; use the model's safetensors"
        )
    model.name_or_path = str(file.path)
    if model.generation_config is not None and file.ends:
        ends = file.ends
        model.generation_config.eos_token_id = ends[0] if len(ends) == 1 else ends


def _unread_weights(file: GgufFile, model: PreTrainedModel) -> list[str]:
    """Weights that belong to none of the model's; those of experts are not looked at."""
    from transformers import modeling_gguf_pytorch_utils as conversion
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS

    if file.architecture in GGUF_CONFIG_ARCHS or file.word("expert_count"):
        return []
    kind = conversion.TENSOR_PROCESSORS.get(file.architecture, conversion.TensorProcessor)
    known = conversion.get_gguf_hf_weights_map(model, kind(config=model.config.to_dict()))
    return [name for name in file.tensors if name not in known and name not in _NO_WEIGHTS]
