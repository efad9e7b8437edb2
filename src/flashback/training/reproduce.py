"""The paper's table (table 2) on any reader, index and documents: trainings and scores, resumable.

OUT/
├── run.json           what all of it was made with
├── adapters/NAME/     one adapter for each trained row, as `flashback train` makes them
├── scores/            each finished row
├── table.json, table.md, table.png, documents.jsonl
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from flashback.errors import TrainingError
from flashback.evaluation.adapted import Readers
from flashback.evaluation.arms import Arm, FrameKind, arm_of, untrained_arms
from flashback.files import write_atomically
from flashback.patterns.registry import PATTERNS
from flashback.readers.card import CARD, read_card
from flashback.readers.reader import Reader
from flashback.scoring.examples import Example
from flashback.settings import Marks

if TYPE_CHECKING:
    from flashback.training.run import Run
    from flashback.training.trainer import OnStep

_RUN = "run.json"
NAIVE_FRAMES = (FrameKind.BARE, FrameKind.TEXT, FrameKind.EOS, FrameKind.ECHO)
"""What an untrained reader is shown around passages."""


@dataclass(frozen=True)
class Recipe:
    """One adapter of the table."""

    pattern: str
    marks: Marks
    echo_tokens: int = 0

    @property
    def name(self) -> str:
        """Of its folder: `append-trained`, `append-trained-echo`, `none`."""
        if self.pattern == "none":
            return self.pattern
        return f"{self.pattern}-{self.marks}" + ("-echo" if self.echo_tokens else "")


def recipes(echo_tokens: int = 0, slot: bool = False) -> list[Recipe]:
    """All adapters of the table: none; prepend and append with no, frozen and trained marks.

    Args:
        echo_tokens: above 0, one more, which the paper does not have: append with trained marks
            and so long an echo.
        slot: two more: in a slot, without and with trained marks.
    """
    more = [Recipe("append", Marks.TRAINED, echo_tokens)] if echo_tokens else []
    if slot:
        more += [Recipe("slot", marks) for marks in (Marks.NONE, Marks.TRAINED)]
    return [
        Recipe("none", Marks.NONE),
        *(
            Recipe(pattern, marks)
            for pattern in ("prepend", "append")
            for marks in (Marks.NONE, Marks.FROZEN, Marks.TRAINED)
        ),
        *more,
    ]


def arms(out: Path, echo_tokens: int = 0, slot: bool = False) -> list[Arm]:
    """All rows, in the paper's order, ours behind; the adapters must be there. See `recipes`.

    Raises:
        AdapterError: an adapter is missing or damaged.
    """
    made = recipes(echo_tokens, slot)
    folders = {adapter_folder(out, recipe): recipe.pattern for recipe in made}
    naive = ["prepend", "append", *(["slot"] if slot else [])]
    return [
        Arm("none"),
        Arm("none", shortened=True),
        *untrained_arms(naive, NAIVE_FRAMES),
        *(arm_of(folder, read_card(folder), pattern) for folder, pattern in folders.items()),
    ]


def adapter_folder(out: Path, recipe: Recipe) -> Path:
    """Where an adapter of the table lies."""
    return out / "adapters" / recipe.name


def check_output(out: Path) -> None:
    """Refuse to write where something else is; a reproduction may be continued.

    Raises:
        TrainingError: a file, or a folder with something that is none of ours.
    """
    if out.exists() and not out.is_dir():
        raise TrainingError(f"reproduction {out}: a file is in the way; choose another --out")
    if out.is_dir() and any(out.iterdir()) and not (out / _RUN).exists():
        raise TrainingError(f"reproduction {out}: the folder is not empty; choose another --out")


def claim(out: Path, run: "Run", reader: Reader, examples: Sequence[Example]) -> None:
    """Make the folder this run's: rows of different trainings do not belong into one table.

    Raises:
        TrainingError: the folder belongs to a run with other settings or documents.
        OSError: the folder cannot be made.
    """
    check_output(out)
    out.mkdir(parents=True, exist_ok=True)
    path, identity = out / _RUN, run.identity(reader, examples)
    if not path.exists():
        write_atomically(path, identity)
    elif path.read_text("utf-8") != identity:
        raise TrainingError(
            f"reproduction {out}: was begun with another model, other settings or other "
            "documents; repeat that command to go on with it, or choose another --out"
        )


def train_missing(
    out: Path,
    readers: Readers,
    examples: Sequence[Example],
    run: "Run",
    show: "Callable[[str], AbstractContextManager[OnStep]]",
) -> None:
    """Train every adapter that is not there yet, each on the same windows for the same steps.

    Args:
        run: settings; pattern and marks are replaced.
        show: a progress bar for a training of this name.

    Raises:
        TrainingError: see `train`.
    """
    from flashback.training.run import train

    for recipe in recipes(run.settings.echo_tokens, readers.get().can_have(PATTERNS["slot"])):
        folder = adapter_folder(out, recipe)
        if (folder / CARD).exists():
            continue
        own = replace(
            run,
            settings=replace(run.settings, marks=recipe.marks, echo_tokens=recipe.echo_tokens),
            retrieval=replace(run.retrieval, pattern=recipe.pattern),
        )
        with show(recipe.name) as on_step:
            train(readers.take(), examples, own, folder, on_step=on_step)
