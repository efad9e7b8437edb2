"""What lm-evaluation-harness needs to ask a file of questions: its lines, and SQuAD's scores.

It needs nothing of FlashBack, so that it is a second opinion about the figures of `eval qa`.
"""

import json
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def questions(file: str, **_: Any) -> dict[str, Any]:
    """The questions of a file of JSON lines that have an answer.

    Args:
        file: with `question`, and `answers` or `answer`; `--metadata` gives it.
    """
    import datasets

    lines = Path(file).read_text("utf-8-sig").split("\n")
    numbered = [(at, json.loads(line)) for at, line in enumerate(lines, 1) if line.strip()]
    every = [
        {"id": str(one.get("id", at)), "question": one["question"], "answers": _answers(one)}
        for at, one in numbered
    ]
    return {"test": datasets.Dataset.from_list([one for one in every if one["answers"]])}


def _answers(line: dict[str, Any]) -> list[str]:
    given: Any = line.get("answers", line.get("answer"))
    return [one.strip() for one in ([given] if isinstance(given, str) else given)]


def scores(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """The best scores over all right answers, in per cent."""
    written, answers = results[0].strip(), doc["answers"]
    return {
        "exact_match": 100.0 * any(_plain(written) == _plain(one) for one in answers),
        "f1": 100.0 * max(_f1(written, one) for one in answers),
        "substring": 100.0 * any(_stands_in(one, written) for one in answers),
    }


def _f1(written: str, answer: str) -> float:
    """SQuAD's, of the words."""
    found, right = _plain(written).split(), _plain(answer).split()
    if not found or not right:
        return float(found == right)
    same = sum((Counter(found) & Counter(right)).values())
    return 2 * same / (len(found) + len(right))


def _stands_in(answer: str, text: str) -> bool:
    """As whole words, without punctuation of any script."""
    words = [_plain("".join(filter(_is_no_punctuation, one))) for one in (answer, text)]
    return bool(words[0]) and f" {words[0]} " in f" {words[1]} "


def _is_no_punctuation(character: str) -> bool:
    return unicodedata.category(character)[0] != "P"


def _plain(text: str) -> str:
    """SQuAD's rule: lower case, without ASCII's punctuation and articles."""
    plain = "".join(one for one in text.lower() if one not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())
