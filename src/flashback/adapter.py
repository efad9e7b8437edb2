"""The adapter folder: LoRA weights, the trained marking rows, and what they were trained for.

    ADAPTER/
    ├── adapter_config.json, adapter_model.safetensors    PEFT's format
    ├── flashback.json                                    what this module reads and writes
    └── README.md                                         the model card

Knows the folder and how it is put onto a reader. Knows nothing of how it is trained.
"""

import dataclasses
import hashlib
import json
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from flashback.engines.packed import named_weights
from flashback.errors import AdapterError
from flashback.reader import MARK_LEFT, MARK_RIGHT, Reader
from flashback.settings import FrameText, Marks, Pattern, RetrievalSettings

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

CARD = "flashback.json"
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
FORMAT = 1
_SAMPLED = 64
"""Values of each weight that go into a model's fingerprint."""


@dataclass(frozen=True)
class Base:
    """The model an adapter belongs to."""

    name: str
    model_type: str
    fingerprint: str


@dataclass(frozen=True)
class AdapterCard:
    """What an adapter says about itself (`flashback.json`)."""

    base: Base
    pattern: Pattern
    marks: Marks
    mark_ids: tuple[int, int] | None
    """Of `<MARK_L>` and `<MARK_R>`; None without marks."""
    echo_tokens: int
    """How many of the context's last tokens were repeated behind an appended passage."""
    stride: int
    query_tokens: int
    passage_tokens: int
    passages: int
    window_tokens: int
    training: dict[str, Any] = field(default_factory=dict)
    """The settings of the run."""
    data: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    def differences(self, retrieval: RetrievalSettings) -> list[str]:
        """How a generation's settings differ from what the adapter was trained for."""
        if not (self.pattern.retrieves or retrieval.pattern.retrieves):
            return []  # the others are about passages
        wanted = {name: getattr(retrieval, name) for name in _TRAINED_FOR}
        found = [
            f"{name.replace('_', ' ')} {getattr(self, name)}, not {value}"
            for name, value in wanted.items()
            if getattr(self, name) != value
        ]
        frame = retrieval.frame or FrameText()
        if frame.has_text:
            trained = "marking tokens" if self.marks is not Marks.NONE else "nothing"
            found.append(f"{trained} around passages, not a text")
        if frame.echo_tokens not in (None, self.echo_tokens):
            found.append(f"echo tokens {self.echo_tokens}, not {frame.echo_tokens}")
        return found


_TRAINED_FOR = ("pattern", "stride", "query_tokens", "passage_tokens", "passages")


@torch.no_grad()
def fingerprint(model: PreTrainedModel) -> str:
    """A short name for a model's weights, the same in every dtype, in milliseconds.

    SHA-256 of its kind and of every weight's name, shape and 64 evenly spaced values as bfloat16:
    it tells models apart, also a model from its further training, and finds no single flipped bit.
    """
    digest = hashlib.sha256(str(model.config.model_type).encode())
    for name, weight in sorted(named_weights(model)):
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        flat = weight.detach().flatten()
        # In float32, the last of more than 2^24 rounds to the one behind it.
        last = flat.numel() - 1
        at = torch.linspace(0, last, min(_SAMPLED, flat.numel())).long().clamp_(max=last)
        sample = flat[at.to(flat.device)].to("cpu", torch.bfloat16)
        digest.update(sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def computation_of(model: PreTrainedModel) -> str:
    """`fingerprint`, and what else decides what the weights compute: rotations, norms, windows."""
    settings = {
        name: value
        for name, value in model.config.to_dict().items()
        if not name.startswith("_") and name not in _NO_MATTER
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    return f"{fingerprint(model)}-{digest.hexdigest()[:16]}"


_NO_MATTER = ("architectures", "dtype", "torch_dtype", "transformers_version", "use_cache")
"""Members of a configuration that may differ between loads of one model."""


def base_of(reader: Reader) -> Base:
    """The identity of a reader without an adapter."""
    return Base(reader.name, str(reader.model.config.model_type), fingerprint(reader.model))


def add_marks(tokenizer: Tokenizer, model: PreTrainedModel) -> tuple[int, int]:
    """Give a reader the two marking tokens, and embedding rows for them if it has none to spare.

    New rows are drawn around the mean of the others, as transformers does it, and the same ones
    every time.
    """
    tokenizer.add_tokens([MARK_LEFT, MARK_RIGHT], special_tokens=True)
    known = tokenizer.get_vocab()
    marks = known[MARK_LEFT], known[MARK_RIGHT]
    embedding = model.get_input_embeddings().weight
    assert isinstance(embedding, torch.Tensor)
    if max(marks) >= embedding.shape[0]:
        devices = [embedding.device] if embedding.is_cuda else []
        with _quiet_resizing(), torch.random.fork_rng(devices):
            torch.manual_seed(0)
            model.resize_token_embeddings(max(marks) + 1)
    return marks


@contextmanager
def _quiet_resizing() -> Iterator[None]:
    """transformers explains at length how it draws the new rows."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(before)


def read_card(folder: Path) -> AdapterCard:
    """Read and check what an adapter folder says about itself.

    Raises:
        AdapterError: missing, no adapter of ours, damaged, or of another format.
    """
    path = folder / CARD
    if not folder.is_dir():
        raise AdapterError(f"adapter {folder}: no such folder; make it with `flashback train`")
    for name in (CARD, CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise AdapterError(
                f"adapter {folder}: no {name} in it; expected a folder made by `flashback train`"
            )
    try:
        record = json.loads(path.read_text("utf-8"))
        if record["format"] != FORMAT:
            raise AdapterError(
                f"adapter {folder}: format {record['format']}, but this version reads {FORMAT}"
            )
        return _card_of(record)
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError, OSError) as error:
        found = f"{type(error).__name__}: {error}"
        raise AdapterError(f"adapter {folder}: {CARD} is damaged ({found})") from error


def _card_of(record: dict[str, Any]) -> AdapterCard:
    known = {item.name for item in dataclasses.fields(AdapterCard)}
    values = {name: value for name, value in record.items() if name in known}
    marks = values.pop("mark_ids")
    card = AdapterCard(
        base=Base(**values.pop("base")),
        pattern=Pattern(values.pop("pattern")),
        marks=Marks(values.pop("marks")),
        mark_ids=None if marks is None else (int(marks[0]), int(marks[1])),
        **values,
    )
    for name, value in dataclasses.asdict(card.base).items():
        if not isinstance(value, str):
            raise ValueError(f"{name} of the base is {value!r}")
    if (card.mark_ids is None) != (card.marks is Marks.NONE):
        raise ValueError(f"{card.marks} marks with the ids {card.mark_ids}")
    for name in (
        "echo_tokens",
        "stride",
        "query_tokens",
        "passage_tokens",
        "passages",
        "window_tokens",
    ):
        if not isinstance(getattr(card, name), int):
            raise ValueError(f"{name} is {getattr(card, name)!r}")
    return card


def card_record(card: AdapterCard) -> str:
    """The text of `flashback.json`."""
    return json.dumps(dataclasses.asdict(card), indent=2) + "\n"


def check_base(reader: Reader, folder: Path) -> AdapterCard:
    """The card of an adapter that was trained on this reader.

    Raises:
        AdapterError: the adapter is missing, damaged, or belongs to another model.
    """
    card, found = read_card(folder), base_of(reader)
    if found.fingerprint != card.base.fingerprint:
        raise AdapterError(
            f"adapter {folder} was trained on {card.base.name} ({card.base.model_type}, "
            f"{card.base.fingerprint[:12]}), but {reader.name} ({found.model_type}, "
            f"{found.fingerprint[:12]}) is another model; load the adapter's own"
        )
    return card


def put_on(reader: Reader, folder: str | Path) -> Reader:
    """A reader with an adapter merged into its weights: as fast as without.

    The given reader is used up: its model and tokenizer become the new one's.

    Raises:
        AdapterError: the adapter is missing, damaged, or belongs to another model.
    """
    folder = Path(folder)
    card = check_base(reader, folder)
    if card.mark_ids is not None:
        given = add_marks(reader.tokenizer, reader.model)
        if given != card.mark_ids:
            raise AdapterError(
                f"adapter {folder}: its marking tokens are {card.mark_ids}, but this tokenizer "
                f"gives them {given}; it is not the one the adapter was trained with"
            )
    return dataclasses.replace(reader, model=_merged(reader.model, folder, card), adapter=card)


def _merged(model: PreTrainedModel, folder: Path, card: AdapterCard) -> PreTrainedModel:
    try:
        adapted = wrap(model, _lora_config(folder, card))
        load_lora(adapted, folder)
        merged: Any = adapted.merge_and_unload(safe_merge=True)
    except Exception as error:  # PEFT raises almost anything for a bad folder
        found = textwrap.shorten(str(error) or "no reason given", 300, placeholder=" ...")
        kind = type(error).__name__
        raise AdapterError(
            f"adapter {folder}: cannot be put onto the model: {found} ({kind})"
        ) from error
    assert isinstance(merged, PreTrainedModel)
    merged.eval()
    return merged


def _lora_config(folder: Path, card: AdapterCard) -> "LoraConfig":
    """What PEFT's file says, as far as `flashback train` writes it; the rest is never acted on."""
    from peft import LoraConfig

    record = json.loads((folder / CONFIG).read_text("utf-8"))
    if record["peft_type"] != "LORA":
        raise ValueError(f"{CONFIG} says {record['peft_type']}, expected LORA")
    rows = record["trainable_token_indices"]
    if rows != (None if card.mark_ids is None else list(card.mark_ids)):
        raise ValueError(f"{CONFIG} has the token rows {rows}, {CARD} {card.mark_ids}")
    return LoraConfig(
        r=record["r"],
        lora_alpha=record["lora_alpha"],
        target_modules=list(record["target_modules"]),
        fan_in_fan_out=record["fan_in_fan_out"],
        trainable_token_indices=rows,
        task_type="CAUSAL_LM",
    )


def wrap(model: PreTrainedModel, config: "LoraConfig") -> "PeftModel":
    """Put fresh LoRA weights, and the token rows that the configuration names, around a model."""
    from peft import PeftModel, get_peft_model

    with warnings.catch_warnings():
        # PEFT asks transformers for a name that will go.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        wrapped = get_peft_model(model, config)
    assert isinstance(wrapped, PeftModel)
    return wrapped


def load_lora(model: "PeftModel", folder: Path) -> None:
    """Read the weights of an adapter folder or a checkpoint into a model that was wrapped for them.

    Raises:
        ValueError: the folder has not exactly the weights that the model wants.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    found = load_file(folder / WEIGHTS)
    wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
    if differing := sorted(wanted.keys() ^ found.keys()):
        kind = "lacks" if differing[0] in wanted else "has"
        raise ValueError(f"{WEIGHTS} {kind} {differing[0]}, unlike {CONFIG}")
    set_peft_model_state_dict(model, found)
