"""Settings of the benchmarks; importing them does not import PyTorch."""

from dataclasses import dataclass
from typing import Any

from flashback.benchmark.arms import all_arms, arm_named
from flashback.declared import CheckedSettings, setting
from flashback.errors import SettingsError
from flashback.patterns.registry import PATTERNS
from flashback.readers.weight_settings import Weights
from flashback.scoring.window_settings import WindowSettings
from flashback.settings import RECOMPUTED


def _opt(hidden: int, layers: int) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "word_embed_proj_dim": hidden, "ffn_dim": 4 * hidden}
    return {"model_type": "opt", **sizes, "num_hidden_layers": layers, "num_attention_heads": 32}


SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2"},
    "gpt2-6x512": {"model_type": "gpt2", "n_layer": 6, "n_embd": 512, "n_head": 8},
    "opt-125m": {"model_type": "opt"},
    "opt-1.3b": _opt(2048, 24),
    "opt-6.7b": _opt(4096, 32),
    "llama-2-7b": {"model_type": "llama", "max_position_embeddings": 4096},
    "llama-2-7b-16k": {"model_type": "llama", "max_position_embeddings": 16384 + 512},
    "smollm2-135m": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "llama-3.2-1b": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
    },
    "qwen3-0.6b": {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": True,
    },
}
"""Of known models: arguments of `transformers.AutoConfig.for_model`; its defaults for the rest."""
_SHAPE = f"One of {', '.join(SHAPES)}, with random weights; a folder, as ./NAME; or flashback-mini."
_DTYPE = "auto, float32 or bfloat16."
PRECISIONS = ("float32", "bfloat16", "int8")
"""Of weights, as `bench engine` compares them."""


@dataclass(frozen=True)
class ModelBenchSettings(CheckedSettings):
    """Settings that the benchmarks of a model share."""

    shape: str = setting("opt-125m", _SHAPE)
    stride: int = setting(16, "s: tokens written between two retrievals.", low=1, high=4096)
    passage_tokens: int = setting(128, "m: the tokens of a passage.", low=1, high=1 << 20)
    repeats: int = setting(3, "Measure everything so many times; medians count.", low=1, high=100)
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps.")


@dataclass(frozen=True)
class SweepSettings(ModelBenchSettings):
    """A text that grows stride by stride."""

    stride: int = setting(16, "s: tokens written between two retrievals.", low=2, high=4096)
    lengths: str = setting("512:1024", "FIRST:LAST positions; contexts end at LAST - m.")
    weights: Weights = setting(
        Weights.FULL,
        "numba: measure single tokens multiplied by loops that numba compiles, too, on CPU.",
        choices=(Weights.FULL, Weights.NUMBA),
    )


@dataclass(frozen=True)
class RuntimeSettings(SweepSettings):
    """The paper's run-time test (section 4.3)."""

    repeats: int = setting(1, "Measure everything so many times; medians count.", low=1, high=100)
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
        256, "The most memory for keys and values of passages, MB.", low=0, high=1 << 30
    )
    recompute_tokens: int = setting(
        RECOMPUTED, "e: in a slot, tokens computed again at a boundary.", low=1, high=1 << 20
    )
    dtype: str = setting("float32", _DTYPE)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.arms:
            arm_named(name)


@dataclass(frozen=True)
class EngineBenchSettings(SweepSettings):
    """Settings of `bench engine`: decoding here and with transformers' cache and layers."""

    pattern: str = setting(
        "append", "Where passages go: none, prepend or append.", choices=PATTERNS
    )
    precisions: tuple[str, ...] = setting(
        (),
        f"Measure only these of {', '.join(PRECISIONS)} (repeatable; default: all that the device "
        "has), beside dynamic float32.",
        flag="--precision",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.precisions:
            if name not in PRECISIONS:
                raise SettingsError(
                    f"--precision={name!r}: expected one of {', '.join(PRECISIONS)}"
                )
        if PATTERNS[self.pattern].isolated:
            raise SettingsError(
                f"--pattern={self.pattern!r}: transformers' cache has none; see 'bench runtime'"
            )


@dataclass(frozen=True)
class BatchBenchSettings(ModelBenchSettings):
    """Settings of `bench batch`: several texts decoded together."""

    batch_size: int = setting(8, "Texts, and rows of the batch.", low=2, high=4096)
    prompt_tokens: int = setting(
        512, "Tokens of the longest prompt; the shortest has half.", low=2, high=1 << 20
    )
    new_tokens: int = setting(64, "Tokens to write behind each prompt.", low=1, high=1 << 20)
    pattern: str = setting("append", "Where passages go.", choices=PATTERNS)
    dtype: str = setting("float32", _DTYPE)


@dataclass(frozen=True)
class TrainingBenchSettings(ModelBenchSettings):
    """Settings of `bench training`: three ways to train an adapter (paper section 3)."""

    shape: str = setting("gpt2-6x512", _SHAPE)
    stride: int = setting(16, "s: targets between two retrievals.", low=1, high=4096)
    passage_tokens: int = setting(
        128, "m: the most tokens of a passage; the least are three quarters.", low=1, high=1 << 20
    )
    windows: int = setting(2, "Windows that are trained on, by each way.", low=1, high=10_000)
    window_tokens: int = setting(512, "N: tokens of a window.", low=8, high=1 << 20)
    batch_size: int = setting(8, "Separate sequences in a batch.", low=1, high=4096)
    dtype: str = setting("float32", _DTYPE)

    def __post_init__(self) -> None:
        super().__post_init__()
        least = self.first_boundary + self.stride
        if self.window_tokens < least:
            raise SettingsError(
                f"--window-tokens={self.window_tokens}: expected at least {least}, "
                f"{self.first_boundary} before the first boundary and a stride of {self.stride}"
            )

    @property
    def first_boundary(self) -> int:
        """Tokens of a window before its first targets: the default of training."""
        return WindowSettings().first_boundary


@dataclass(frozen=True)
class ParetoSettings(CheckedSettings):
    """Settings of the speed measurement in `bench pareto`."""

    prompts: int = setting(2, "Prompts to continue, each from an empty cache.", low=1, high=1000)
    prompt_tokens: int = setting(384, "Tokens of each of them.", low=1, high=1 << 20)
    new_tokens: int = setting(
        96, "Tokens to time behind each, after a first stride.", low=1, high=1 << 20
    )
    repeats: int = setting(1, "Write everything so many times; medians count.", low=1, high=100)
