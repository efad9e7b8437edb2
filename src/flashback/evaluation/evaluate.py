"""Arms scored on evaluation sets, as tables; scores of earlier runs are read from disk."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from flashback.errors import TrainingError
from flashback.evaluation.adapted_readers import AdaptedReaders
from flashback.evaluation.arms import Arm, with_unique_names
from flashback.evaluation.bootstrap_settings import BootstrapSettings
from flashback.evaluation.perplexity import Table, Texts, contamination, row_of, score, texts_of
from flashback.evaluation.statistics import Bootstrap
from flashback.files import write_atomically
from flashback.patterns.registry import PATTERNS
from flashback.readers.card import CARD, CONFIG, WEIGHTS
from flashback.readers.fingerprint import computation_of
from flashback.readers.reader import Reader
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
    """Keeps each arm's nats in a folder, by targets and weights."""

    folder: Path

    def read(self, key: str, windows: int) -> list[float] | None:
        """An arm's nats per window; None if there are none, or not for all windows."""
        try:
            record = json.loads((self.folder / f"{key}.json").read_text("utf-8"))
            nats = [float(value) for value in record["nats"]]
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return None
        return nats if len(nats) == windows and all(map(math.isfinite, nats)) else None

    def write(self, key: str, arm: Arm, nats: Sequence[float]) -> None:
        """Keep an arm's nats per window."""
        self.folder.mkdir(parents=True, exist_ok=True)
        record = {"arm": arm.name, "nats": list(nats)}
        write_atomically(self.folder / f"{key}.json", json.dumps(record) + "\n")


StartScoring = Callable[[int], Callable[[], None]]
"""Called with the number of windows over all arms; returns what is called after each."""


@dataclass(frozen=True)
class _Task:
    """One arm on one evaluation set, and the name of its entry in the store."""

    arm: Arm
    evaluation_set: EvaluationSet
    key: str


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
        store: keeps finished rows, which are not scored again.

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
        identities = {
            shown: examples_digest(one.examples, one.windows, passages=shown)
            for shown in (True, False)
        }
        for arm in arms:
            identity = identities[PATTERNS[arm.pattern].retrieves]
            own = asdict(replace(arm, adapter=None, label=""))  # a folder may be moved
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
    nats = {}
    for task in tasks:
        kept = None if store is None else store.read(task.key, len(task.evaluation_set.examples))
        if kept is not None:
            nats[task.key] = kept
    # Without passages, several settings may come to the same.
    missing = {task.key: task for task in tasks if task.key not in nats}.values()
    on_window = start(sum(len(task.evaluation_set.examples) for task in missing))
    for task in sorted(missing, key=lambda task: str(task.arm.adapter or "")):
        found = _score(task, readers.get(task.arm.adapter), on_window)
        if store is not None:
            store.write(task.key, task.arm, found)
        nats[task.key] = found
    return nats


def _score(task: _Task, reader: Reader, on_window: Callable[[], None]) -> list[float]:
    examples = task.arm.examples(task.evaluation_set.examples, task.evaluation_set.windows)
    try:
        return score(reader.model, examples, task.arm.arrangement(reader), on_window)
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
