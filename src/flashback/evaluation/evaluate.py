"""Arms scored on examples to a table; what was scored before is taken from disk."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flashback.adapter import CARD
from flashback.errors import TrainingError
from flashback.evaluation.arms import Arm, readers_of
from flashback.evaluation.perplexity import Table, contamination, row_of, score, texts_of
from flashback.evaluation.statistics import Bootstrap
from flashback.files import write_atomically
from flashback.packing.forward import Example
from flashback.packing.lookup import Found
from flashback.packing.settings import WindowSettings
from flashback.reader import Reader
from flashback.settings import CheckedSettings, setting


@dataclass(frozen=True)
class BootstrapSettings(CheckedSettings):
    """How intervals are made."""

    resamples: int = setting(
        2000, "Resamples of the documents, for the 95 % intervals.", low=10, high=1_000_000
    )


@dataclass(frozen=True)
class Judged:
    """What is scored: windows, what was found for them, and their tokens."""

    examples: tuple[Example, ...]
    found: tuple[Found, ...]
    windows: WindowSettings

    def identity(self) -> str:
        """Equal for equal tokens, cuts and passages."""
        digest = hashlib.sha256(repr(self.windows).encode())
        for example in self.examples:
            window = example.window
            digest.update(repr((window.ids, window.cuts, window.stride, example.passages)).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class ScoreStore:
    """Keeps each arm's nats in a folder; an entry counts for the same targets and weights only."""

    folder: Path

    def read(self, key: str, windows: int) -> list[float] | None:
        """An arm's nats per window, if they are here."""
        try:
            record = json.loads((self.folder / f"{key}.json").read_text("utf-8"))
            nats = [float(value) for value in record["nats"]]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return nats if len(nats) == windows else None

    def write(self, key: str, arm: Arm, nats: Sequence[float]) -> None:
        """Keep an arm's nats per window."""
        self.folder.mkdir(parents=True, exist_ok=True)
        record = {"arm": arm.name, "nats": list(nats)}
        write_atomically(self.folder / f"{key}.json", json.dumps(record) + "\n")


OnWindow = Callable[[str], None]
"""Called with an arm's name for every window of it that is done."""


def evaluate(
    arms: Sequence[Arm],
    judged: Judged,
    load: Callable[[], Reader],
    settings: Mapping[str, Any],
    *,
    resamples: int = 2000,
    store: ScoreStore | None = None,
    on_window: OnWindow = lambda _: None,
) -> Table:
    """Score every arm and put the rows into one table, in the order of `arms`.

    Args:
        arms: the first is what the others are compared with.
        judged: what is scored.
        load: loads the reader without any adapter.
        settings: recorded in the table.
        store: where finished rows are kept, and looked for first.

    Raises:
        TrainingError: a model's log-probabilities are not finite.
        FlashBackError: a reader or an adapter cannot be loaded.
    """
    nats: dict[Arm, list[float]] = {}
    identity = judged.identity()
    missing = []
    for arm in arms:
        kept = None
        if store is not None:
            kept = store.read(_key(arm, identity, settings), len(judged.examples))
        if kept is None:
            missing.append(arm)
        else:
            nats[arm] = kept
    reader = None
    for reader, own in readers_of(missing, load):
        for arm in own:
            nats[arm] = score(
                reader.model,
                arm.examples(judged.examples, judged.windows),
                arm.arrangement(reader),
                lambda name=arm.name: on_window(name),  # type: ignore[misc]
            )
            if store is not None:
                store.write(_key(arm, identity, settings), arm, nats[arm])
    texts = texts_of(judged.examples, reader or load())
    bootstrap = Bootstrap(len(texts.ids), resamples)
    try:
        rows = tuple(row_of(arm, texts.per_document(nats[arm]), texts, bootstrap) for arm in arms)
    except FloatingPointError as error:
        raise TrainingError(str(error)) from error
    return Table(rows, texts, bootstrap, contamination(judged.examples, judged.found), settings)


def _key(arm: Arm, identity: str, settings: Mapping[str, Any]) -> str:
    card = "" if arm.adapter is None else (arm.adapter / CARD).read_text("utf-8")
    parts = [identity, settings.get("model"), settings.get("dtype"), card, asdict(arm)]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:32]
