"""Our training settings as arguments of transformers' Trainer."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from flashback.errors import SettingsError, TrainingError
from flashback.readers.reader import Reader
from flashback.training.run import CHECKPOINTS
from flashback.training.training_settings import TrainingSettings


def loggers(names: Sequence[str]) -> list[TrainerCallback]:
    """Callbacks that report losses to other software.

    Raises:
        SettingsError: an unknown name, or one that is not installed.
    """
    try:
        return [callback() for callback in get_reporting_integration_callbacks(list(names))]
    except (ImportError, RuntimeError, ValueError) as error:
        raise SettingsError(f"--log-to: {' '.join(str(error).split())}") from error


def trainer_arguments(
    reader: Reader, out: Path, settings: TrainingSettings, evaluates: bool, bfloat16: bool
) -> TrainingArguments:
    """The Trainer's arguments.

    Args:
        evaluates: whether there are held-out examples.
        bfloat16: whether to compute in bfloat16 where that is safe.

    Raises:
        TrainingError: accelerate is not installed.
        SettingsError: settings that the Trainer refuses, or a device that it cannot take.
    """
    chosen = reader.placement.device
    try:
        arguments = TrainingArguments(
            output_dir=str(out / CHECKPOINTS),
            per_device_train_batch_size=settings.windows_per_step,
            gradient_accumulation_steps=settings.accumulation,
            max_steps=settings.steps,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=math.ceil(settings.warmup * settings.steps),
            max_grad_norm=settings.clip,
            seed=settings.seed,
            save_steps=settings.checkpoint_steps,
            save_total_limit=2,
            eval_strategy="steps" if evaluates else "no",
            eval_steps=settings.evaluation_steps,
            logging_steps=settings.log_steps,
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            bf16=bfloat16,
            use_cpu=chosen.type == "cpu",
            remove_unused_columns=False,
            label_names=["labels"],
        )
    except ImportError as error:
        raise TrainingError(
            f"{' '.join(str(error).split())} (or: pip install '.[train]' in a clone of the project)"
        ) from error
    except ValueError as error:
        raise SettingsError(" ".join(str(error).split())) from error
    _use_one_device(arguments, chosen)
    return arguments


def _use_one_device(arguments: TrainingArguments, chosen: torch.device) -> None:
    """Keep a single process on one device; several GPUs are for several processes.

    Raises:
        SettingsError: the Trainer takes another device than the chosen one.
    """
    if arguments.world_size > 1:
        return
    arguments._n_gpu = min(arguments.n_gpu, 1)
    if chosen.index not in (None, arguments.device.index):
        raise SettingsError(
            f"--device='{chosen}': training takes {arguments.device}; use --device='cuda' with "
            f"CUDA_VISIBLE_DEVICES={chosen.index}"
        )
