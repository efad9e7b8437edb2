"""Answers to figures: means with intervals, and each row against plain RAG, paired.

Questions about the same passage are not independent of each other, so passages are resampled with
all their questions; a question without a passage of its own stands for itself. Turns of one
conversation are a group, too.

Symbols: G groups of questions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from flashback.evaluation.statistics import Array, Bootstrap
from flashback.questions.formats import Question
from flashback.questions.passages import Asked

_SCORES = ("exact_match", "f1", "substring")
FIGURES = (*_SCORES, "nats_per_token")
"""Of every row; the first three in per cent, and the more the better. A reader whose model is
elsewhere has no log-probabilities."""
COSTS = ("prefilled", "prompt_tokens")
"""Of every row if conversations are asked, in tokens of a conversation: see `replay.Replay`."""


@dataclass(frozen=True)
class _Sums:
    """Sums over a row's answers, (G,) each."""

    of: Mapping[str, Array]
    """By figure."""
    units: Mapping[str, Array]
    """What each is divided by: answers, or tokens of right answers."""


@dataclass(frozen=True)
class AnswerTable:
    """Rows on the same questions, each against the first, which is plain RAG."""

    rows: Sequence[Mapping[str, Any]]
    """Each row as plain data."""
    records: Sequence[Sequence[Mapping[str, Any]]]
    """Each row's answers, in the order of the questions."""
    asked: Sequence[Asked]
    resamples: int
    settings: Mapping[str, Any]

    def record(self) -> dict[str, Any]:
        """The table as plain data."""
        groups = _groups(self.asked)
        count = max(groups) + 1
        bootstrap = Bootstrap(count, self.resamples)
        sources = [one for one in self.asked if one.question.sources or one.question.support]
        sums = [_sums(own, groups, count) for own in self.records]
        return {
            "settings": dict(self.settings),
            "questions": len(self.asked),
            "groups": count,
            "without_passage": sum(not one.hits for one in self.asked),
            "answer_shown": 100 * float(np.mean([one.answer_shown for one in self.asked])),
            "sources": {
                "questions": len(sources),
                "found": sum(one.source_found for one in sources),
            },
            "conversations": sum(one.question.history is not None for one in self.asked),
            "rows": [
                {
                    **row,
                    **_figures(own, bootstrap),
                    "support": _support(records),
                    "answer_tokens": int(own.units["nats_per_token"].sum()),
                    "against_plain_rag": _figures(_difference(own, sums[0]), bootstrap),
                }
                for row, own, records in zip(self.rows, sums, self.records, strict=True)
            ],
        }


def _groups(asked: Sequence[Asked]) -> list[int]:
    """The number of each question's passage, or of its conversation, known by how it begins."""
    numbers: dict[object, int] = {}
    return [numbers.setdefault(_group(one.question), len(numbers)) for one in asked]


def _group(question: Question) -> object:
    if question.history is not None:
        said = (text for role, text in question.history if role == "user")
        return "conversation", next(said, question.text)
    return question.passage or ("question", question.id)


def _support(records: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many answers, and right ones, had in view what they rest on, where that is known."""
    known = [one for one in records if "support_shown" in one]
    right = [one for one in known if one["substring"]]
    return {
        "answers": len(known),
        "in_view": sum(one["support_shown"] for one in known),
        "right": len(right),
        "right_in_view": sum(one["support_shown"] for one in right),
    }


def _sums(records: Sequence[Mapping[str, Any]], groups: Sequence[int], count: int) -> _Sums:
    def per_group(values: Iterator[float]) -> Array:
        return np.bincount(groups, list(values), count).astype(np.float64)

    answers = per_group(1.0 for _ in records)
    per_answer = (*_SCORES, *(name for name in COSTS if all(name in one for one in records)))
    of = {name: per_group(float(one[name]) for one in records) for name in per_answer}
    if all(one["nats"] is not None for one in records):
        of["nats_per_token"] = per_group(float(one["nats"]) for one in records)
    tokens = per_group(float(one["answer_tokens"]) for one in records)
    units = dict.fromkeys(per_answer, answers) | {"nats_per_token": tokens}
    return _Sums(of, units)


def _difference(row: _Sums, other: _Sums) -> _Sums:
    return _Sums({name: row.of[name] - other.of[name] for name in row.of}, row.units)


def _figures(sums: _Sums, bootstrap: Bootstrap) -> dict[str, Any]:
    """Every figure with its interval."""
    return {name: asdict(bootstrap.quotient(sums.of[name], sums.units[name])) for name in sums.of}
