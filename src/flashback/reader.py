"""The reader: a language model with its tokenizer, its window and its special tokens.

Knows how models are found, checked and placed. Knows nothing of retrieval.
"""

import contextlib
import os
import re
import textwrap
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from flashback.arrangement import Frame, Ids
from flashback.engines.cache import has_full_attention_only
from flashback.errors import ReaderError, SettingsError, UnsupportedReader
from flashback.settings import (
    DEFAULT_FRAME,
    DecodeKernel,
    FrameText,
    Marks,
    Pattern,
    Quantize,
)

if TYPE_CHECKING:
    from flashback.adapter import AdapterCard

MINI = "flashback-mini"
"""The reader that ships with the package."""
MARK_LEFT, MARK_RIGHT = "<MARK_L>", "<MARK_R>"
"""The paper's Marking Tokens, if the tokenizer has them."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_DEFAULT_WINDOW = 2048
_DEVICE = re.compile(r"cpu|mps|cuda(:\d{1,3})?")
_HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?", re.ASCII)


@dataclass(frozen=True)
class Placement:
    """Where and in which precision a model runs, and why."""

    device: torch.device
    dtype: torch.dtype
    reason: str
    quantize: Quantize = Quantize.NONE
    decode_kernel: DecodeKernel = DecodeKernel.PYTORCH

    @property
    def dtype_name(self) -> str:
        """As on the command line: `float32`, `bfloat16`."""
        return str(self.dtype).removeprefix("torch.")

    def __str__(self) -> str:
        int8 = ", int8 weights" if self.quantize is Quantize.INT8 else ""
        numba = ", decoding by numba" if self.decode_kernel is DecodeKernel.NUMBA else ""
        return f"{self.dtype_name} on {self.device} ({self.reason}){int8}{numba}"


def choose_placement(device: str = "auto", dtype: str = "auto") -> Placement:
    """Pick device and dtype: what was asked for, else the fastest device and its usual dtype.

    Raises:
        SettingsError: an unknown device or dtype, or a device this machine does not have.
    """
    devices = {
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
        "cpu": 1,
    }
    if device != "auto":
        _check_device(device, devices)
    if dtype != "auto" and dtype not in _DTYPES:
        raise SettingsError(f"--dtype {dtype}: expected auto, {' or '.join(_DTYPES)}")
    if device == "auto":
        device = next(name for name, count in devices.items() if count)
        reason = "no GPU found" if device == "cpu" else f"{device} found"
    else:
        reason = "device as asked"
    if device == "cuda" and (rank := os.environ.get("LOCAL_RANK", "")).isdecimal():
        device = f"cuda:{rank}"  # a process of torchrun has a GPU of its own
    if dtype != "auto":
        return Placement(torch.device(device), _DTYPES[dtype], f"{reason}, dtype as asked")
    if device.startswith("cuda") and torch.cuda.is_bf16_supported():
        return Placement(torch.device(device), torch.bfloat16, f"{reason}, bfloat16 is fastest")
    return Placement(torch.device(device), torch.float32, f"{reason}, float32 is exact")


def _check_device(device: str, devices: dict[str, int]) -> None:
    if not _DEVICE.fullmatch(device):
        raise SettingsError(f"--device {device}: expected auto, cpu, cuda, cuda:N or mps")
    kind, _, number = device.partition(":")
    if int(number or 0) >= devices[kind]:
        found = f"{devices[kind]}, counted from 0" if devices[kind] else "none"
        raise SettingsError(f"--device {device}: this machine has {found}; use --device cpu")


@dataclass(frozen=True)
class Reader:
    """A loaded language model and everything needed to talk to it in token ids."""

    name: str
    model: PreTrainedModel
    tokenizer: Tokenizer
    placement: Placement
    window: int
    """Positions a sequence may take."""
    window_reason: str
    adapter: "AdapterCard | None" = None
    """What was merged into the model, if anything was."""
    _encoding: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)
    """Held while the tokenizer encodes: whether it splits special tokens is a state of its own."""

    @cached_property
    def bos(self) -> Ids:
        """What the tokenizer puts in front of every text; empty for many families."""
        plain = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        full = self.tokenizer("a")["input_ids"]
        return tuple(full[: next((i for i in range(len(full)) if full[i:][:1] == plain[:1]), 0)])

    @cached_property
    def eos(self) -> frozenset[int]:
        """The ids after which nothing is written."""
        generation = self.model.generation_config
        given = generation.eos_token_id if generation is not None else None
        if given is None:
            given = self.tokenizer.eos_token_id
        return frozenset([given] if isinstance(given, int) else given or [])

    @cached_property
    def marks(self) -> tuple[int, int] | None:
        """The ids of the two marking tokens, if the tokenizer has them."""
        known = self.tokenizer.get_vocab()
        if MARK_LEFT in known and MARK_RIGHT in known:
            return known[MARK_LEFT], known[MARK_RIGHT]
        return None

    @cached_property
    def vocabulary_size(self) -> int:
        """Rows of the embedding: ids from 0 to this, less one, can be read."""
        embedding = self.model.get_input_embeddings()
        assert isinstance(embedding.weight, torch.Tensor)
        return embedding.weight.shape[0]

    @property
    def forbidden(self) -> Ids:
        """Ids that must never be written: the marking tokens."""
        return self.marks or ()

    def encode(self, text: str) -> list[int]:
        """Plain text to ids; what looks like a special token in it is text like any other.

        Raises:
            ReaderError: the tokenizer gives an id that the model does not have.
        """
        return self._encoded(text, split_special_tokens=True)

    def encode_prompt(self, text: str) -> list[int]:
        """A text's beginning to ids: BOS, if the reader has one, and the text.

        Special tokens written in a prompt are meant: it comes from the user, not from a corpus.

        Raises:
            ReaderError: the tokenizer gives an id that the model does not have.
        """
        ids = self._encoded(text)
        if not ids and not self.bos and self.tokenizer.bos_token_id is not None:
            return [self.tokenizer.bos_token_id]
        return [*self.bos, *ids]

    def encode_template(self, text: str) -> list[int]:
        """A filled chat template to ids: it brings its own special tokens.

        Raises:
            ReaderError: the tokenizer gives an id that the model does not have.
        """
        return self._encoded(text)

    def _encoded(self, text: str, *, split_special_tokens: bool = False) -> list[int]:
        with self._encoding:
            encoding = self.tokenizer(
                text,
                add_special_tokens=False,
                split_special_tokens=split_special_tokens,
                verbose=False,
            )
        ids: list[int] = encoding["input_ids"]
        if ids and max(ids) >= self.vocabulary_size:
            raise ReaderError(
                f"model {self.name}: its tokenizer gives the id {max(ids)}, but the model has only "
                f"{self.vocabulary_size}; the two do not belong together"
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Ids to text; special tokens and marks are left out."""
        kept = [token for token in ids if token not in self.forbidden]
        text = self.tokenizer.decode(
            kept, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text

    def show(self, ids: Sequence[int]) -> str:
        """Ids to text, special tokens and marks included, for people who debug."""
        text = self.tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text

    def frame(self, text: FrameText | None, pattern: Pattern) -> Frame:
        """The ids around passages: of the given text, else marks if any, else of a default text.

        A reader whose adapter was trained without marks gets nothing instead of the default text.
        In a slot, a passage in text begins with BOS, if the reader has one, as any text does.
        """
        own = self._own_frame(pattern)
        if text is None:
            return own
        echo = own.echo if text.echo_tokens is None else text.echo_tokens
        return self._text_frame(text, pattern, echo) if text.has_text else replace(own, echo=echo)

    def _own_frame(self, pattern: Pattern) -> Frame:
        without = self.adapter is not None and self.adapter.marks is Marks.NONE
        if self.marks is not None and not without:
            return Frame((self.marks[0],), (self.marks[1],), self._trained_echo)
        if self.adapter is not None:
            return Frame(echo=self._trained_echo)
        return self._text_frame(DEFAULT_FRAME, pattern, DEFAULT_FRAME.echo_tokens or 0)

    def _text_frame(self, text: FrameText, pattern: Pattern, echo: int) -> Frame:
        before = DEFAULT_FRAME.before if text.before is None else text.before
        after = DEFAULT_FRAME.after if text.after is None else text.after
        begin = self.bos if pattern is Pattern.SLOT else ()
        return Frame((*begin, *self.encode(before or "")), tuple(self.encode(after or "")), echo)

    @property
    def can_have_slot(self) -> bool:
        """Whether every layer sees all positions, those of a slot before the context included."""
        return has_full_attention_only(self.model)

    def check_pattern(self, pattern: Pattern) -> None:
        """Refuse a slot that the reader would lose sight of.

        Raises:
            SettingsError: the pattern is `slot`, and some layers have a sliding window.
        """
        if pattern is Pattern.SLOT and not self.can_have_slot:
            raise SettingsError(
                f"--pattern slot: {self.name} has layers with sliding-window attention, which "
                "would lose sight of the slot; use append or prepend"
            )

    @property
    def _trained_echo(self) -> int:
        return 0 if self.adapter is None else self.adapter.echo_tokens


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
        SettingsError: a device, dtype or window that is not to be had.
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
    model = model.to(placement.device).eval()
    return Reader(name, model, tokenizer, placement, size, reason)


def shipped(name: str) -> Path:
    """The folder of a reader or adapter that ships with the package; it may not exist."""
    return Path(str(files("flashback") / "readers" / name))


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
    """Transformers raises almost anything for a bad model; say which part of it was bad."""
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
    """Where rotations begin to depend on the length, if they do.

    Past it such a model rotates *all* keys differently, those that are cached included.
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    # Models that mix kinds of layers have one set of parameters for each kind.
    sets = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    for rope in sets:
        if rope.get("rope_type") in ("dynamic", "longrope"):
            original = rope.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            if original:
                return int(original), f"{rope['rope_type']} rotation is constant up to there"
    return None
