"""What is measured; light enough for the command line to import without PyTorch."""

from dataclasses import dataclass

from flashback.errors import SettingsError
from flashback.patterns.registry import PATTERNS
from flashback.scoring.window_settings import WindowSettings
from flashback.settings import CheckedSettings, Weights, setting

ARMS = ("none", "slot_cached", "slot", "append", "prepend", "authors_prepend")
"""`authors_prepend` computes the logits of every position, as the authors' code does; in
`slot_cached` every passage's keys and values are in the passage cache from the start."""


@dataclass(frozen=True)
class RuntimeSettings(CheckedSettings):
    """The paper's run-time test (section 4.3)."""

    shape: str = setting(
        "opt-125m", "A known shape with random weights, a model's folder, or flashback-mini."
    )
    lengths: str = setting("512:1024", "FIRST:LAST positions; contexts end at LAST - m.")
    sampled: bool = setting(False, "Measure strides at a few lengths only, and interpolate.")
    arms: tuple[str, ...] = setting(
        (),
        f"Measure only these of {', '.join(ARMS)} (repeatable; default: all that the model can "
        "have).",
        flag="--pattern",
    )
    batch_size: int = setting(
        1, "Rows of equal length, each with other tokens, in every pass.", low=1, high=4096
    )
    passage_megabytes: int = setting(
        256, "Keys and values of slot passages to keep at most, MB.", low=0, high=1 << 30
    )
    stride: int = setting(16, "s: tokens written between two retrievals.", low=2, high=4096)
    passage_tokens: int = setting(128, "m: the tokens of a passage.", low=1, high=1 << 20)
    repeats: int = setting(1, "Measure everything so many times; medians count.", low=1, high=100)
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps.")
    dtype: str = setting("float32", "auto, float32 or bfloat16.")
    weights: Weights = setting(
        Weights.FULL,
        "numba: single tokens are multiplied by loops that numba compiles, on CPU.",
        choices=(Weights.FULL, Weights.NUMBA),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [arm for arm in self.arms if arm not in ARMS]:
            raise SettingsError(f"--pattern {unknown[0]}: expected one of {', '.join(ARMS)}")


@dataclass(frozen=True)
class TrainingBenchSettings(CheckedSettings):
    """How fast adapters are trained (paper section 3), three ways."""

    shape: str = setting("gpt2-6x512", "A known shape with random weights, or a model's folder.")
    windows: int = setting(2, "Windows that are trained on, by each way.", low=1, high=10_000)
    window_tokens: int = setting(512, "N: tokens of a window.", low=8, high=1 << 20)
    stride: int = setting(16, "s: targets between two retrievals.", low=1, high=4096)
    passage_tokens: int = setting(
        128, "m: the most tokens of a passage; the least are three quarters.", low=1, high=1 << 20
    )
    batch_size: int = setting(8, "Separate sequences in a batch.", low=1, high=4096)
    repeats: int = setting(3, "Measure everything so many times; medians count.", low=1, high=100)
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps.")
    dtype: str = setting("float32", "auto, float32 or bfloat16.")

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

    prompts: int = setting(2, "Texts to go on with, each from an empty cache.", low=1, high=1000)
    prompt_tokens: int = setting(384, "Tokens of each of them.", low=1, high=1 << 20)
    new_tokens: int = setting(
        96, "Tokens to time behind each, after a first stride.", low=1, high=1 << 20
    )
    repeats: int = setting(1, "Write everything so many times; medians count.", low=1, high=100)


@dataclass(frozen=True)
class EngineBenchSettings(CheckedSettings):
    """How fast this engine writes, against transformers' own cache and plain layers."""

    shape: str = setting("opt-125m", "A known shape with random weights, or a model's folder.")
    lengths: str = setting("512:1024", "FIRST:LAST positions; contexts end at LAST - m.")
    pattern: str = setting(
        "append", "Where passages go: none, prepend or append.", choices=PATTERNS
    )
    stride: int = setting(16, "s: tokens written between two retrievals.", low=2, high=4096)
    passage_tokens: int = setting(128, "m: the tokens of a passage.", low=1, high=1 << 20)
    repeats: int = setting(3, "Measure everything so many times; medians count.", low=1, high=100)
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps.")
    weights: Weights = setting(
        Weights.FULL,
        "numba: also measure with single tokens multiplied by its loops, on CPU.",
        choices=(Weights.FULL, Weights.NUMBA),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pattern == "slot":
            raise SettingsError("--pattern slot: transformers' cache has none; see 'bench runtime'")


@dataclass(frozen=True)
class BatchBenchSettings(CheckedSettings):
    """How fast several texts are written together."""

    shape: str = setting("opt-125m", "A known shape with random weights, or a model's folder.")
    batch_size: int = setting(8, "Texts, and rows of the batch.", low=2, high=4096)
    prompt_tokens: int = setting(
        512, "Tokens of the longest prompt; the shortest has half.", low=2, high=1 << 20
    )
    new_tokens: int = setting(64, "Tokens to write behind each prompt.", low=1, high=1 << 20)
    pattern: str = setting("append", "Where passages go.", choices=PATTERNS)
    stride: int = setting(16, "s: tokens written between two retrievals.", low=1, high=4096)
    passage_tokens: int = setting(128, "m: the tokens of a passage.", low=1, high=1 << 20)
    repeats: int = setting(3, "Measure everything so many times; medians count.", low=1, high=100)
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps.")
    dtype: str = setting("float32", "auto, float32 or bfloat16.")
