"""The card of an adapter, `flashback.json` in its folder: its base, its settings, its results.

ADAPTER/
├── adapter_config.json, adapter_model.safetensors    PEFT's format
├── flashback.json                                    what this module reads and writes
└── README.md                                         the model card
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flashback.errors import AdapterError
from flashback.patterns.registry import PATTERNS
from flashback.readers.lora_settings import Marks
from flashback.readers.shipped import shipped_adapters
from flashback.settings import FrameText, QueryForm, RetrievalSettings

CARD = "flashback.json"
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
FORMAT = 2
_BEFORE_SLOTS_CHANGED = 1


@dataclass(frozen=True)
class Base:
    """The model an adapter belongs to."""

    name: str
    model_type: str
    fingerprint: str


@dataclass(frozen=True)
class AdapterCard:
    """An adapter's base model, and how it was trained (`flashback.json`)."""

    base: Base
    pattern: str
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
    query_form: QueryForm = QueryForm.TOKENS
    """Cards that do not name it are of an earlier version, and of this one."""
    frame_before: str = ""
    """The text in front of a passage and its opening mark; see `LoraSettings`."""

    def differences(self, retrieval: RetrievalSettings) -> list[str]:
        """How a generation's settings differ from what the adapter was trained for."""
        if not (PATTERNS[self.pattern].retrieves or retrieval.retrieves):
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


_TRAINED_FOR = ("pattern", "stride", "query_tokens", "query_form", "passage_tokens", "passages")


def read_card(folder: Path) -> AdapterCard:
    """Read and check the card in an adapter folder.

    Raises:
        AdapterError: missing, no adapter of ours, damaged, or of another format.
    """
    path = folder / CARD
    if not folder.is_dir():
        raise AdapterError(
            f"adapter {folder}: no such folder; make it with `flashback train`, or name one that "
            f"ships: {', '.join(shipped_adapters())}"
        )
    for name in (CARD, CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise AdapterError(
                f"adapter {folder}: no {name} in it; expected a folder made by `flashback train`"
            )
    try:
        record = json.loads(path.read_text("utf-8"))
        if (found := record["format"]) not in (_BEFORE_SLOTS_CHANGED, FORMAT):
            raise AdapterError(f"adapter {folder}: format {found}, but this version reads {FORMAT}")
        if found == _BEFORE_SLOTS_CHANGED and record["pattern"] == "slot":
            raise AdapterError(
                f"adapter {folder}: trained for a slot as it was in an earlier version; train it "
                "again with `flashback train --pattern slot`"
            )
        return _card_of(record)
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError, OSError) as error:
        found = f"{type(error).__name__}: {error}"
        raise AdapterError(f"adapter {folder}: {CARD} is damaged ({found})") from error


def _card_of(record: dict[str, Any]) -> AdapterCard:
    known = {item.name for item in dataclasses.fields(AdapterCard)}
    values = {name: value for name, value in record.items() if name in known}
    marks = values.pop("mark_ids")
    form = QueryForm(values.pop("query_form", QueryForm.TOKENS))
    card = AdapterCard(
        base=Base(**values.pop("base")),
        pattern=values.pop("pattern"),
        marks=Marks(values.pop("marks")),
        mark_ids=None if marks is None else (int(marks[0]), int(marks[1])),
        query_form=form,
        **values,
    )
    if card.pattern not in PATTERNS:
        raise ValueError(f"the pattern is {card.pattern!r}")
    for name, value in dataclasses.asdict(card.base).items():
        if not isinstance(value, str):
            raise ValueError(f"{name} of the base is {value!r}")
    if (card.mark_ids is None) != (card.marks is Marks.NONE):
        raise ValueError(f"{card.marks} marks with the ids {card.mark_ids}")
    if not isinstance(card.frame_before, str):
        raise ValueError(f"frame_before is {card.frame_before!r}")
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
