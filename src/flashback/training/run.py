"""A training from examples to an adapter folder: begun, gone on with, published."""

import contextlib
import hashlib
import json
import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PrinterCallback, TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from flashback.errors import SettingsError, TrainingError
from flashback.files import folder_locked, sync_files, write_atomically
from flashback.patterns.registry import PATTERNS
from flashback.readers.card import CARD, AdapterCard, card_record, read_card
from flashback.readers.fingerprint import base_of, computation_of
from flashback.readers.reader import Reader
from flashback.scoring.examples import Arrangement, Example
from flashback.scoring.window_settings import WindowSettings
from flashback.settings import AUTO, DEFAULT_FRAME, RetrievalSettings
from flashback.training.lora import add_lora, save_lora
from flashback.training.trainer import (
    ExampleDataset,
    OnStep,
    PackedLoss,
    PackedTrainer,
    Report,
    collate,
    last_checkpoint,
)
from flashback.training.training_settings import TrainingSettings
from flashback.writing.records import versions

CHECKPOINTS = "checkpoints"
_LOSSES = {"loss", "eval_loss"}
"""What the Trainer calls the losses of a training and of an evaluation in its log."""
_RUN = "run.json"


@dataclass(frozen=True)
class Run:
    """Everything that decides what a training gives."""

    settings: TrainingSettings
    retrieval: RetrievalSettings
    windows: WindowSettings
    data: dict[str, Any] = field(default_factory=dict)
    """What is recorded of the documents and the index."""

    def __post_init__(self) -> None:
        if self.retrieval.pattern == AUTO:
            raise SettingsError(
                "--pattern auto: an adapter is trained for passages in one place; expected one of "
                + ", ".join(PATTERNS)
            )

    def identity(self, reader: Reader, examples: Iterable[Example], **more: Any) -> str:
        """A text that is equal for runs that may be continued by one another.

        Args:
            more: whatever else decides the result.
        """
        parts = {
            "base": asdict(base_of(reader)),
            "computation": computation_of(reader.model),
            "dtype": reader.placement.dtype_name,
            "settings": asdict(self.settings),
            "retrieval": asdict(self.retrieval),
            "windows": asdict(self.windows),
            "data": self.data,
            "examples": _digest(examples),
            **more,
        }
        return json.dumps(parts, indent=1, default=str) + "\n"


def _digest(examples: Iterable[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        window = example.window
        cuts = [(cut.boundary, cut.start) for cut in window.cuts]
        own = (window.ids, window.bos, cuts, window.stride, example.passages)
        digest.update(repr(own).encode())
    return digest.hexdigest()


def check_output(out: Path) -> None:
    """Refuse to train where something else is; a run that was not closed may be continued.

    Raises:
        TrainingError: the folder holds an adapter, or something that is none of ours.
    """
    if (out / CARD).exists() and not (out / _RUN).exists():
        raise TrainingError(f"adapter {out}: exists already; choose another --out or remove it")
    if out.is_dir() and any(out.iterdir()) and not (out / _RUN).exists():
        raise TrainingError(f"adapter {out}: the folder is not empty; choose another --out")
    if out.exists() and not out.is_dir():
        raise TrainingError(f"adapter {out}: a file is in the way; choose another --out")


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
    """Train an adapter; the same call goes on where an interrupted one was.

    Args:
        reader: without an adapter; afterwards its model carries this one, unmerged.
        examples: windows with what was found for them.
        run: the settings.
        out: the adapter folder to make.
        held_out: what to evaluate on during training, if anything.
        log_to: names of loggers that transformers knows, such as `tensorboard`.
        on_step: called after every optimizer step.
        bfloat16: compute in bfloat16 where that is safe (autocast); weights stay as they are.
        close: False: there is more to do with the adapter before the run is over, so that the same
            call finds it finished instead of refusing its folder; then `close_run`.

    Raises:
        TrainingError: nothing to train on, a reader with an adapter, a loss that is no number, a
            checkpoint that cannot be written, another run's folder, or one that is in use.
        SettingsError: a layer or a logger that is not there.
    """
    out = Path(out)
    check_output(out)
    if not examples:
        raise TrainingError("there is no window to train on; give longer documents")
    if reader.adapter is not None or hasattr(reader.model, "peft_config"):
        raise TrainingError(f"{reader.name} has an adapter on it; load it anew, without one")
    check_positions(reader, run.windows, run.retrieval, run.settings.frame_tokens)
    callbacks = loggers(log_to)
    arguments = _arguments(reader, out, run.settings, bool(held_out), bfloat16)
    more = {"bfloat16": bfloat16, "processes": arguments.world_size}
    identity = run.identity(reader, examples, **more)
    base = base_of(reader)
    nn.Module.to(reader.model, arguments.device)
    trained = (out / CARD).exists()  # and not closed
    added = None if trained else add_lora(reader, run.settings)
    with _alone(out, arguments):
        _claim(out, identity, arguments)
        if added is None:
            card = read_card(out)
        else:
            model, frame, marks = added
            arrangement = Arrangement(run.retrieval.pattern, frame, marks or reader.forbidden)
            trainer = PackedTrainer(
                PackedLoss(model, arrangement),
                arguments,
                data_collator=collate,
                train_dataset=ExampleDataset(examples),
                eval_dataset=ExampleDataset(held_out) if held_out else None,
                callbacks=[*callbacks, Report(on_step, _targets_per_step(examples, arguments))],
            )
            about = {"windows": len(examples), "processes": arguments.world_size}
            card = _trained(trainer, run, out, about, base=base, mark_ids=marks)
    if close and arguments.process_index == 0:
        close_run(out)
    return card


def close_run(out: Path) -> None:
    """Nothing is left to do with an adapter: its folder is refused from now on."""
    (out / _RUN).unlink(missing_ok=True)


@contextlib.contextmanager
def _alone(out: Path, arguments: TrainingArguments) -> Iterator[None]:
    """Keep other trainings out of the folder, but for the processes of this one.

    Raises:
        TrainingError: another training is in it.
    """
    if arguments.process_index != 0:
        yield
        return
    out.mkdir(parents=True, exist_ok=True)
    with folder_locked(out) as alone:
        if not alone:
            raise TrainingError(f"adapter {out}: another training writes into it; wait for it")
        yield


def _trained(
    trainer: PackedTrainer, run: Run, out: Path, about: dict[str, Any], **more: Any
) -> AdapterCard:
    """Train to the end, and publish the adapter.

    Args:
        about: the training, for the adapter's card.
        more: of the card.
    """
    trainer.remove_callback(PrinterCallback)
    trainer.run(last_checkpoint(out / CHECKPOINTS))
    model = trainer.model.model
    model.eval()
    log = [entry for entry in trainer.state.log_history if entry.keys() & _LOSSES]
    card = _card(
        run,
        training=asdict(run.settings) | {"bfloat16": trainer.args.bf16} | about,
        results={"training_loss": _mean_loss(log), "log": log},
        **more,
    )
    if trainer.is_world_process_zero():
        _publish(model, card, out)
    return card


def _targets_per_step(examples: Sequence[Example], arguments: TrainingArguments) -> float:
    """On average, on all devices; a step ends with the last window of an epoch."""
    targets = sum(example.window.target_count for example in examples) / len(examples)
    batches = arguments.gradient_accumulation_steps * arguments.world_size
    return float(targets * min(arguments.train_batch_size * batches, len(examples)))


def _card(run: Run, **more: Any) -> AdapterCard:
    retrieval = run.retrieval
    return AdapterCard(
        pattern=retrieval.pattern,
        marks=run.settings.marks,
        echo_tokens=run.settings.echo_tokens,
        stride=retrieval.stride,
        query_tokens=retrieval.query_tokens,
        passage_tokens=retrieval.passage_tokens,
        passages=retrieval.passages,
        window_tokens=run.windows.window_tokens,
        data=run.data,
        versions=versions(),
        **more,
    )


def _mean_loss(log: Sequence[dict[str, Any]]) -> float:
    """Of all steps; an entry is the mean of the steps since the one before."""
    total, step = 0.0, 0
    for entry in log:
        if "loss" in entry:
            total += entry["loss"] * (entry["step"] - step)
            step = entry["step"]
    return total / step


def check_positions(
    reader: Reader, windows: WindowSettings, retrieval: RetrievalSettings, frame: int | None = None
) -> None:
    """Refuse windows that do not fit the reader with a passage.

    Args:
        frame: tokens around passages; None: the most there are without asking for more.

    Raises:
        SettingsError: N + k·m + frame positions are more than it has.
    """
    needed, passages, advice = windows.window_tokens, "", ""
    if retrieval.retrieves:
        text = reader.frame(DEFAULT_FRAME, retrieval.pattern)
        around = max(len(text), 2) if frame is None else frame
        needed += retrieval.passages * retrieval.passage_tokens + around
        passages = (
            f" with {retrieval.passages} x {retrieval.passage_tokens} passage and {around} frame "
            "tokens"
        )
        advice = " or --passage-tokens"
    if needed > reader.window:
        raise SettingsError(
            f"windows of {windows.window_tokens} tokens{passages} need {needed} positions, but "
            f"{reader.name} has {reader.window} ({reader.window_reason}); lower "
            f"--window-tokens{advice}"
        )


def _claim(out: Path, identity: str, arguments: TrainingArguments) -> None:
    """Make the folder this run's, before any other process of it looks.

    Raises:
        TrainingError: it holds an interrupted run of other settings, with a checkpoint.
    """
    state = arguments.distributed_state
    assert state is not None
    state.wait_for_everyone()  # all have seen the folder as it was
    with state.main_process_first():
        out.mkdir(parents=True, exist_ok=True)
        path = out / _RUN
        if path.exists() and path.read_bytes() == identity.encode():
            return
        if (out / CARD).exists() or last_checkpoint(out / CHECKPOINTS) is not None:
            raise TrainingError(
                f"adapter {out}: holds an interrupted training with other settings or documents; "
                "repeat that command to go on with it, or choose another --out"
            )
        write_atomically(path, identity)


def loggers(names: Sequence[str]) -> list[TrainerCallback]:
    """What hands losses on to a service.

    Raises:
        SettingsError: an unknown name, or one that is not installed.
    """
    try:
        return [callback() for callback in get_reporting_integration_callbacks(list(names))]
    except (ImportError, RuntimeError, ValueError) as error:
        raise SettingsError(f"--log-to: {' '.join(str(error).split())}") from error


def _arguments(
    reader: Reader, out: Path, settings: TrainingSettings, evaluates: bool, bfloat16: bool
) -> TrainingArguments:
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
    if arguments.world_size == 1:
        arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs are for several processes
        if chosen.index not in (None, arguments.device.index):
            raise SettingsError(
                f"--device {chosen}: training takes {arguments.device}; use --device cuda with "
                f"CUDA_VISIBLE_DEVICES={chosen.index}"
            )
    return arguments


def _publish(model: Any, card: AdapterCard, out: Path) -> None:
    """Write the adapter; its card last, which makes it one.

    Raises:
        TrainingError: the disk is full, or the folder not writable.
    """
    from flashback.training.model_card import model_card

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
