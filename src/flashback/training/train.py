"""A training from examples to an adapter folder; an interrupted one continues."""

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from flashback.errors import TrainingError
from flashback.files import sync_files, write_atomically
from flashback.patterns.frame import Frame
from flashback.patterns.prompt import Ids
from flashback.readers.card import CARD, AdapterCard, Base, card_record, read_card
from flashback.readers.fingerprint import base_of
from flashback.readers.inference import for_training
from flashback.readers.lora import add_lora, save_lora
from flashback.readers.reader import Reader
from flashback.scoring.examples import Arrangement, Example
from flashback.scoring.windows import check_positions
from flashback.training.arguments import loggers, trainer_arguments
from flashback.training.model_card import model_card
from flashback.training.run import CHECKPOINTS, Run, check_output, claim, close_run, locked
from flashback.training.trainer import (
    ExampleDataset,
    OnStep,
    PackedLoss,
    PackedTrainer,
    Report,
    collate,
    last_checkpoint,
)
from flashback.version import versions

if TYPE_CHECKING:
    from peft import PeftModel

_LOSSES = {"loss", "eval_loss"}
"""The Trainer's names for training and evaluation loss in its log."""


def train(
    reader: Reader,
    examples: Sequence[Example],
    run: Run,
    out: str | Path,
    *,
    held_out: Sequence[Example] = (),
    log_to: Sequence[str] = (),
    on_step: OnStep = lambda _: None,
    bfloat16: bool = False,
    close: bool = True,
) -> AdapterCard:
    """Train an adapter; the same call continues an interrupted training.

    Args:
        reader: without an adapter; its model carries the new one afterwards, unmerged.
        out: the adapter folder to make.
        held_out: what to evaluate on during training.
        log_to: loggers that transformers knows, such as `tensorboard`.
        on_step: called after every optimizer step.
        bfloat16: compute in bfloat16 where that is safe (autocast); weights stay as they are.
        close: False: the caller will call `close_run`; until then, the same call returns the
            finished adapter instead of refusing its folder.

    Raises:
        TrainingError: nothing to train on, an adapter on the reader, a loss that is not finite, a
            checkpoint that cannot be written, or a folder of another run, or one in use.
        SettingsError: an unknown layer or logger.
    """
    out = Path(out)
    examples = [one.drawn(run.settings.strides, run.settings.seed) for one in examples]
    _check_inputs(reader, examples, run, out)
    callbacks = loggers(log_to)
    arguments = trainer_arguments(reader, out, run.settings, bool(held_out), bfloat16)
    identity = run.identity(reader, examples, bfloat16=bfloat16, processes=arguments.world_size)
    job = _Job(run, out, arguments, base_of(reader), examples, held_out)
    nn.Module.to(reader.model, arguments.device)
    finished = (out / CARD).exists()  # and not closed
    added = None if finished else add_lora(reader, run.settings, run.settings.seed)
    with locked(out, arguments):
        claim(out, identity, arguments)
        callbacks.append(Report(on_step, _targets_per_step(examples, arguments)))
        card = read_card(out) if added is None else job.train(*added, reader.forbidden, callbacks)
    if close and arguments.process_index == 0:
        close_run(out)
    return card


def _check_inputs(reader: Reader, examples: Sequence[Example], run: Run, out: Path) -> None:
    check_output(out)
    if not examples:
        raise TrainingError("there is no window to train on; give longer documents")
    if not any(example.window.target_count for example in examples):
        raise TrainingError("no window has a target; give longer documents, or a shorter --stride")
    if run.retrieval.retrieves and not any(any(example.passages) for example in examples):
        raise TrainingError(
            f"no window has a passage, which --pattern={run.retrieval.pattern!r} would be trained "
            "to read; give an index of other texts"
        )
    if reader.adapter is not None or hasattr(reader.model, "peft_config"):
        raise TrainingError(f"{reader.name} has an adapter on it; load it anew, without one")
    check_positions(reader, run.windows, run.retrieval, reader.frame_tokens(run.settings))


@dataclass(frozen=True)
class _Job:
    """A training that has been checked."""

    run: Run
    out: Path
    arguments: TrainingArguments
    base: Base
    examples: Sequence[Example]
    held_out: Sequence[Example]

    def train(
        self,
        model: "PeftModel",
        frame: Frame,
        marks: tuple[int, int] | None,
        forbidden: Ids,
        callbacks: list[TrainerCallback],
    ) -> AdapterCard:
        """Train to the end, and publish the adapter.

        Args:
            model, frame, marks: see `add_lora`.
            forbidden: ids that are never targets, where there are no marks.
        """
        arrangement = Arrangement(self.run.retrieval.pattern, frame, marks or forbidden)
        trainer = PackedTrainer(
            PackedLoss(model, arrangement),
            self.arguments,
            data_collator=collate,
            train_dataset=ExampleDataset(self.examples),
            eval_dataset=ExampleDataset(self.held_out) if self.held_out else None,
            callbacks=callbacks,
        )
        trainer.remove_callback(PrinterCallback)
        # Under autocast weights are cast in every pass.
        packed = contextlib.nullcontext() if self.arguments.bf16 else for_training(model).packed()
        with packed:
            trainer.run(last_checkpoint(self.out / CHECKPOINTS))
        model.eval()
        card = self._card(marks, [one for one in trainer.state.log_history if one.keys() & _LOSSES])
        if trainer.is_world_process_zero():
            _publish(model, card, self.out)
        return card

    def _card(self, marks: tuple[int, int] | None, log: list[dict[str, Any]]) -> AdapterCard:
        """The adapter's card.

        Args:
            log: the losses.
        """
        settings, retrieval = self.run.settings, self.run.retrieval
        about = {
            "bfloat16": self.arguments.bf16,
            "windows": len(self.examples),
            "processes": self.arguments.world_size,
        }
        return AdapterCard(
            base=self.base,
            pattern=retrieval.pattern,
            marks=settings.marks,
            mark_ids=marks,
            echo_tokens=settings.echo_tokens,
            frame_before=settings.text_before,
            stride=retrieval.stride,
            query_tokens=retrieval.query_tokens,
            query_form=retrieval.query_form,
            passage_tokens=retrieval.passage_tokens,
            passages=retrieval.passages,
            window_tokens=self.run.windows.window_tokens,
            training=asdict(settings) | about,
            data=self.run.data,
            results={"training_loss": _mean_loss(log), "log": log},
            versions=versions(),
        )


def _targets_per_step(examples: Sequence[Example], arguments: TrainingArguments) -> float:
    """The mean, over all devices; a step ends with the last window of an epoch."""
    targets = sum(example.window.target_count for example in examples) / len(examples)
    batches = arguments.gradient_accumulation_steps * arguments.world_size
    return float(targets * min(arguments.train_batch_size * batches, len(examples)))


def _mean_loss(log: Sequence[dict[str, Any]]) -> float:
    """The mean over all steps; an entry is the mean of the steps since the entry before."""
    total, step = 0.0, 0
    for entry in log:
        if "loss" in entry:
            total += entry["loss"] * (entry["step"] - step)
            step = entry["step"]
    return total / step


def _publish(model: Any, card: AdapterCard, out: Path) -> None:
    """Write the adapter, its card last: without one, the folder is no adapter.

    Raises:
        TrainingError: the disk is full, or the folder not writable.
    """
    try:
        save_lora(model, out)
        write_atomically(out / "README.md", model_card(card))
        sync_files(out)
        write_atomically(out / CARD, card_record(card))
    except OSError as error:
        raise TrainingError(
            f"adapter {out} cannot be written: {' '.join(str(error).split())}; the training is "
            "kept; make room and run the same command again"
        ) from error
    for checkpoint in (out / CHECKPOINTS).glob("checkpoint-*"):
        shutil.rmtree(checkpoint, ignore_errors=True)
    with contextlib.suppress(OSError):
        (out / CHECKPOINTS).rmdir()  # unless a logger has written into it
