"""A training run: the settings and data that decide its result, recorded in the adapter folder."""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from flashback.declared import AUTO
from flashback.errors import SettingsError, TrainingError
from flashback.files import folder_locked, write_atomically
from flashback.patterns.registry import PATTERNS
from flashback.readers.card import CARD
from flashback.readers.fingerprint import base_of, computation_of
from flashback.readers.reader import Reader
from flashback.scoring.examples import Example
from flashback.scoring.window_settings import WindowSettings
from flashback.settings import RetrievalSettings
from flashback.training.trainer import last_checkpoint
from flashback.training.training_settings import TrainingSettings

CHECKPOINTS = "checkpoints"
_RUN = "run.json"


@dataclass(frozen=True)
class Run:
    """Everything that decides the result of a training."""

    settings: TrainingSettings
    retrieval: RetrievalSettings
    windows: WindowSettings
    data: dict[str, Any] = field(default_factory=dict)
    """A record of the documents and the index."""

    def __post_init__(self) -> None:
        if self.retrieval.pattern == AUTO:
            raise SettingsError(
                "--pattern='auto': an adapter is trained for passages in one place; expected one "
                "of " + ", ".join(PATTERNS)
            )

    def identity(self, reader: Reader, examples: Iterable[Example], **more: Any) -> str:
        """A text that is equal for runs that may continue one another.

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
    """Refuse a folder with other content; that of a run that was not closed may be continued.

    Raises:
        TrainingError: the folder holds an adapter, or files of others.
    """
    if (out / CARD).exists() and not (out / _RUN).exists():
        raise TrainingError(f"adapter {out}: exists already; choose another --out or remove it")
    if out.is_dir() and any(out.iterdir()) and not (out / _RUN).exists():
        raise TrainingError(f"adapter {out}: the folder is not empty; choose another --out")
    if out.exists() and not out.is_dir():
        raise TrainingError(f"adapter {out}: a file is in the way; choose another --out")


def claim(out: Path, identity: str, arguments: TrainingArguments) -> None:
    """Make the folder this run's, in the main process before the others look.

    Raises:
        TrainingError: it holds an interrupted run with other settings and a checkpoint.
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
                "repeat that command to continue it, or choose another --out"
            )
        write_atomically(path, identity)


def close_run(out: Path) -> None:
    """Finish a run: from now on, its folder is refused as the output of another."""
    (out / _RUN).unlink(missing_ok=True)


@contextlib.contextmanager
def locked(out: Path, arguments: TrainingArguments) -> Iterator[None]:
    """Lock the folder against other trainings; the processes of this one share it.

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
