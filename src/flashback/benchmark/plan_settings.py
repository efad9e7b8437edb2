"""The settings of `flashback plan`; importing them does not import PyTorch."""

from dataclasses import dataclass

from flashback.benchmark.bench_settings import SHAPES
from flashback.benchmark.devices import DEVICES, device_named, parse_efficiency
from flashback.declared import CheckedSettings, named, setting
from flashback.patterns.registry import PATTERNS
from flashback.settings import RECOMPUTED

_MODELS = f"One of {', '.join(SHAPES)}, or a model as other commands take it; weights are not read."


@dataclass(frozen=True)
class PlanSettings(CheckedSettings):
    """What is to be served, and on which devices."""

    model: str = setting("llama-2-7b", _MODELS)
    gpu: str = setting("h100", "The device.", choices=tuple(DEVICES))
    dtype: str = setting("bfloat16", "bfloat16 or float32.", choices=("bfloat16", "float32"))
    users: int = setting(100, "Texts that are written at the same time.", low=1, high=10**9)
    context: int = setting(2048, "Tokens of a text, in the mean.", low=1, high=1 << 24)
    patterns: tuple[str, ...] = setting(
        (),
        f"Plan only these of {', '.join(PATTERNS)} (repeatable; default: all).",
        flag="--pattern",
    )
    speed: float = setting(
        10.0, "Tokens per second that each user gets at least.", low=0.01, high=1e6
    )
    stride: int = setting(16, "s: tokens written between two retrievals.", low=2, high=4096)
    passage_tokens: int = setting(
        128, "Tokens of a stride's passages and their frames.", low=1, high=1 << 20
    )
    recompute_tokens: int = setting(
        RECOMPUTED, "e: in a slot, tokens computed again at a boundary.", low=1, high=1 << 20
    )
    unchanged: float = setting(
        0.0, "The share of strides whose passage is that of the stride before.", low=0.0, high=1.0
    )
    batch_size: int = setting(
        256,
        "Rows in a pass at most; 1: as the local engine of `flashback serve` runs them.",
        low=1,
        high=4096,
    )
    memory_share: float = setting(
        0.9, "The share of a device's memory for weights and caches.", low=0.01, high=1.0
    )
    efficiency: str = setting(
        "",
        "Shares of the device's peaks that are reached: reading weights, reading the cache, "
        "multiplying (default: as measured on an H100 or the CPU, by dtype).",
    )
    price: float = setting(
        0.0,
        "US dollars per device and hour (default: a round figure, of no price list).",
        low=0.0,
        high=1e6,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        device_named(self.gpu)
        for name in self.patterns:
            named("--pattern", name, list(PATTERNS))
        if self.efficiency:
            parse_efficiency(self.efficiency)
