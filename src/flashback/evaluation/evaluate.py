"""Arms scored on examples to tables; what was scored before is taken from disk."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from flashback.errors import TrainingError
from flashback.evaluation.adapted import Readers
from flashback.evaluation.arms import Arm, told_apart
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
from flashback.settings import DEFAULT_FRAME


@dataclass(frozen=True)
class Judged:
    """What is scored: windows, what was found for them, and their tokens."""

    examples: tuple[Example, ...]
    found: tuple[Found, ...]
    windows: WindowSettings
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Recorded in the table."""


def identity_of(
    examples: Sequence[Example], windows: WindowSettings, *, passages: bool = True
) -> str:
    """A text that is equal for equal tokens and cuts, and, if they count, equal passages."""
    digest = hashlib.sha256(repr(windows).encode())
    for example in examples:
        window = example.window
        parts: tuple[object, ...] = (window.document.id, window.ids, window.cuts, window.stride)
        if passages:  # their limits decide where a slot ends
            limits = (example.passage_tokens, example.most_passages)
            parts = (*parts, example.passages, example.parts, *limits)
        digest.update(repr(parts).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class ScoreStore:
    """Keeps each arm's nats in a folder; an entry counts for the same targets and weights only."""

    folder: Path

    def read(self, key: str, windows: int) -> list[float] | None:
        """An arm's nats per window, if they are here and whole."""
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
"""Given how many windows are scored, over all arms: what to call after each."""


@dataclass(frozen=True)
class _Task:
    """One arm on one set of examples, and the name under which its nats are kept."""

    arm: Arm
    judged: Judged
    key: str


def evaluate(
    arms: Sequence[Arm],
    judged: Sequence[Judged],
    readers: Readers,
    *,
    settings: BootstrapSettings | None = None,
    store: ScoreStore | None = None,
    start: StartScoring = lambda _: lambda: None,
) -> list[Table]:
    """Score every arm on everything: a table for each of `judged`, its rows in the arms' order.

    Args:
        arms: the first is what the others are compared with; each is taken once.
        judged: what is scored.
        store: where finished rows are kept, and looked for first.

    Raises:
        TrainingError: nothing to score, or a model's log-probabilities are not finite.
        FlashBackError: a reader or an adapter cannot be loaded, or they are not a pair.
    """
    if not all(one.examples for one in judged):
        raise TrainingError("there is no window to score; give longer documents")
    arms = told_apart(arms)
    readers.check(arm.adapter for arm in arms if arm.adapter is not None)
    tasks = _tasks(arms, judged, readers.get())
    texts = [texts_of(one.examples, readers.get()) for one in judged]
    nats = _scored(tasks, readers, store, start)
    resamples = (settings or BootstrapSettings()).resamples
    draws = {count: Bootstrap(count, resamples) for count in {len(own.ids) for own in texts}}
    return [
        _table([task for task in tasks if task.judged is one], nats, own, draws[len(own.ids)])
        for one, own in zip(judged, texts, strict=True)
    ]


def _tasks(arms: Sequence[Arm], judged: Sequence[Judged], reader: Reader) -> list[_Task]:
    # What frames are made of: a text of ours, and the tokenizer's end-of-text token.
    frames = [asdict(DEFAULT_FRAME), reader.tokenizer.eos_token_id]
    base = [computation_of(reader.model), reader.placement.dtype_name, frames]
    adapters = {arm.adapter: _checksums(arm.adapter) for arm in arms}
    found = []
    for one in judged:
        identities = {
            shown: identity_of(one.examples, one.windows, passages=shown) for shown in (True, False)
        }
        for arm in arms:
            identity = identities[PATTERNS[arm.pattern].retrieves]
            own = asdict(replace(arm, adapter=None, label=""))  # a folder may be moved
            parts = json.dumps([identity, base, adapters[arm.adapter], own])
            key = hashlib.sha256(parts.encode()).hexdigest()[:32]
            found.append(_Task(arm, one, key))
    return found


def _checksums(adapter: Path | None) -> list[str]:
    if adapter is None:
        return []
    files = (adapter / name for name in (CARD, CONFIG, WEIGHTS))
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]


def _scored(
    tasks: Sequence[_Task], readers: Readers, store: ScoreStore | None, start: StartScoring
) -> dict[str, list[float]]:
    """The nats per window of every task; what is not kept yet is scored, and kept."""
    nats = {}
    for task in tasks:
        kept = None if store is None else store.read(task.key, len(task.judged.examples))
        if kept is not None:
            nats[task.key] = kept
    # Without passages, several settings may come to the same.
    missing = {task.key: task for task in tasks if task.key not in nats}.values()
    on_window = start(sum(len(task.judged.examples) for task in missing))
    for task in sorted(missing, key=lambda task: str(task.arm.adapter or "")):
        found = _score(task, readers.get(task.arm.adapter), on_window)
        if store is not None:
            store.write(task.key, task.arm, found)
        nats[task.key] = found
    return nats


def _score(task: _Task, reader: Reader, on_window: Callable[[], None]) -> list[float]:
    examples = task.arm.examples(task.judged.examples, task.judged.windows)
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
    judged = tasks[0].judged
    rows = [
        row_of(task.arm, texts.per_document(nats[task.key]), texts, bootstrap) for task in tasks
    ]
    close = contamination(judged.examples, judged.found)
    return Table(tuple(rows), texts, bootstrap, close, judged.settings)
