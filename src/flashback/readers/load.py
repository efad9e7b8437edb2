"""A reader from a hub name, a folder, or the package itself: found, checked, loaded.

Knows how models are found. Knows nothing of adapters or retrieval.
"""

import contextlib
import os
import re
import textwrap
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from flashback.engines.support import rotations_by_length
from flashback.errors import ReaderError, SettingsError, UnsupportedReader
from flashback.readers.placement import Placement, choose_placement
from flashback.readers.reader import Reader

MINI = "flashback-mini"
"""The reader that ships with the package."""
_DEFAULT_WINDOW = 2048
_HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?", re.ASCII)


def load_reader(
    name: str = MINI,
    *,
    device: str = "auto",
    dtype: str = "auto",
    window: int | None = None,
    trust_remote_code: bool = False,
) -> Reader:
    """Load a reader by the name of a hub model, a folder, or `flashback-mini`.

    Args:
        name: what to load; safetensors, or `.bin` files read with weights-only loading.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        dtype: `auto`, `float32` or `bfloat16`.
        window: use fewer positions than the model has.
        trust_remote_code: run code from the model's folder; never do this with a stranger's model.

    Raises:
        ReaderError: the model is missing, incomplete or not a decoder-only language model.
        SettingsError: a device, dtype or window that this model or machine does not have.
    """
    placement = choose_placement(device, dtype)
    path = _locate(name)
    with _readable(name, "configuration"):
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedReader(
            f"model {name} is an encoder-decoder ({config.model_type}); expected a decoder-only "
            "language model"
        )
    with _readable(name, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    size, reason = window_of(config, tokenizer)
    if window is not None:
        if not 1 <= window <= size:
            raise SettingsError(f"--window {window}: expected 1 to {size} ({reason})")
        size, reason = window, "as asked"
    model = _model(name, path, config, placement, trust_remote_code)
    return Reader(
        name=name,
        tokenizer=tokenizer,
        window=size,
        window_reason=reason,
        model=model,
        placement=placement,
    )


def _model(
    name: str, path: str, config: Any, placement: Placement, trust_remote_code: bool
) -> PreTrainedModel:
    with _readable(name, "weights"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=placement.dtype,
            trust_remote_code=trust_remote_code,
            ignore_mismatched_sizes=True,  # refused below, in one line
            output_loading_info=True,
        )
    model, report = loaded
    _check_weights(name, report)
    found: PreTrainedModel = model.to(placement.device).eval()
    return found


def shipped(name: str) -> Path:
    """The folder of a reader or adapter that ships with the package; it may not exist."""
    return Path(str(files("flashback") / "readers" / "weights" / name))


def _locate(name: str) -> str:
    if name == MINI:
        return str(shipped(MINI))
    path = Path(os.path.expanduser(name))  # a user who does not exist is no error here
    if name and path.is_dir():
        if not (path / "config.json").is_file():
            raise ReaderError(f"model {name}: the folder has no config.json; expected a model")
        return str(path)
    if path.exists() or not _HUB_NAME.fullmatch(name):
        found = "a file" if path.is_file() else "nothing"
        raise ReaderError(
            f"model {name or repr(name)}: found {found} there; expected a model's folder or the "
            "name of a hub model"
        )
    return name


@contextlib.contextmanager
def _readable(name: str, part: str) -> Iterator[None]:
    """Turn whatever transformers raises for a bad model into an error that names the bad part."""
    try:
        yield
    except Exception as error:
        found = textwrap.shorten(str(error) or "no reason given", 300, placeholder=" ...")
        kind = type(error).__name__
        is_folder = name == MINI or os.path.isdir(os.path.expanduser(name))
        where = "" if is_folder else "no such folder here, and as a hub model "
        raise ReaderError(
            f"model {name}: {where}its {part} cannot be loaded: {found} ({kind})"
        ) from error


def _check_weights(name: str, report: dict[str, Any]) -> None:
    """Refuse weights that transformers would replace by random ones."""
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
            f"model {name}: {len(mismatched)} weights do not fit its config.json, such as "
            f"{weight}: found {tuple(found)}, expected {tuple(expected)}"
        )


def window_of(config: Any, tokenizer: Tokenizer) -> tuple[int, str]:
    """The positions a model can use, and where that number comes from."""
    text = config.get_text_config()
    if changing := _changing_rotation(text):
        return changing
    size = getattr(text, "max_position_embeddings", None) or getattr(text, "seq_length", None)
    if size:
        return int(size), "the model's positions"
    if tokenizer.model_max_length < 1 << 24:
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
