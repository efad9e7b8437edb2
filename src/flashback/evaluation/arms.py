"""The rows of a comparison: patterns, frames, adapters."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path

from flashback.errors import SettingsError
from flashback.evaluation.frame_kind import FrameKind
from flashback.patterns.frame import Frame
from flashback.patterns.registry import PATTERNS
from flashback.readers.card import AdapterCard, read_card
from flashback.readers.lora_settings import Marks
from flashback.readers.reader import Reader
from flashback.scoring.control_kind import Control
from flashback.scoring.examples import Arrangement, Example
from flashback.scoring.window_settings import WindowSettings
from flashback.scoring.windows import shortened
from flashback.settings import FrameText


@dataclass(frozen=True)
class Arm:
    """One row of the table: a pattern, a frame, and an adapter or none."""

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
    block: int = 1
    """Of a slot; see `Capabilities.block`."""
    control: Control | None = None
    """Passages that are shown instead of those that were found."""
    frame_before: str = ""
    """Of the adapter; see `LoraSettings`."""
    label: str = ""
    """Distinguishes arms that would otherwise have the same name."""

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
            *([f"blocks of {self.block}"] if self.block > 1 else []),
            *([f"{self.control} passages"] if self.control else []),
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

    @property
    def frame_text(self) -> FrameText | None:
        """Its frame where that is a text."""
        default = PATTERNS[self.pattern].default_frame
        texts = {
            FrameKind.BARE: FrameText("", "", 0),
            FrameKind.TEXT: replace(default, echo_tokens=0),
            FrameKind.ECHO: default,
        }
        return None if self.adapter is not None else texts.get(self.frame)

    def arrangement(self, reader: Reader) -> Arrangement:
        """How this arm arranges passages: with an adapter, as it was trained."""
        return Arrangement(self.pattern, self._frame(reader), reader.forbidden, self.block)

    def frame_tokens(self, reader: Reader) -> int:
        """f: the tokens around a passage.

        Args:
            reader: without this arm's adapter.
        """
        if not PATTERNS[self.pattern].retrieves:
            return 0
        if self.adapter is None:
            return len(self._frame(reader))
        before = self.frame_before if self.trained_for == self.pattern else ""
        return self.marks.frame_tokens(self.echo_tokens) + len(reader.frame_ids(before))

    def _frame(self, reader: Reader) -> Frame:
        if self.adapter is not None or self.frame is FrameKind.MARKS:
            return reader.frame(None, self.pattern)
        if self.frame is FrameKind.EOS:
            if reader.tokenizer.eos_token_id is None:
                raise SettingsError(
                    f"{reader.name} has no end-of-text token to put before passages"
                )
            return Frame((int(reader.tokenizer.eos_token_id),), sink=reader.bos)
        return reader.frame(self.frame_text, self.pattern)

    def examples(self, examples: Sequence[Example], settings: WindowSettings) -> list[Example]:
        """The examples with this arm's contexts; their targets are the same for every arm."""
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


def usual_frames(reader: Reader) -> tuple[FrameKind, ...]:
    """The frames of a reader without an adapter; one with marks was trained with them."""
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
    marks, echo = card.marks, card.echo_tokens
    return Arm(pattern, frame, folder, marks, echo, card.pattern, frame_before=card.frame_before)


def with_unique_names(arms: Sequence[Arm]) -> list[Arm]:
    """The same arms, each once; adapters that share a name are labelled with their folders."""
    arms = list(dict.fromkeys(arms))
    for folder in (attrgetter("name"), str):
        names = Counter(arm.name for arm in arms)
        arms = [
            replace(arm, label=folder(arm.adapter)) if names[arm.name] > 1 and arm.adapter else arm
            for arm in arms
        ]
    return arms
