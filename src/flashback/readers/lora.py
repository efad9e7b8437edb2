"""New LoRA weights and marking rows on a reader: the parameters that training changes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from flashback.errors import SettingsError
from flashback.patterns.frame import Frame
from flashback.readers.adapter import add_marks, wrap
from flashback.readers.card import WEIGHTS
from flashback.readers.lora_settings import LoraSettings, Marks
from flashback.readers.reader import Reader

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
    reader: Reader, settings: LoraSettings, seed: int
) -> tuple["PeftModel", Frame, tuple[int, int] | None]:
    """Put new LoRA weights, and marking tokens if the settings have them, on a reader.

    Args:
        seed: decides the new weights.

    Returns:
        the model to train; the frame of passages; the ids of the marking tokens.

    Raises:
        SettingsError: the model has no layer of such a name.
    """
    from peft import LoraConfig

    from flashback.readers.marking_rows import use_marking_rows

    targets = settings.lora_targets or query_and_value(reader.model)
    chosen = _chosen_layers(reader, targets)
    torch.manual_seed(seed)
    marks = None if settings.marks is Marks.NONE else add_marks(reader.tokenizer, reader.model)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(targets),
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in chosen),
        # Frozen rows too are kept with the adapter: the base may have none for these tokens.
        trainable_token_indices=None if marks is None else list(marks),
        task_type="CAUSAL_LM",
    )
    before, after = ((marks[0],), (marks[1],)) if marks else ((), ())
    before = (*reader.frame_ids(settings.text_before), *before)
    frame = Frame(before, after, settings.echo_tokens, sink=reader.bos)
    model = wrap(reader.model, config)
    use_marking_rows(model)
    config.base_model_name_or_path = reader.name  # PEFT takes the folder it was loaded from
    if settings.marks is Marks.FROZEN:
        _freeze_rows(model)
    return model, frame, marks


def _chosen_layers(reader: Reader, targets: Sequence[str]) -> list[nn.Module]:
    """The layers of these names.

    Raises:
        SettingsError: there is none of a name, or one shares its weight with the embedding.
    """
    embedding = reader.model.get_input_embeddings().weight
    chosen = []
    for name in targets:
        layers = _layers_named(reader.model, name)
        if not layers:
            raise SettingsError(f"--lora-target={name!r}: {reader.name} has no such linear layer")
        if any(layer.weight is embedding for layer in layers):
            raise SettingsError(
                f"--lora-target={name!r}: its weight is the embedding's too, and would change with "
                "it; choose other layers"
            )
        chosen += layers
    return chosen


def _freeze_rows(model: "PeftModel") -> None:
    for name, parameter in model.named_parameters():
        if "trainable_tokens_delta" in name:
            parameter.requires_grad = False


def save_lora(model: "PeftModel", folder: Path) -> None:
    """Write LoRA weights and marking rows in PEFT's format; never the whole embedding.

    Raises:
        OSError: the disk is full, or the folder not writable.
    """
    from safetensors import SafetensorError

    # PEFT's model card is an empty form, and writing it takes longer than the weights.
    model.create_or_update_model_card = lambda output_dir: None  # type: ignore[method-assign]
    try:
        model.save_pretrained(str(folder), save_embedding_layers=False)
    except SafetensorError as error:
        raise OSError(f"{folder}: {error}") from error
    (folder / WEIGHTS).chmod(0o644)  # safetensors lets only the owner read
