"""LoRA and the marking rows on a reader: what is trained, and nothing else."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from flashback.adapter import add_marks
from flashback.arrangement import Frame
from flashback.errors import SettingsError
from flashback.finetuning.settings import TrainingSettings
from flashback.reader import Reader
from flashback.settings import Marks

if TYPE_CHECKING:
    from peft import PeftModel

_QUERY_AND_VALUE = (
    ("q_proj", "v_proj"),
    ("query", "value"),
    ("query_key_value",),
    ("qkv_proj",),
    ("Wqkv",),
    ("c_attn",),
)
"""Names of the query and value projections; where they are one matrix with the keys', that one."""


def query_and_value(model: PreTrainedModel) -> tuple[str, ...]:
    """The names of a model's query and value projections.

    Raises:
        SettingsError: none of the known names occurs.
    """
    for names in _QUERY_AND_VALUE:
        if all(_layers_named(model, name) for name in names):
            return names
    raise SettingsError(
        f"the query and value projections of {model.config.model_type} are not known; name the "
        "layers with --lora-target"
    )


def _layers_named(model: PreTrainedModel, name: str) -> list[nn.Module]:
    return [
        layer
        for path, layer in model.named_modules()
        if (path == name or path.endswith("." + name)) and isinstance(layer, nn.Linear | Conv1D)
    ]


def add_lora(
    reader: Reader, settings: TrainingSettings
) -> tuple["PeftModel", Frame, tuple[int, int] | None]:
    """Put fresh LoRA weights, and marking tokens if they are wanted, on a reader.

    Returns:
        the model to train; what stands around passages; the marking tokens' ids.

    Raises:
        SettingsError: a layer that the model does not have.
    """
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(settings.seed)
    marks = None if settings.marks is Marks.NONE else add_marks(reader.tokenizer, reader.model)
    targets = settings.lora_targets or query_and_value(reader.model)
    chosen = [layer for name in targets for layer in _layers_named(reader.model, name)]
    missing = [name for name in targets if not _layers_named(reader.model, name)]
    if missing:
        raise SettingsError(f"--lora-target {missing[0]}: {reader.name} has no such linear layer")
    extra: dict[str, Any] = {}
    if settings.marks is Marks.TRAINED:
        extra["trainable_token_indices"] = list(marks or ())
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(targets),
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in chosen),
        task_type="CAUSAL_LM",
        **extra,
    )
    frame = Frame((marks[0],), (marks[1],)) if marks else Frame()
    return get_peft_model(reader.model, config), frame, marks


def save_lora(model: "PeftModel", folder: Path) -> None:
    """Write LoRA weights and trained marking rows in PEFT's format; never the whole embedding."""
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's form, to be filled in by hand


def load_lora(model: "PeftModel", folder: Path) -> None:
    """Read back what `save_lora` wrote, into the same model."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))
