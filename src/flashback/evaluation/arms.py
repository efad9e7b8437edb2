"""What is compared: patterns, frames, adapters."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from operator import attrgetter
from pathlib import Path

from flashback.errors import SettingsError
from flashback.patterns.frame import Frame
from flashback.patterns.registry import PATTERNS
from flashback.readers.card import AdapterCard, read_card
from flashback.readers.reader import Reader
from flashback.scoring.examples import Arrangement, Example, SlotLayout
from flashback.scoring.passes import takes_positions
from flashback.scoring.window_settings import WindowSettings
from flashback.scoring.windows import shortened
from flashback.settings import DEFAULT_FRAME, FrameText, Marks


class FrameKind(StrEnum):
    """What stands around passages."""

    BARE = "bare"
    """Nothing."""
    TEXT = "text"
    """`DEFAULT_FRAME`, without an echo."""
    ECHO = "text, echo"
    """`DEFAULT_FRAME` with its echo: the context's last tokens behind an appended passage
    again."""
    NO_BOS = "text, no bos"
    """`DEFAULT_FRAME` in a slot, where the reader's BOS begins a passage otherwise."""
    EOS = "eos"
    """An end-of-text token in front, as the authors' tokenizer puts one before every passage."""
    MARKS = "marks"
    """The reader's marking tokens."""


TEXTS = {
    FrameKind.BARE: FrameText("", "", 0),
    FrameKind.TEXT: replace(DEFAULT_FRAME, echo_tokens=0),
    FrameKind.ECHO: DEFAULT_FRAME,
    FrameKind.NO_BOS: replace(DEFAULT_FRAME, echo_tokens=0),
}
"""The frames that are text."""


@dataclass(frozen=True)
class Arm:
    """One row of the table: who reads what, arranged how."""

    pattern: str
    frame: FrameKind = FrameKind.BARE
    adapter: Path | None = None
    marks: Marks = Marks.NONE
    """Of the adapter."""
    echo_tokens: int = 0
    """Of the adapter."""
    trained_for: str | None = None
    """The adapter's pattern."""
    shortened: bool = False
    """Whether contexts are cut as in the paper's code (its baseline without retrieval)."""
    layout: SlotLayout = SlotLayout()
    """Of the pattern `slot`."""
    label: str = ""
    """Tells it from arms that would have the same name."""

    @property
    def training(self) -> str:
        """`lora` or `none`."""
        return "none" if self.adapter is None else "lora"

    @property
    def name(self) -> str:
        """Such as `append (text)`, `append + LoRA, trained marks`, `none (shortened)`."""
        framed = PATTERNS[self.pattern].retrieves and self.trained_for is None
        notes = [
            *([str(self.frame)] if framed else []),
            *(["shortened"] if self.shortened else []),
            *self.layout.notes,
            *([self.label] if self.label else []),
        ]
        return self.pattern + self._adapter_name + (f" ({', '.join(notes)})" if notes else "")

    @property
    def _adapter_name(self) -> str:
        if self.trained_for is None:
            return ""
        whose = "" if self.trained_for == self.pattern else f"{self.trained_for} "
        passages = any(PATTERNS[name].retrieves for name in (self.pattern, self.trained_for))
        marks = f", {self.marks} marks" if passages and self.marks is not Marks.NONE else ""
        echoes = any(PATTERNS[name].echoes for name in (self.pattern, self.trained_for))
        echo = ", echo" if echoes and self.echo_tokens else ""
        return f" + {whose}LoRA{marks}{echo}"

    def arrangement(self, reader: Reader) -> Arrangement:
        """How this arm's reader is shown passages: with an adapter, as it was trained."""
        return Arrangement(self.pattern, self._frame(reader), reader.forbidden, self.layout)

    def frame_tokens(self, reader: Reader) -> int:
        """How many tokens stand around a passage.

        Args:
            reader: without this arm's adapter.
        """
        if not PATTERNS[self.pattern].retrieves:
            return 0
        if self.adapter is None:
            return len(self._frame(reader)) + len(self.layout.dropped) + self.layout.gap
        return self.echo_tokens + (0 if self.marks is Marks.NONE else 2)

    def _frame(self, reader: Reader) -> Frame:
        if self.adapter is not None or self.frame is FrameKind.MARKS:
            return reader.frame(None, self.pattern)
        if self.frame is FrameKind.EOS:
            if reader.tokenizer.eos_token_id is None:
                raise SettingsError(
                    f"{reader.name} has no end-of-text token to put before passages"
                )
            return Frame((int(reader.tokenizer.eos_token_id),))
        pattern = "prepend" if self.frame is FrameKind.NO_BOS else self.pattern
        return reader.frame(TEXTS[self.frame], pattern)

    def examples(self, examples: Sequence[Example], settings: WindowSettings) -> list[Example]:
        """What this arm is scored on: the same targets, perhaps with shorter contexts."""
        if not self.shortened:
            return list(examples)
        return [
            replace(example, window=shortened(example.window, settings)) for example in examples
        ]


def untrained_arms(patterns: Sequence[str], frames: Sequence[FrameKind]) -> list[Arm]:
    """Every pattern without an adapter, those with passages in every frame they can have."""
    return [
        Arm(pattern, frame)
        for pattern in patterns
        for frame in (frames if PATTERNS[pattern].retrieves else (FrameKind.BARE,))
        if frame is not FrameKind.ECHO or PATTERNS[pattern].echoes
    ]


_GAP = 16
"""Positions left free, where a gap is measured."""


def slot_ablation(reader: Reader, passages: int) -> list[Arm]:
    """From an appended passage to one in a slot step by step, then what else a slot could be.

    Args:
        passages: k; above 1, also with the passages side by side.

    Raises:
        SettingsError: the reader can have no slot, or takes no positions.
    """
    reader.check_pattern("slot")
    if not takes_positions(reader.model):
        raise SettingsError(f"--ablation: {reader.name} takes no positions; leave it out")
    layouts = [
        SlotLayout(alone=False, kept=False),
        SlotLayout(kept=False),
        SlotLayout(),
        SlotLayout(gap=_GAP),
        *([SlotLayout(parallel=True)] if passages > 1 else []),
    ]
    without = [SlotLayout(), SlotLayout(dropped=reader.bos)] if reader.bos else []
    return [
        Arm("append", FrameKind.TEXT),
        *(Arm("slot", FrameKind.TEXT, layout=layout) for layout in layouts),
        *(Arm("slot", FrameKind.NO_BOS, layout=layout) for layout in without),
        Arm("slot", FrameKind.BARE),
    ]


def usual_frames(reader: Reader) -> tuple[FrameKind, ...]:
    """What an untrained reader is shown around passages; one with marks has been trained."""
    return (FrameKind.TEXT, FrameKind.ECHO) if reader.marks is None else (FrameKind.MARKS,)


def adapter_arms(folder: Path, patterns: Sequence[str]) -> list[Arm]:
    """Every pattern with one adapter.

    Raises:
        AdapterError: the folder is no adapter.
    """
    card = read_card(folder)
    return [arm_of(folder, card, pattern) for pattern in patterns]


def arm_of(folder: Path, card: AdapterCard, pattern: str) -> Arm:
    """A pattern with one adapter."""
    frame = FrameKind.BARE if card.marks is Marks.NONE else FrameKind.MARKS
    return Arm(pattern, frame, folder, card.marks, card.echo_tokens, card.pattern)


def told_apart(arms: Sequence[Arm]) -> list[Arm]:
    """The same arms, each once; those of adapters that share a name are told by their folders."""
    arms = list(dict.fromkeys(arms))
    for folder in (attrgetter("name"), str):
        names = Counter(arm.name for arm in arms)
        arms = [
            replace(arm, label=folder(arm.adapter)) if names[arm.name] > 1 and arm.adapter else arm
            for arm in arms
        ]
    return arms
