"""Every setting of a training, typed, with its unit, checked when it is made."""

from dataclasses import dataclass

from flashback.declared import setting
from flashback.readers.lora_settings import LoraSettings


@dataclass(frozen=True)
class TrainingSettings(LoraSettings):
    """Settings of a training (paper section 4.1 and its code)."""

    learning_rate: float = setting(1e-3, "Of AdamW, at its peak.", low=0.0, high=10.0)
    steps: int = setting(500, "Optimizer steps.", low=1, high=10_000_000)
    windows_per_step: int = setting(4, "Windows in a batch, on each device.", low=1, high=1 << 20)
    strides: int = setting(
        0,
        "Strides of a window that are trained on, drawn at random; 0: all. Fewer cost less.",
        low=0,
        high=1 << 20,
        flag="--train-strides",
    )
    accumulation: int = setting(1, "Batches to an optimizer step.", low=1, high=1 << 20)
    warmup: float = setting(
        0.1,
        "Share of the steps in which the learning rate rises; a cosine follows.",
        low=0.0,
        high=1.0,
    )
    clip: float = setting(1.0, "Largest norm of a step's gradient.", low=1e-6, high=1e6)
    seed: int = setting(
        0, "Decides new weights, the order of windows, dropout.", low=0, high=(1 << 32) - 1
    )
    checkpoint_steps: int = setting(100, "Steps between checkpoints.", low=1, high=10_000_000)
    evaluation_steps: int = setting(
        100, "Steps between evaluations, if there are documents for it.", low=1, high=10_000_000
    )
    log_steps: int = setting(10, "Steps between logged losses.", low=1, high=10_000_000)
