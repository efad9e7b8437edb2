"""Cases of `flashback eval swap`: a question, and passages that answer it in different ways."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from flashback.errors import PromptsError
from flashback.questions.metrics import normalized, stands_in
from flashback.writing.prompts import Id, check_whole, id_of, read_lines

_EXPECTED = (
    "expected JSON lines with question, gold, gold_answer, counterfactual, counterfactual_answer "
    "and unrelated"
)


class Variant(StrEnum):
    """One of the passages of a case."""

    GOLD = "gold"
    """Answers the question."""
    COUNTERFACTUAL = "counterfactual"
    """The same text with another fact, so that the answer is another one."""
    UNRELATED = "unrelated"
    """Of something else."""


@dataclass(frozen=True)
class Case:
    """A question with three passages."""

    id: Id
    kind: str
    """Cases of a kind are averaged: `lookup` or `two-step`, in a file any text."""
    question: str
    passages: dict[Variant, str]
    answers: dict[Variant, tuple[str, ...]]
    """Of the gold and of the counterfactual passage; the first one is scored."""
    filler: str | None = None
    """Text between the two passages; None: that of all cases."""


@dataclass(frozen=True)
class CaseFile:
    """Cases, and what tells them from others."""

    name: str
    sha256: str
    cases: tuple[Case, ...]

    def first(self, limit: int) -> tuple[Case, ...]:
        """The first `limit` cases of each kind, in the file's order; 0: all."""
        taken: dict[str, int] = {}
        found = []
        for case in self.cases:
            taken[case.kind] = taken.get(case.kind, 0) + 1
            if not limit or taken[case.kind] <= limit:
                found.append(case)
        return tuple(found)


def read_cases(path: Path) -> CaseFile:
    """Read a file of cases: JSON lines.

    Raises:
        PromptsError: it is missing, or a line is no case.
        OSError: it cannot be read.
    """
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise PromptsError(f"{path}: found {found}; {_EXPECTED}")
    content = path.read_bytes()
    try:
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise PromptsError(f"{path}: not UTF-8 at byte {error.start + 1}; {_EXPECTED}") from None
    cases = tuple(read_lines(str(path), lines, _case))
    if not cases:
        raise PromptsError(f"{path}: found no cases; {_EXPECTED}")
    return CaseFile(str(path), hashlib.sha256(content).hexdigest(), cases)


def _case(number: int, line: str) -> Case:
    """One line.

    Raises:
        ValueError: what was found, and what was expected.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError(f"not JSON; {_EXPECTED}") from None
    if not isinstance(record, dict):
        raise ValueError(f"found no object; {_EXPECTED}")
    passages = {one: _text(record, str(one)) for one in Variant}
    known = (Variant.GOLD, Variant.COUNTERFACTUAL)
    answers = {one: _answers(record, f"{one}_answer") for one in known}
    kind = _text(record, "kind") if "kind" in record else "question"
    filler = _text(record, "filler") if record.get("filler") is not None else None
    identifier = id_of(record, number)
    case = Case(identifier, kind, _text(record, "question"), passages, answers, filler)
    check_answers(case.answers)
    return case


def check_answers(answers: dict[Variant, tuple[str, ...]]) -> None:
    """Refuse answers that cannot be told from each other.

    Raises:
        ValueError: an answer is among the other passage's, or stands in one of them.
    """
    gold, other = answers[Variant.GOLD], answers[Variant.COUNTERFACTUAL]
    for one, others in ((gold, other), (other, gold)):
        for text in one:
            if not normalized(text):
                raise ValueError(f"the answer {text!r} has no words; expected some")
            if stands_in(others, text):
                raise ValueError(
                    f"the answer {text!r} has an answer of the other passage in it; expected "
                    "answers that can be told from each other"
                )


def _text(record: dict[str, Any], name: str) -> str:
    if name not in record:
        raise ValueError(f"found no {name}; {_EXPECTED}")
    return _checked(name, record[name])


def _answers(record: dict[str, Any], name: str) -> tuple[str, ...]:
    """One text or several."""
    if name not in record:
        raise ValueError(f"found no {name}; {_EXPECTED}")
    given = record[name]
    many: Sequence[object] = given if isinstance(given, list) and given else [given]
    return tuple(dict.fromkeys(_checked(name, one).strip() for one in many))


def _checked(name: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name}: found {json.dumps(value)[:40]}; expected a text")
    check_whole(name, value)
    return value
