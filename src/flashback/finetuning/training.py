"""The training loop: transformers' Trainer over packed passes.

The Trainer brings several devices (`torchrun`), mixed precision, gradient accumulation, schedules,
checkpoints and their exact resumption; ours are the loss, what a checkpoint holds, and stopping
with a reason.
"""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import set_seed

from flashback.adapter import CARD, AdapterCard, base_of, card_record
from flashback.errors import SettingsError, TrainingError
from flashback.files import sync_files, write_atomically
from flashback.finetuning.lora import add_lora, load_lora, save_lora
from flashback.finetuning.settings import TrainingSettings
from flashback.packing.forward import Arrangement, Example, TargetScorer
from flashback.packing.settings import WindowSettings
from flashback.reader import Reader
from flashback.records import versions
from flashback.settings import FrameText, RetrievalSettings

CHECKPOINTS = "checkpoints"
_RUN = "run.json"
_WHOLE = "whole"
"""The file that is written last into a checkpoint."""


@dataclass(frozen=True)
class Run:
    """Everything that decides what a training gives."""

    settings: TrainingSettings
    retrieval: RetrievalSettings
    windows: WindowSettings
    data: dict[str, Any] = field(default_factory=dict)
    """What is recorded of the documents and the index."""

    def identity(self, reader: Reader) -> str:
        """A text that is equal for runs that may be continued by one another."""
        parts = [asdict(self.settings), asdict(self.retrieval), asdict(self.windows), self.data]
        return json.dumps([asdict(base_of(reader)), *parts], indent=1, default=str) + "\n"


@dataclass(frozen=True)
class Progress:
    """How far a training is."""

    step: int
    steps: int
    targets: int
    """Target tokens trained on since this process began."""
    loss: float
    """Nats per target of the last step."""


OnStep = Callable[[Progress], None]


class PackedLoss(nn.Module):
    """A model whose forward pass is the mean loss of the targets of some examples."""

    def __init__(self, model: nn.Module, arrangement: Arrangement) -> None:
        super().__init__()
        self.model = model
        self._scorer = TargetScorer(model)
        self._arrangement = arrangement

    def forward(
        self,
        examples: list[Example],
        labels: Tensor,
        num_items_in_batch: Tensor | int | None = None,
        **_: Any,
    ) -> dict[str, Tensor]:
        """The loss in nats per target.

        Args:
            labels: all targets of the examples; their number makes gradient accumulation exact.
            num_items_in_batch: the targets of all batches of this step, on all devices.
        """
        scores = self._scorer.log_probs(examples, self._arrangement)
        total = -torch.stack([score.sum() for score in scores]).sum()
        return {
            "loss": total / (labels.numel() if num_items_in_batch is None else num_items_in_batch)
        }


class ExampleDataset(Dataset[Example]):
    """Examples by number."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, at: int) -> Example:
        return self._examples[at]


def collate(examples: list[Example]) -> dict[str, Any]:
    """A batch: the examples as they are, and their targets, which the Trainer counts."""
    targets = [
        token
        for example in examples
        for cut in example.window.cuts
        for token in example.window.targets(cut)
    ]
    return {"examples": examples, "labels": torch.tensor(targets)}


class _PackedTrainer(Trainer):
    """Checkpoints hold the adapter alone; a loss that is no number ends the run."""

    # The targets are not shifted again: what the Trainer counts are all of them.
    model: PackedLoss

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *rest: Any) -> Tensor:
        loss: Tensor = super().training_step(model, inputs, *rest)
        if not math.isfinite(float(loss)):
            titles = dict.fromkeys(
                example.window.document.title or example.window.document.id
                for example in inputs["examples"]
            )
            last = last_checkpoint(Path(str(self.args.output_dir)))
            kept = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
            raise TrainingError(
                f"the loss became {float(loss)} at step {self.state.global_step + 1}, on windows "
                f"of {', '.join(titles)}; {kept}; lower --learning-rate"
            )
        return loss

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_lora(self.model.model, folder)  # type: ignore[arg-type]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_lora(self.model.model, Path(resume_from_checkpoint))  # type: ignore[arg-type]

    def _save_checkpoint(self, *arguments: Any, **named: Any) -> None:
        folder = Path(str(self.args.output_dir), f"checkpoint-{self.state.global_step}")
        try:
            super()._save_checkpoint(*arguments, **named)
            if self.args.should_save:
                sync_files(folder)
                write_atomically(folder / _WHOLE, "")
        except (OSError, RuntimeError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            last = last_checkpoint(folder.parent)
            kept = f"the last good one is {last}" if last else "there is none yet"
            raise TrainingError(
                f"checkpoint {folder} cannot be written: {' '.join(str(error).split())} (is the "
                f"disk full?); {kept}; make room and run the same command again"
            ) from error


class _Report(TrainerCallback):
    """Hands the Trainer's counts on to whoever shows them."""

    def __init__(self, on_step: OnStep, targets_per_step: float) -> None:
        self._on_step = on_step
        self._targets_per_step = targets_per_step
        self._first: int | None = None
        self._loss = math.nan

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._first is None:
            self._first = state.global_step - 1
        done = int((state.global_step - self._first) * self._targets_per_step)
        self._on_step(Progress(state.global_step, state.max_steps, done, self._loss))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self._loss = (logs or {}).get("loss", self._loss)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is whole."""
    found = [path.parent for path in folder.glob(f"checkpoint-*/{_WHOLE}")]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def check_output(out: Path) -> None:
    """Refuse to train where something else is; a run that was interrupted may be continued.

    Raises:
        TrainingError: the folder holds an adapter, or something that is none of ours.
    """
    if (out / CARD).exists():
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
) -> AdapterCard:
    """Train an adapter; the same call goes on where an interrupted one was.

    Args:
        reader: without an adapter; afterwards its model carries the unmerged one.
        examples: windows with what was found for them.
        run: the settings.
        out: the adapter folder to make.
        held_out: what to evaluate on during training, if anything.
        log_to: names of loggers that transformers knows, such as `tensorboard`.
        on_step: called after every optimizer step.
        bfloat16: compute in bfloat16 where that is safe (autocast); weights stay as they are.

    Raises:
        TrainingError: nothing to train on, a loss that is no number, a checkpoint that cannot be
            written, another run's folder.
        SettingsError: a layer or a logger that is not there.
    """
    out = Path(out)
    check_output(out)
    if not examples:
        raise TrainingError("there is no window to train on; give longer documents")
    check_positions(reader, run.windows, run.retrieval)
    _claim(out, run.identity(reader))
    base = base_of(reader)
    set_seed(run.settings.seed)
    model, frame, marks = add_lora(reader, run.settings)
    loss = PackedLoss(model, Arrangement(run.retrieval.pattern, frame, marks or ()))
    targets = sum(example.window.target_count for example in examples) / len(examples)
    arguments = _arguments(reader, out, run.settings, log_to, bool(held_out), bfloat16)
    trainer = _PackedTrainer(
        loss,
        arguments,
        data_collator=collate,
        train_dataset=ExampleDataset(examples),
        eval_dataset=ExampleDataset(held_out) if held_out else None,
    )
    per_step = targets * arguments.train_batch_size * run.settings.accumulation
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Report(on_step, per_step * arguments.world_size))
    last = last_checkpoint(out / CHECKPOINTS)
    result = trainer.train(resume_from_checkpoint=None if last is None else str(last))
    card = AdapterCard(
        base=base,
        pattern=run.retrieval.pattern,
        marks=run.settings.marks,
        mark_ids=marks,
        stride=run.retrieval.stride,
        query_tokens=run.retrieval.query_tokens,
        passage_tokens=run.retrieval.passage_tokens,
        passages=run.retrieval.passages,
        window_tokens=run.windows.window_tokens,
        training=asdict(run.settings) | {"bfloat16": bfloat16, "windows": len(examples)},
        data=run.data,
        results={"training_loss": result.training_loss, "log": trainer.state.log_history},
        versions=versions(),
    )
    if trainer.is_world_process_zero():
        _publish(model, card, out)
    return card


def check_positions(reader: Reader, windows: WindowSettings, retrieval: RetrievalSettings) -> None:
    """Refuse windows that do not fit the reader with a passage.

    Raises:
        SettingsError: N + k·m + frame positions are more than it has.
    """
    needed = windows.window_tokens
    if retrieval.pattern.retrieves:
        frame = max(len(reader.frame(FrameText())), 2)
        needed += retrieval.passages * retrieval.passage_tokens + frame
    if needed > reader.window:
        raise SettingsError(
            f"windows of {windows.window_tokens} tokens with {retrieval.passages} x "
            f"{retrieval.passage_tokens} passage tokens need {needed} positions, but {reader.name} "
            f"has {reader.window} ({reader.window_reason}); lower --window-tokens or "
            "--passage-tokens"
        )


def _claim(out: Path, identity: str) -> None:
    """Make the folder this run's; an interrupted run of other settings is not continued."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / _RUN
    if not path.exists():
        write_atomically(path, identity)
    elif path.read_text("utf-8") != identity:
        raise TrainingError(
            f"adapter {out}: holds an interrupted training with other settings or documents; "
            "repeat that command to go on with it, or choose another --out"
        )


def _arguments(
    reader: Reader,
    out: Path,
    settings: TrainingSettings,
    log_to: Sequence[str],
    evaluates: bool,
    bfloat16: bool,
) -> TrainingArguments:
    try:
        return TrainingArguments(
            output_dir=str(out / CHECKPOINTS),
            per_device_train_batch_size=settings.windows_per_step,
            per_device_eval_batch_size=1,
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
            report_to=list(log_to) or "none",
            disable_tqdm=True,
            bf16=bfloat16,
            use_cpu=reader.placement.device.type == "cpu",
            remove_unused_columns=False,
            label_names=["labels"],
            prediction_loss_only=True,
        )
    except (ImportError, ValueError) as error:
        raise SettingsError(" ".join(str(error).split())) from error


def _publish(model: Any, card: AdapterCard, out: Path) -> None:
    """Write the adapter; its card last, which makes it one."""
    from flashback.finetuning.model_card import model_card

    save_lora(model, out)
    write_atomically(out / "README.md", model_card(card))
    sync_files(out)
    write_atomically(out / CARD, card_record(card))
    shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
    (out / _RUN).unlink(missing_ok=True)
