"""The training loop: transformers' Trainer over packed passes.

The Trainer provides several devices (`torchrun`), mixed precision, gradient accumulation, learning
rate schedules, checkpoints and their exact resumption; ours are the loss, the content of a
checkpoint, and errors that give a reason.
"""

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainerState

from flashback.errors import TrainingError
from flashback.files import sync_files, write_atomically
from flashback.readers.adapter import load_lora
from flashback.readers.lora import save_lora
from flashback.scoring.examples import Arrangement, Example
from flashback.scoring.targets import TargetScorer

_WHOLE = "whole"
"""The file that is written last into a checkpoint."""


@dataclass(frozen=True)
class Progress:
    """Progress of a training."""

    step: int
    steps: int
    targets: int
    """Target tokens trained on since this process began."""
    loss: float
    """Nats per target, the mean of the steps last logged; NaN before the first are."""


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


class PackedTrainer(Trainer):
    """A Trainer whose checkpoints hold the adapter alone; a loss that is not finite is an error."""

    model: PackedLoss

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *rest: Any) -> Tensor:
        loss: Tensor = super().training_step(model, inputs, *rest)
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        size = float(nn.utils.get_total_norm(gradients))
        if not math.isfinite(float(loss)) or not math.isfinite(size):
            titles = dict.fromkeys(
                example.window.document.title or example.window.document.id
                for example in inputs["examples"]
            )
            last = last_checkpoint(Path(str(self.args.output_dir)))
            kept = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
            raise TrainingError(
                f"the loss became {float(loss)}, its gradient {size}, at step "
                f"{self.state.global_step + 1} on windows of {', '.join(titles)}; {kept}; lower "
                "--learning-rate, with another --out"
            )
        return loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The mean loss of all held-out targets, over all windows and devices.

        It draws no random numbers, so it does not change the training.
        """
        held_out: Any = self.eval_dataset
        self.model.eval()
        total = torch.zeros(2, device=self.args.device)
        with torch.no_grad():
            for at in range(self.args.process_index, len(held_out), self.args.world_size):
                batch = collate([held_out[at]])
                targets = batch["labels"].numel()
                total += torch.tensor([float(self.model(**batch)["loss"]) * targets, targets]).to(
                    total.device
                )
        total = self.accelerator.reduce(total)
        metrics = {"eval_loss": float(total[0] / total[1])}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def run(self, last: Path | None) -> None:
        """Train to the end, from a checkpoint if there is one.

        Args:
            last: the newest checkpoint; that of the last step is only loaded.
        """
        if last is None or _step_of(last) < self.args.max_steps:
            self.train(resume_from_checkpoint=None if last is None else str(last))
        else:  # where `train` would make another step
            self._load_from_checkpoint(str(last))
            self.state = TrainerState.load_from_json(str(last / "trainer_state.json"))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_lora(self.model.model, folder)  # type: ignore[arg-type]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_lora(self.model.model, Path(resume_from_checkpoint))  # type: ignore[arg-type]

    def _save_checkpoint(self, *arguments: Any, **named: Any) -> None:
        folder = Path(str(self.args.output_dir), f"checkpoint-{self.state.global_step}")
        try:
            super()._save_checkpoint(*arguments, **named)
            self.accelerator.wait_for_everyone()  # each writes the state of its random numbers
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


class Report(TrainerCallback):
    """Reports the progress of a training."""

    def __init__(self, on_step: OnStep, targets_per_step: float) -> None:
        self._on_step = on_step
        self._targets_per_step = targets_per_step
        self._first: int | None = None
        self._loss = math.nan

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % args.save_steps == 0 or state.global_step >= state.max_steps:
            control.should_log = True  # so that a checkpoint holds the losses of all its steps
        if self._first is None:
            self._first = state.global_step - 1
        done = int((state.global_step - self._first) * self._targets_per_step)
        self._on_step(Progress(state.global_step, state.max_steps, done, self._loss))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self._loss = (logs or {}).get("loss", self._loss)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written completely."""
    found = [path.parent for path in folder.glob(f"checkpoint-*/{_WHOLE}")]
    return max(found, key=_step_of, default=None)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
