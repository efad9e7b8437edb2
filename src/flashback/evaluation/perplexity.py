"""Perplexity of the context patterns, in one run, on the same targets and the same passages.

A row is an arm scored on every window. All rows have the same targets and share their passages.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from flashback.corpus.documents import name_of
from flashback.evaluation.arms import Arm
from flashback.evaluation.statistics import Array, Bootstrap, Interval, exponential
from flashback.readers.reader import Reader
from flashback.scoring.examples import Arrangement, Example
from flashback.scoring.lookup import Found
from flashback.scoring.targets import TargetScorer
from flashback.scoring.windows import Window

TOGETHER = 4
"""Windows scored in one call, so that sequences of similar length share batches."""
_LOOKED_BACK = 32
"""Tokens decoded in front of targets, so that words and characters are whole."""


@dataclass(frozen=True)
class Texts:
    """The documents of the targets, by number, and the amount of text in the targets."""

    ids: tuple[str, ...]
    titles: tuple[str, ...]
    of_window: tuple[int, ...]
    """The document of each window."""
    tokens: Array
    words: Array
    """Between spaces, those that begin within the targets."""
    bytes: Array
    """Of the characters that end within the targets. (D,) each."""

    def per_document(self, of_windows: Sequence[float]) -> Array:
        """Sums per document, (D,), of figures per window."""
        sums = np.bincount(self.of_window, weights=of_windows, minlength=len(self.ids))
        return sums.astype(np.float64)


def texts_of(examples: Sequence[Example], reader: Reader) -> Texts:
    """Count the targets' tokens, words and bytes."""
    numbers: dict[tuple[str, str], int] = {}
    counts = []
    for example in examples:
        numbers.setdefault(name_of(example.window.document), len(numbers))
        counts.append((example.window.target_count, *_text_of(example.window, reader)))
    of_window = [numbers[name_of(example.window.document)] for example in examples]
    sums = [
        np.bincount(of_window, weights=column, minlength=len(numbers)).astype(np.float64)
        for column in zip(*counts, strict=True)
    ]
    ids, titles = zip(*numbers, strict=True)
    return Texts(ids, titles, tuple(of_window), *sums)


def _text_of(window: Window, reader: Reader) -> tuple[int, int]:
    """How many words begin in a window's targets, and how many bytes of characters end there."""
    first, end = window.cuts[0].boundary, window.cuts[-1].boundary + window.stride
    start = max(0, first - _LOOKED_BACK)
    before, whole = (reader.decode(window.ids[start:to]) for to in (first, end))
    words = len(whole.split()) - len(before.split())
    return words, _whole_bytes(whole) - _whole_bytes(before)


def _whole_bytes(text: str) -> int:
    """The bytes of a text without an incomplete character at its end."""
    return len(text.rstrip("\ufffd").encode())


@torch.no_grad()
def score(
    model: torch.nn.Module,
    examples: Sequence[Example],
    arrangement: Arrangement,
) -> Iterator[float]:
    """The nats of every example's targets, summed per example; `TOGETHER` are scored at once.

    Raises:
        FloatingPointError: log-probabilities are not finite.
    """
    scorer = TargetScorer(model)
    for at in range(0, len(examples), TOGETHER):
        some = examples[at : at + TOGETHER]
        for example, log_probs in zip(some, scorer.log_probs(some, arrangement), strict=True):
            nats = -float(log_probs.cpu().double().sum())
            if not math.isfinite(nats):
                document = example.window.document
                raise FloatingPointError(
                    "the model's log-probabilities are not finite on a window of "
                    f"{document.title or document.id}; use --dtype='float32', or another model"
                )
            yield nats


@dataclass(frozen=True)
class TableRow:
    """An arm's figures."""

    arm: Arm
    perplexity: Interval
    """Per token of the reader."""
    word_perplexity: float | None
    """None: no word begins within the targets."""
    bits_per_byte: float | None
    nats: Array
    """(D,), per document."""


def row_of(arm: Arm, nats: Array, texts: Texts, bootstrap: Bootstrap) -> TableRow:
    """The figures of an arm from its nats per document."""
    per_word = _ratio(nats, texts.words)
    per_byte = _ratio(nats, texts.bytes)
    return TableRow(
        arm,
        bootstrap.exponential(nats, texts.tokens),
        None if per_word is None else exponential(per_word),
        None if per_byte is None else per_byte / math.log(2),
        nats,
    )


def _ratio(nats: Array, units: Array) -> float | None:
    """None for texts without such units."""
    return float(nats.sum() / units.sum()) if units.sum() else None


@dataclass(frozen=True)
class Contamination:
    """How much first hits have in common with the documents that they were found for."""

    cuts: int
    empty: int
    """Cuts for which nothing was found."""
    from_document: int
    """First hits that are of the document itself."""
    overlapping: int
    """First hits with at least one 8-gram in common with the document."""
    copies_left_out: int
    """Better hits that repeat the document, which were not used."""


def contamination(examples: Sequence[Example], found: Sequence[Found]) -> Contamination:
    """Count over all cuts."""
    firsts = [
        (example.window.document.id, hits[0].document_id if hits else None)
        for example, one in zip(examples, found, strict=True)
        for hits in one.hits
    ]
    return Contamination(
        cuts=len(firsts),
        empty=sum(hit is None for _, hit in firsts),
        from_document=sum(own == hit for own, hit in firsts),
        overlapping=sum(sum(one.overlapping) for one in found),
        copies_left_out=sum(sum(one.copies) for one in found),
    )


@dataclass(frozen=True)
class Table:
    """Rows on the same targets, each against the first."""

    rows: tuple[TableRow, ...]
    texts: Texts
    bootstrap: Bootstrap
    contamination: Contamination
    settings: Mapping[str, Any]
    reported: Mapping[str, Any] = field(default_factory=dict)
    """See `EvaluationSet`."""

    def against(self, row: TableRow, other: TableRow) -> Interval:
        """The ratio of two rows' perplexities, paired over documents."""
        return self.bootstrap.ratio(row.nats, other.nats, self.texts.tokens)

    def record(self) -> dict[str, Any]:
        """The table as plain data."""
        return {
            "settings": dict(self.settings),
            "documents": len(self.texts.ids),
            "tokens": int(self.texts.tokens.sum()),
            "contamination": asdict(self.contamination),
            **self.reported,
            "rows": [self._row_record(row) for row in self.rows],
        }

    def _row_record(self, row: TableRow) -> dict[str, Any]:
        ratio = self.against(row, self.rows[0])
        return {
            "name": row.arm.name,
            "pattern": str(row.arm.pattern),
            "training": row.arm.training,
            "marks": str(row.arm.marks),
            "frame": str(row.arm.frame),
            "adapter": None if row.arm.adapter is None else str(row.arm.adapter),
            "trained_for": None if row.arm.trained_for is None else str(row.arm.trained_for),
            "context": "shortened" if row.arm.shortened else "full",
            "passages": str(row.arm.control or "found"),
            "perplexity": row.perplexity.value,
            "low": row.perplexity.low,
            "high": row.perplexity.high,
            "tokens": int(self.texts.tokens.sum()),
            "word_perplexity": row.word_perplexity,
            "bits_per_byte": row.bits_per_byte,
            "against_first_row": asdict(ratio),
        }

    def document_records(self) -> Iterable[dict[str, Any]]:
        """One record per document: its targets and every row's nats."""
        for at, (identifier, title) in enumerate(
            zip(self.texts.ids, self.texts.titles, strict=True)
        ):
            yield {
                "id": identifier,
                "title": title,
                "tokens": int(self.texts.tokens[at]),
                "words": int(self.texts.words[at]),
                "bytes": int(self.texts.bytes[at]),
                "nats": {row.arm.name: float(row.nats[at]) for row in self.rows},
            }
