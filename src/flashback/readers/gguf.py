"""A model in a GGUF file, the format of llama.cpp: found, checked, its weights read.

Knows nothing of where other models are found.
"""

import importlib
import re
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from transformers import GgufConfig, PreTrainedModel
from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS
from transformers.integrations.gguf.reader import read_gguf_metadata
from transformers.utils.import_utils import is_gguf_available

from flashback.errors import ReaderError

MAGIC = b"GGUF"
_CONVERSION = "transformers.modeling_gguf_pytorch_utils"
_OLDEST = "0.17"
"""Of the package `gguf`, with which transformers reads most architectures."""
_PIECE = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
_PART = re.compile(r"\.gguf\.part\w*$", re.IGNORECASE)


_NO_WEIGHTS = {"rope_freqs.weight", "output.weight"}
"""The first is taken into the configuration; the second may repeat the embedding."""
LLAMA3 = {
    *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1"),
    *("pixtral", "midm-2.0", "lfm2", "tekken"),
}
"""Pre-tokenizers with BOS by default; with them a word of the vocabulary needs no merges."""


_ENDS_OF_TURNS = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>"),
    *("<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "<｜end▁of▁sentence｜>", "<end_of_utterance>"),
)
"""By these names llama.cpp, too, finds the ends of turns that a file does not name."""
_ENDS_OF_ANSWERS = {"<|return|>", "<|call|>"}
"""With them (gpt-oss) `<|end|>` ends only a part of an answer."""


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

    @property
    def is_float32(self) -> bool:
        """Whether all weights are in float32, as far as the file says."""
        return int(self.metadata.get("general.file_type", 0)) == 0

    @cached_property
    def adds_bos(self) -> bool:
        """Whether texts begin with BOS: the file's value, else what llama.cpp does without one."""
        given = self.token_word("add_bos_token")
        if given is None:
            return self.token_word("model") == "llama" or self.token_word("pre") in LLAMA3
        return bool(given)

    @property
    def ends(self) -> list[int]:
        """The ids that end a text or a turn: those that the file names, or known by their names."""
        words = {kind: self.token_word(f"{kind}_token_id") for kind in ("eos", "eot", "eom")}
        named = [int(word) for word in words.values() if word is not None]
        return list(dict.fromkeys(named if words["eot"] is not None else named + self._known_ends))

    @cached_property
    def _known_ends(self) -> list[int]:
        """The ids of tokens that end turns in whatever vocabulary they are."""
        key = "tokenizer.ggml.tokens"
        tokens = read_gguf_metadata(str(self.path), (key,))[0].get(key, [])
        names = set(_ENDS_OF_TURNS)
        if not _ENDS_OF_ANSWERS.isdisjoint(tokens):
            names = names - {"<|end|>"} | _ENDS_OF_ANSWERS
        return [number for number, token in enumerate(tokens) if token in names]


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
        f"`llama-gguf-split --merge {path.name} {whole}`"
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
            "pip install '.[gguf]' in a clone of the project"
        )


# The weights


def gguf_arguments(file: GgufFile) -> dict[str, Any]:
    """What `from_pretrained` is told, so that it reads the file's weights, dequantized."""
    from transformers.utils import logging

    conversion: Any = importlib.import_module(_CONVERSION)
    conversion.tqdm = logging.tqdm  # its bar obeys the switch of transformers' others
    _keep_name_maps()
    return {
        "gguf_file": file.path.name,
        "quantization_config": GgufConfig(dequantize=True),
    }


def _keep_name_maps() -> None:
    """Let transformers make the table of a family's names once, not for every module of a model.

    That takes 11 of the 18 seconds in which SmolLM2 is loaded.
    """
    names: Any = importlib.import_module("gguf")
    if not hasattr(names.get_tensor_name_map, "cache_info"):
        names.get_tensor_name_map = cache(names.get_tensor_name_map)


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
    conversion: Any = importlib.import_module(_CONVERSION)

    if file.architecture in GGUF_CONFIG_ARCHS or file.word("expert_count"):
        return []
    kind = conversion.TENSOR_PROCESSORS.get(file.architecture, conversion.TensorProcessor)
    known = conversion.get_gguf_hf_weights_map(model, kind(config=model.config.to_dict()))
    return [name for name in file.tensors if name not in known and name not in _NO_WEIGHTS]
