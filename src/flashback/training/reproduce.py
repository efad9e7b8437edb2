"""The paper's table (table 2) on any reader, index and documents; it can be interrupted.

OUT/
├── run.json           the settings of all of it
├── adapters/NAME/     one adapter for each trained row, as `flashback train` makes them
├── scores/            the rows, as far as they are scored
├── table.json, table.md, table.png, documents.jsonl
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from flashback.declared import named
from flashback.errors import TrainingError
from flashback.evaluation.adapted_readers import AdaptedReaders
from flashback.evaluation.arms import Arm, arm_of, untrained_arms
from flashback.evaluation.frame_kind import FrameKind
from flashback.files import write_atomically
from flashback.patterns.registry import PATTERNS
from flashback.readers.card import CARD, read_card
from flashback.readers.lora_settings import Marks
from flashback.readers.reader import Reader
from flashback.scoring.examples import Example
from flashback.training.run import Run
from flashback.training.train import train
from flashback.training.trainer import OnStep

_RUN = "run.json"
NAIVE_FRAMES = (FrameKind.BARE, FrameKind.TEXT, FrameKind.EOS, FrameKind.ECHO)
"""The frames of an untrained reader."""
_PAPER = ("prepend", "append")
"""The paper's patterns with passages, in the order of its table."""
_PAPER_MARKS = (Marks.NONE, Marks.FROZEN, Marks.TRAINED)


@dataclass(frozen=True)
class Recipe:
    """One adapter of the table."""

    pattern: str
    marks: Marks
    echo_tokens: int = 0

    @property
    def name(self) -> str:
        """Of its folder: `append-trained`, `append-trained-echo`, `none`."""
        if not PATTERNS[self.pattern].retrieves:
            return self.pattern
        return f"{self.pattern}-{self.marks}" + ("-echo" if self.echo_tokens else "")


@dataclass(frozen=True)
class Rows:
    """The rows of a table."""

    echo_tokens: int = 0
    """Above 0, one adapter more: append with trained marks and an echo of this length."""
    adapters: tuple[str, ...] = ()
    """The adapters to train and score, by `Recipe.name`; empty: all of them."""
    frames: tuple[FrameKind, ...] = NAIVE_FRAMES
    """The frames of the untrained rows."""


def recipes(reader: Reader, rows: Rows = Rows()) -> list[Recipe]:
    """The adapters of the table: none; prepend and append with no, frozen and trained marks.

    Behind the paper's come those of every other pattern that the reader supports, without and with
    trained marks.

    Raises:
        SettingsError: there is no adapter of a name that is asked for.
    """
    found = {one.name: one for one in _all_recipes(reader, rows.echo_tokens)}
    for name in rows.adapters:
        named("--adapter-row", name, list(found))
    return [one for name, one in found.items() if name in rows.adapters or not rows.adapters]


def _all_recipes(reader: Reader, echo_tokens: int) -> list[Recipe]:
    echo = [Recipe("append", Marks.TRAINED, echo_tokens)] if echo_tokens else []
    return [
        Recipe("none", Marks.NONE),
        *(Recipe(name, marks) for name in _PAPER for marks in _PAPER_MARKS),
        *echo,
        *(Recipe(name, marks) for name in _others(reader) for marks in (Marks.NONE, Marks.TRAINED)),
    ]


def _others(reader: Reader) -> list[str]:
    """Patterns with passages that are not the paper's, as far as the reader supports them."""
    return [
        name
        for name, pattern in PATTERNS.items()
        if pattern.retrieves and name not in _PAPER and reader.can_have(pattern)
    ]


def arms(out: Path, reader: Reader, rows: Rows = Rows()) -> list[Arm]:
    """All rows: untrained, then with the adapters of `recipes`, which must be there.

    Raises:
        AdapterError: an adapter is missing or damaged.
    """
    folders = {adapter_folder(out, one): one.pattern for one in recipes(reader, rows)}
    return [
        Arm("none"),
        Arm("none", shortened=True),
        *untrained_arms([*_PAPER, *_others(reader)], rows.frames),
        *(arm_of(folder, read_card(folder), pattern) for folder, pattern in folders.items()),
    ]


def adapter_folder(out: Path, recipe: Recipe) -> Path:
    """The folder of an adapter of the table."""
    return out / "adapters" / recipe.name


def check_output(out: Path) -> None:
    """Refuse a folder with other content; a reproduction may be continued.

    Raises:
        TrainingError: a file, or a folder with files of others.
    """
    if out.exists() and not out.is_dir():
        raise TrainingError(f"reproduction {out}: a file is in the way; choose another --out")
    if out.is_dir() and any(out.iterdir()) and not (out / _RUN).exists():
        raise TrainingError(f"reproduction {out}: the folder is not empty; choose another --out")


def claim(
    out: Path, run: Run, reader: Reader, examples: Sequence[Example], *, bfloat16: bool = False
) -> None:
    """Make the folder this run's: rows of different trainings must not share a table.

    Raises:
        TrainingError: the folder belongs to a run with other settings or documents.
        OSError: the folder cannot be made.
    """
    check_output(out)
    out.mkdir(parents=True, exist_ok=True)
    path, identity = out / _RUN, run.identity(reader, examples, bfloat16=bfloat16)
    if not path.exists():
        write_atomically(path, identity)
    elif path.read_text("utf-8") != identity:
        raise TrainingError(
            f"reproduction {out}: was begun with another model, other settings or other "
            "documents; repeat that command to continue it, or choose another --out"
        )


def train_missing(
    out: Path,
    readers: AdaptedReaders,
    examples: Sequence[Example],
    run: Run,
    show: Callable[[str], AbstractContextManager[OnStep]],
    *,
    rows: Rows | None = None,
    bfloat16: bool = False,
) -> None:
    """Train every adapter that is not there yet, each on the same windows for the same steps.

    Args:
        run: settings; pattern and marks are replaced.
        show: a progress bar for a training of this name.
        rows: which of them; None: all.
        bfloat16: see `train`.

    Raises:
        TrainingError: see `train`.
    """
    for recipe in recipes(readers.get(), rows or Rows(run.settings.echo_tokens)):
        folder = adapter_folder(out, recipe)
        if (folder / CARD).exists():
            continue
        own = replace(
            run,
            settings=replace(run.settings, marks=recipe.marks, echo_tokens=recipe.echo_tokens),
            retrieval=replace(run.retrieval, pattern=recipe.pattern),
        )
        with show(recipe.name) as on_step:
            train(readers.take(), examples, own, folder, on_step=on_step, bfloat16=bfloat16)
