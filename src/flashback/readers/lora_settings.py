"""A new adapter: the shape of its LoRA weights and the frame of its passages. Without PyTorch."""

from dataclasses import dataclass
from enum import StrEnum

from flashback.declared import AUTO, CheckedSettings, setting


class Marks(StrEnum):
    """What stands around passages during training."""

    TRAINED = "trained"
    """Marking tokens whose embeddings are trained (the paper's)."""
    FROZEN = "frozen"
    """Marking tokens whose embeddings keep their initial values."""
    NONE = "none"
    """Nothing."""

    def frame_tokens(self, echo_tokens: int) -> int:
        """f: the tokens that marks and an echo add to a passage."""
        return echo_tokens + (0 if self is Marks.NONE else 2)


@dataclass(frozen=True)
class LoraSettings(CheckedSettings):
    """An adapter before its training (paper section 4.1 and its code)."""

    marks: Marks = setting(
        Marks.TRAINED, "What stands around passages: trained or frozen marking tokens, or nothing."
    )
    echo_tokens: int = setting(
        0,
        "The last tokens of the context that are repeated behind an appended passage (not the "
        "paper's).",
        low=0,
        high=1 << 20,
    )
    frame_before: str = setting(
        AUTO,
        "Text in front of a passage and its opening mark. auto: where answers in chats are trained "
        "on, behind appended passages, what begins a turn of the user; else nothing.",
    )
    rank: int = setting(16, "r of LoRA.", low=1, high=4096)
    alpha: int = setting(32, "α of LoRA; its weights are scaled by α/r.", low=1, high=65536)
    dropout: float = setting(0.05, "Dropout of LoRA's input.", low=0.0, high=0.99)
    lora_targets: tuple[str, ...] = setting(
        (),
        "Linear layers that get LoRA, by the end of their names (repeatable; default: query and "
        "value projections).",
        flag="--lora-target",
    )

    @property
    def text_before(self) -> str:
        """The text in front of passages; `auto`, where nothing has replaced it, is none."""
        return "" if self.frame_before == AUTO else self.frame_before
