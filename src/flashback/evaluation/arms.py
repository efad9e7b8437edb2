"""What is compared: patterns, frames, readers with and without adapters."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from flashback.adapter import AdapterCard, put_on, read_card
from flashback.arrangement import Frame
from flashback.errors import SettingsError
from flashback.packing.forward import Arrangement, Example
from flashback.packing.settings import WindowSettings
from flashback.packing.windows import shortened
from flashback.reader import Reader
from flashback.settings import FrameText, Marks, Pattern


class FrameKind(StrEnum):
    """What stands around passages."""

    BARE = "bare"
    """Nothing."""
    TEXT = "text"
    """The default `FrameText`."""
    EOS = "eos"
    """An end-of-text token in front, as the authors' tokenizer puts one before every passage."""
    MARKS = "marks"
    """The reader's marking tokens."""


@dataclass(frozen=True)
class Arm:
    """One row of the table: who reads what, arranged how."""

    pattern: Pattern
    frame: FrameKind = FrameKind.BARE
    adapter: Path | None = None
    marks: Marks = Marks.NONE
    """Of the adapter."""
    trained_for: Pattern | None = None
    """The adapter's pattern."""
    shortened: bool = False
    """Whether contexts are cut as in the paper's code (its baseline without retrieval)."""

    @property
    def training(self) -> str:
        """`lora` or `none`."""
        return "none" if self.adapter is None else "lora"

    @property
    def name(self) -> str:
        """Such as `append (text)`, `append + LoRA + trained marks`, `none (shortened)`."""
        if self.shortened:
            return f"{self.pattern} (shortened)"
        if self.trained_for is None:
            return f"{self.pattern} ({self.frame})" if self.pattern.retrieves else self.pattern
        elsewhere = "" if self.trained_for is self.pattern else f" for {self.trained_for}"
        shown = self.pattern.retrieves or self.trained_for.retrieves
        marks = f" + {self.marks} marks" if shown and self.marks is not Marks.NONE else ""
        return f"{self.pattern} + LoRA{elsewhere}{marks}"

    def arrangement(self, reader: Reader) -> Arrangement:
        """How this arm's reader is shown passages."""
        return Arrangement(self.pattern, _frame(self.frame, reader), reader.forbidden)

    def examples(self, examples: Sequence[Example], settings: WindowSettings) -> list[Example]:
        """What this arm is scored on: the same targets, perhaps with shorter contexts."""
        if not self.shortened:
            return list(examples)
        return [
            replace(example, window=shortened(example.window, settings)) for example in examples
        ]


def _frame(kind: FrameKind, reader: Reader) -> Frame:
    if kind is FrameKind.BARE:
        return Frame()
    if kind is FrameKind.TEXT:
        return reader.frame(FrameText())
    if kind is FrameKind.MARKS:
        return reader.frame(None)
    if reader.tokenizer.eos_token_id is None:
        raise SettingsError(f"{reader.name} has no end-of-text token to put before passages")
    return Frame((int(reader.tokenizer.eos_token_id),))


def untrained_arms(patterns: Sequence[Pattern], frames: Sequence[FrameKind]) -> list[Arm]:
    """Every pattern without an adapter, those with passages in every frame."""
    return [
        Arm(pattern, frame)
        for pattern in patterns
        for frame in (frames if pattern.retrieves else (FrameKind.BARE,))
    ]


def adapter_arms(folder: Path, patterns: Sequence[Pattern]) -> list[Arm]:
    """Every pattern with one adapter.

    Raises:
        AdapterError: the folder is no adapter.
    """
    card = read_card(folder)
    return [arm_of(folder, card, pattern) for pattern in patterns]


def arm_of(folder: Path, card: AdapterCard, pattern: Pattern) -> Arm:
    """A pattern with one adapter."""
    frame = FrameKind.BARE if card.marks is Marks.NONE else FrameKind.MARKS
    return Arm(pattern, frame, folder, card.marks, card.pattern)


def readers_of(
    arms: Sequence[Arm], load: Callable[[], Reader]
) -> Iterator[tuple[Reader, list[Arm]]]:
    """Each reader that is needed, once, with its arms; one is in memory at a time.

    Args:
        load: loads the reader without any adapter, anew at every call.
    """
    for adapter in dict.fromkeys(arm.adapter for arm in arms):
        reader = load() if adapter is None else put_on(load(), adapter)
        yield reader, [arm for arm in arms if arm.adapter == adapter]
