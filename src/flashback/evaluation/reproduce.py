"""The paper's table (table 2) on any reader, index and documents: trainings and scores, resumable.

OUT/
├── adapters/NAME/     one adapter for each trained row, as `flashback train` makes them
├── scores/            each finished row
├── table.json, table.md, table.png, documents.jsonl
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from flashback.adapter import CARD, read_card
from flashback.evaluation.arms import Arm, FrameKind, arm_of, untrained_arms
from flashback.packing.forward import Example
from flashback.reader import Reader
from flashback.settings import Marks, Pattern

if TYPE_CHECKING:
    from flashback.finetuning.training import OnStep, Run

NAIVE_FRAMES = (FrameKind.BARE, FrameKind.TEXT, FrameKind.EOS)
"""What an untrained reader is shown around passages."""


@dataclass(frozen=True)
class Recipe:
    """One adapter of the table."""

    pattern: Pattern
    marks: Marks

    @property
    def name(self) -> str:
        """Of its folder: `append-trained`, `none`."""
        return self.pattern if self.pattern is Pattern.NONE else f"{self.pattern}-{self.marks}"


def recipes() -> list[Recipe]:
    """All adapters of the table: none; prepend and append with no, frozen and trained marks."""
    return [
        Recipe(Pattern.NONE, Marks.NONE),
        *(
            Recipe(pattern, marks)
            for pattern in (Pattern.PREPEND, Pattern.APPEND)
            for marks in (Marks.NONE, Marks.FROZEN, Marks.TRAINED)
        ),
    ]


def arms(out: Path, *, trained: bool = True) -> list[Arm]:
    """All rows, in the paper's order; the adapters must be there.

    Args:
        trained: False leaves out the rows with adapters.
    """
    found = [
        Arm(Pattern.NONE),
        Arm(Pattern.NONE, shortened=True),
        *untrained_arms([Pattern.PREPEND, Pattern.APPEND], NAIVE_FRAMES),
    ]
    if trained:
        for recipe in recipes():
            folder = adapter_folder(out, recipe)
            found.append(arm_of(folder, read_card(folder), recipe.pattern))
    return found


def adapter_folder(out: Path, recipe: Recipe) -> Path:
    """Where an adapter of the table lies."""
    return out / "adapters" / recipe.name


def train_missing(
    out: Path,
    load: Callable[[], Reader],
    examples: Sequence[Example],
    run: "Run",
    show: "Callable[[str], AbstractContextManager[OnStep]]",
) -> None:
    """Train every adapter that is not there yet, each on the same windows for the same steps.

    Args:
        load: loads the reader, anew at every call.
        run: settings; pattern and marks are replaced.
        show: a progress bar for a training of this name.

    Raises:
        TrainingError: see `train`.
    """
    from flashback.finetuning.training import train

    for recipe in recipes():
        folder = adapter_folder(out, recipe)
        if (folder / CARD).exists():
            continue
        own = replace(
            run,
            settings=replace(run.settings, marks=recipe.marks),
            retrieval=replace(run.retrieval, pattern=recipe.pattern),
        )
        with show(recipe.name) as on_step:
            train(load(), examples, own, folder, on_step=on_step)
