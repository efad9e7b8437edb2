"""How documents are cut into windows and strides."""

from dataclasses import dataclass
from enum import StrEnum

from flashback.declared import CheckedSettings, setting


class Protocol(StrEnum):
    """The context of each stride of targets, before passages."""

    WINDOWS = "windows"
    """All of its window: the document is cut every N tokens. Strides share their context, so that
    appended passages are scored in packed passes."""
    RANDOM = "random"
    """The paper's code: a random 128 to 367 tokens (of N = 512; in proportion for others)."""
    SLIDING = "sliding"
    """In-Context RALM (Ram et al. 2023): the last N - s tokens, before every stride anew."""


@dataclass(frozen=True)
class WindowSettings(CheckedSettings):
    """How documents are cut into windows and strides."""

    window_tokens: int = setting(512, "N: tokens of a window.", low=8, high=1 << 20)
    first_boundary: int = setting(
        32,
        "Tokens of a window before its first boundary; they are no targets.",
        low=1,
        high=1 << 20,
    )
    protocol: Protocol = setting(
        Protocol.WINDOWS,
        "Contexts: windows (all of the window), random (128-367 of 512 tokens, the paper's code) "
        "or sliding (the last N-s tokens, In-Context RALM).",
    )
    max_windows: int = setting(0, "Windows to use, drawn at random; 0: all.", low=0, high=1 << 40)
    seed: int = setting(
        0,
        "Decides random contexts and which windows are drawn.",
        low=0,
        high=(1 << 32) - 1,
        flag="--window-seed",
    )
