"""What each benchmark measures; the command line imports it without PyTorch."""

from dataclasses import dataclass
from typing import Any

from flashback.benchmark.arms import all_arms, arm_named
from flashback.errors import SettingsError
from flashback.patterns.registry import PATTERNS
from flashback.scoring.window_settings import WindowSettings
from flashback.settings import CheckedSettings, Weights, setting


def _shape(default: str = "opt-125m", more: str = ", or a model's folder") -> Any:
    return setting(default, f"A known shape with random weights{more}.")


def _stride(low: int = 1) -> Any:
    return setting(16, "s: tokens written between two retrievals.", low=low, high=4096)


def _passage_tokens() -> Any:
    return setting(128, "m: the tokens of a passage.", low=1, high=1 << 20)


def _repeats(default: int = 3) -> Any:
    return setting(default, "Measure everything so many times; medians count.", low=1, high=100)


def _device() -> Any:
    return setting("auto", "auto, cpu, cuda, cuda:N or mps.")


def _dtype() -> Any:
    return setting("float32", "auto, float32 or bfloat16.")


def _lengths() -> Any:
    return setting("512:1024", "FIRST:LAST positions; contexts end at LAST - m.")


@dataclass(frozen=True)
class RuntimeSettings(CheckedSettings):
    """The paper's run-time test (section 4.3)."""

    shape: str = _shape(more=", a model's folder, or flashback-mini")
    lengths: str = _lengths()
    sampled: bool = setting(False, "Measure strides at a few lengths only, and interpolate.")
    arms: tuple[str, ...] = setting(
        (),
        f"Measure only these of {', '.join(all_arms())} (repeatable; default: all that the model "
        "supports).",
        flag="--pattern",
    )
    batch_size: int = setting(
        1, "Rows of equal length, each with other tokens, in every pass.", low=1, high=4096
    )
    passage_megabytes: int = setting(
        256,
        "Keys and values of slot passages in the passage cache at most, MB.",
        low=0,
        high=1 << 30,
    )
    stride: int = _stride(low=2)
    passage_tokens: int = _passage_tokens()
    repeats: int = _repeats(1)
    device: str = _device()
    dtype: str = _dtype()
    weights: Weights = setting(
        Weights.FULL,
        "numba: single tokens are multiplied by loops that numba compiles, on CPU.",
        choices=(Weights.FULL, Weights.NUMBA),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.arms:
            arm_named(name)


@dataclass(frozen=True)
class TrainingBenchSettings(CheckedSettings):
    """How fast adapters are trained (paper section 3), three ways."""

    shape: str = _shape("gpt2-6x512")
    windows: int = setting(2, "Windows that are trained on, by each way.", low=1, high=10_000)
    window_tokens: int = setting(512, "N: tokens of a window.", low=8, high=1 << 20)
    stride: int = setting(16, "s: targets between two retrievals.", low=1, high=4096)
    passage_tokens: int = setting(
        128, "m: the most tokens of a passage; the least are three quarters.", low=1, high=1 << 20
    )
    batch_size: int = setting(8, "Separate sequences in a batch.", low=1, high=4096)
    repeats: int = _repeats()
    device: str = _device()
    dtype: str = _dtype()

    def __post_init__(self) -> None:
        super().__post_init__()
        least = self.first_boundary + self.stride
        if self.window_tokens < least:
            raise SettingsError(
                f"--window-tokens {self.window_tokens}: expected at least {least}, "
                f"{self.first_boundary} before the first boundary and a stride of {self.stride}"
            )

    @property
    def first_boundary(self) -> int:
        """Tokens of a window before its first targets: what training takes by default."""
        return WindowSettings().first_boundary


@dataclass(frozen=True)
class ParetoSettings(CheckedSettings):
    """How writing is timed, where perplexity is set against speed."""

    prompts: int = setting(2, "Prompts to continue, each from an empty cache.", low=1, high=1000)
    prompt_tokens: int = setting(384, "Tokens of each of them.", low=1, high=1 << 20)
    new_tokens: int = setting(
        96, "Tokens to time behind each, after a first stride.", low=1, high=1 << 20
    )
    repeats: int = setting(1, "Write everything so many times; medians count.", low=1, high=100)


@dataclass(frozen=True)
class EngineBenchSettings(CheckedSettings):
    """How fast this engine writes, against transformers' own cache and plain layers."""

    shape: str = _shape()
    lengths: str = _lengths()
    pattern: str = setting(
        "append", "Where passages go: none, prepend or append.", choices=PATTERNS
    )
    stride: int = _stride(low=2)
    passage_tokens: int = _passage_tokens()
    repeats: int = _repeats()
    device: str = _device()
    weights: Weights = setting(
        Weights.FULL,
        "numba: also measure with single tokens multiplied by its loops, on CPU.",
        choices=(Weights.FULL, Weights.NUMBA),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if PATTERNS[self.pattern].isolated:
            raise SettingsError(
                f"--pattern {self.pattern}: transformers' cache has none; see 'bench runtime'"
            )


@dataclass(frozen=True)
class BatchBenchSettings(CheckedSettings):
    """How fast several texts are written together."""

    shape: str = _shape()
    batch_size: int = setting(8, "Texts, and rows of the batch.", low=2, high=4096)
    prompt_tokens: int = setting(
        512, "Tokens of the longest prompt; the shortest has half.", low=2, high=1 << 20
    )
    new_tokens: int = setting(64, "Tokens to write behind each prompt.", low=1, high=1 << 20)
    pattern: str = setting("append", "Where passages go.", choices=PATTERNS)
    stride: int = _stride()
    passage_tokens: int = _passage_tokens()
    repeats: int = _repeats()
    device: str = _device()
    dtype: str = _dtype()
