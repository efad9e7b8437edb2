"""Arms scored on evaluation sets, as tables; scores of earlier runs are read from disk."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from flashback.errors import TrainingError
from flashback.evaluation.adapted_readers import AdaptedReaders
from flashback.evaluation.arms import Arm, with_unique_names
from flashback.evaluation.bootstrap_settings import BootstrapSettings
from flashback.evaluation.perplexity import (
    TOGETHER,
    Table,
    Texts,
    contamination,
    row_of,
    score,
    texts_of,
)
from flashback.evaluation.statistics import Bootstrap
from flashback.files import write_atomically
from flashback.patterns.registry import PATTERNS
from flashback.readers.card import CARD, CONFIG, WEIGHTS
from flashback.readers.fingerprint import computation_of
from flashback.readers.reader import Reader
from flashback.scoring.control_kind import Control
from flashback.scoring.examples import Example
from flashback.scoring.lookup import Found
from flashback.scoring.window_settings import WindowSettings


@dataclass(frozen=True)
class EvaluationSet:
    """Windows with the hits and the tokens of their passages."""

    examples: tuple[Example, ...]
    found: tuple[Found, ...]
    windows: WindowSettings
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Recorded in the table."""
    reported: Mapping[str, Any] = field(default_factory=dict)
    """Recorded beside the settings: what was found out about the passages."""
    controls: Mapping[Control, tuple[Example, ...]] = field(default_factory=dict)
    """The same windows with other passages."""

    def shown(self, control: Control | None) -> tuple[Example, ...]:
        """The examples of an arm that shows these passages; None: those that were found."""
        return self.examples if control is None else self.controls[control]

    def digests(self) -> dict[Control | None, str]:
        """A digest for each kind of passages, see `examples_digest`."""
        return {
            control: examples_digest(self.shown(control), self.windows)
            for control in (None, *self.controls)
        }


def examples_digest(
    examples: Sequence[Example], windows: WindowSettings, *, passages: bool = True
) -> str:
    """A digest of tokens and cuts.

    Args:
        passages: whether passages are part of it.
    """
    digest = hashlib.sha256(repr(windows).encode())
    for example in examples:
        window = example.window
        parts: tuple[object, ...] = (window.document.id, window.ids, window.cuts, window.stride)
        if passages:  # their limits decide where a slot ends
            limits = (example.passage_tokens, example.most_passages)
            parts = (*parts, example.passages, *limits)
        digest.update(repr(parts).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class ScoreStore:
    """Keeps each arm's nats in a folder, by targets and weights; also those of a part."""

    folder: Path

    def read(self, key: str, windows: int) -> list[float]:
        """An arm's nats of the first windows, of so many at most; empty if there are none."""
        try:
            record = json.loads((self.folder / f"{key}.json").read_text("utf-8"))
            nats = [float(value) for value in record["nats"]]
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return []
        whole = len(nats) == windows or len(nats) == record.get("windows") < windows
        return nats if whole and all(map(math.isfinite, nats)) else []

    def write(self, key: str, arm: Arm, nats: Sequence[float]) -> None:
        """Keep an arm's nats of the first windows."""
        self.folder.mkdir(parents=True, exist_ok=True)
        record = {"arm": arm.name, "windows": len(nats), "nats": list(nats)}
        write_atomically(self.folder / f"{key}.json", json.dumps(record) + "\n")


StartScoring = Callable[[int], Callable[[], None]]
"""Called with the number of windows over all arms; returns what is called after each."""


@dataclass(frozen=True)
class _Task:
    """One arm on one evaluation set, and the name of its entry in the store."""

    arm: Arm
    evaluation_set: EvaluationSet
    key: str

    @property
    def windows(self) -> int:
        """How many there are to score."""
        return len(self.evaluation_set.examples)


def evaluate(
    arms: Sequence[Arm],
    sets: Sequence[EvaluationSet],
    readers: AdaptedReaders,
    *,
    settings: BootstrapSettings | None = None,
    store: ScoreStore | None = None,
    start: StartScoring = lambda _: lambda: None,
) -> list[Table]:
    """Score every arm on every set: a table for each set, its rows in the arms' order.

    Args:
        arms: the others are compared with the first; duplicates are dropped.
        store: keeps windows that are scored, which are not scored again.

    Raises:
        TrainingError: nothing to score, or a model's log-probabilities are not finite.
        FlashBackError: a reader or an adapter cannot be loaded, or they are not a pair.
    """
    if not all(one.examples for one in sets):
        raise TrainingError("there is no window to score; give longer documents")
    arms = with_unique_names(arms)
    readers.check(arm.adapter for arm in arms if arm.adapter is not None)
    tasks = _tasks(arms, sets, readers.get())
    texts = [texts_of(one.examples, readers.get()) for one in sets]
    nats = _scored(tasks, readers, store, start)
    resamples = (settings or BootstrapSettings()).resamples
    draws = {count: Bootstrap(count, resamples) for count in {len(own.ids) for own in texts}}
    return [
        _table(
            [task for task in tasks if task.evaluation_set is one], nats, own, draws[len(own.ids)]
        )
        for one, own in zip(sets, texts, strict=True)
    ]


def _tasks(arms: Sequence[Arm], sets: Sequence[EvaluationSet], reader: Reader) -> list[_Task]:
    eos = reader.tokenizer.eos_token_id  # may be a frame
    base = [computation_of(reader.model), reader.placement.dtype_name, eos]
    adapters = {arm.adapter: checksums_of(arm.adapter) for arm in arms}
    found = []
    for one in sets:
        digests = one.digests()
        bare = examples_digest(one.examples, one.windows, passages=False)
        for arm in arms:
            identity = digests[arm.control] if PATTERNS[arm.pattern].retrieves else bare
            own = asdict(replace(arm, adapter=None, control=None, label=""))  # folders may move
            own["frame_text"] = arm.frame_text and asdict(arm.frame_text)
            parts = json.dumps([identity, base, adapters[arm.adapter], own])
            key = hashlib.sha256(parts.encode()).hexdigest()[:32]
            found.append(_Task(arm, one, key))
    return found


def checksums_of(adapter: Path | None) -> list[str]:
    if adapter is None:
        return []
    files = (adapter / name for name in (CARD, CONFIG, WEIGHTS))
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]


def _scored(
    tasks: Sequence[_Task], readers: AdaptedReaders, store: ScoreStore | None, start: StartScoring
) -> dict[str, list[float]]:
    """The nats per window of every task, from the store or scored now."""
    # Without passages, several settings may come to the same.
    unique = {task.key: task for task in tasks}
    nats = {key: store.read(key, task.windows) if store else [] for key, task in unique.items()}
    missing = [task for key, task in unique.items() if len(nats[key]) < task.windows]
    on_window = start(sum(task.windows - len(nats[task.key]) for task in missing))
    for task in sorted(missing, key=lambda task: str(task.arm.adapter or "")):
        own = nats[task.key]
        for value in _nats_behind(task, readers.get(task.arm.adapter), len(own)):
            own.append(value)
            on_window()
            if store is not None and (len(own) % TOGETHER == 0 or len(own) == task.windows):
                store.write(task.key, task.arm, own)
    return nats


def _nats_behind(task: _Task, reader: Reader, done: int) -> Iterator[float]:
    """The nats of the windows behind the first `done`, scored now."""
    shown = task.evaluation_set.shown(task.arm.control)[done:]
    examples = task.arm.examples(shown, task.evaluation_set.windows)
    try:
        yield from score(reader.model, examples, task.arm.arrangement(reader))
    except FloatingPointError as error:
        raise TrainingError(f"{task.arm.name}: {error}") from error


def _table(
    tasks: Sequence[_Task],
    nats: Mapping[str, Sequence[float]],
    texts: Texts,
    bootstrap: Bootstrap,
) -> Table:
    scored = tasks[0].evaluation_set
    rows = [
        row_of(task.arm, texts.per_document(nats[task.key]), texts, bootstrap) for task in tasks
    ]
    close = contamination(scored.examples, scored.found)
    return Table(tuple(rows), texts, bootstrap, close, scored.settings, scored.reported)
