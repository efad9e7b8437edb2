"""Cases of an exchange: made-up ones are what they say, and files are read or refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from flashback.errors import PromptsError
from flashback.questions.metrics import place_of, stands_in
from flashback.questions.swap_cases import Case, Variant, read_cases
from flashback.questions.swap_made import KINDS, MADE, filler_text, made_cases

GOLD, OTHER, UNRELATED = Variant
LINE: dict[str, Any] = {
    "question": "What is the code?",
    "gold": "The code is 17.",
    "gold_answer": "17",
    "counterfactual": "The code is 45.",
    "counterfactual_answer": ["45", "forty-five"],
    "unrelated": "The moon is full.",
}


@pytest.mark.parametrize("seed", [0, 1, 1234])
def test_made_up_cases_are_what_they_say(seed: int) -> None:
    file = made_cases(seed)
    assert [one.kind for one in file.cases] == list(KINDS) * MADE
    assert len({one.id for one in file.cases}) == 2 * MADE
    assert len({one.passages[GOLD] for one in file.cases}) == 2 * MADE
    for case in file.cases:
        _check(case)


def _check(case: Case) -> None:
    gold, other = case.answers[GOLD], case.answers[OTHER]
    passages = case.passages
    for one, others in ((gold, other), (other, gold)):
        assert not stands_in(others, one[0]), case.id
    assert not stands_in([*gold, *other], passages[UNRELATED]), case.id
    assert not stands_in([*gold, *other], filler_text()), case.id
    assert "{" not in case.question + "".join(passages.values())
    assert all(15 <= len(text.split()) <= 40 for text in passages.values()), case.id
    assert 1 <= _different_words(passages[GOLD], passages[OTHER]) <= 2, case.id  # one fact
    if case.kind == "lookup":
        assert stands_in(gold[:1], passages[GOLD])
        assert not stands_in(gold, passages[OTHER])
        assert stands_in(other[:1], passages[OTHER])
        assert not stands_in([*gold, *other], case.question)


def _different_words(one: str, other: str) -> int:
    """Of the longer text, without what both begin and end with."""
    words, others = one.split(), other.split()
    while words and others and words[0] == others[0]:
        words, others = words[1:], others[1:]
    while words and others and words[-1] == others[-1]:
        words, others = words[:-1], others[:-1]
    return max(len(words), len(others))


def _numbers(text: str) -> list[int]:
    return [int(one) for one in re.findall(r"\d+", text)]


@pytest.mark.parametrize(
    ("asked", "compare"),
    [
        ("Which mill is older", lambda a, b: a < b),
        ("Who is taller", lambda a, b: a > b),
        ("Which bell is heavier", lambda a, b: a > b),
        ("Where is a room cheaper", lambda a, b: a < b),
        ("Which village is nearer", lambda a, b: a < b),
        ("Who won the race", lambda a, b: a < b),
        ("Who won the election", lambda a, b: a > b),
        ("Which lake is deeper", lambda a, b: a > b),
        ("Which bridge is longer", lambda a, b: a > b),
    ],
)
def test_two_are_compared_rightly(asked: str, compare: Any) -> None:
    cases = [one for one in made_cases().cases if one.question.startswith(asked)]
    assert len(cases) == 8
    for case in cases:
        for variant in (GOLD, OTHER):
            first, second = _numbers(case.passages[variant])
            right, wrong = case.answers[variant], case.answers[OTHER if variant == GOLD else GOLD]
            right_place = place_of(right[:1], case.passages[variant])
            wrong_place = place_of(wrong[:1], case.passages[variant])
            assert right_place is not None
            assert wrong_place is not None
            assert (right_place < wrong_place) == compare(first, second)


@pytest.mark.parametrize(
    ("asked", "result"),
    [
        ("How many rooms", lambda a, b: a + b),
        ("How many copies", lambda a, b: a - b),
        ("How many lamps", lambda a, b: a * b),
        ("How old is", lambda a, b: a + b),
        ("At what hour does the garden", lambda a, b: a + b),
    ],
)
def test_numbers_are_calculated_rightly(asked: str, result: Any) -> None:
    cases = [one for one in made_cases().cases if one.question.startswith(asked)]
    assert len(cases) == 8
    for case in cases:
        for variant in (GOLD, OTHER):
            assert case.answers[variant] == (str(result(*_numbers(case.passages[variant]))),)


def test_the_same_seed_makes_the_same_cases_and_a_limit_takes_the_first() -> None:
    file = made_cases(3)
    assert made_cases(3) == file
    assert made_cases(4).sha256 != file.sha256
    assert file.first(0) == file.cases
    assert file.first(5) == file.cases[:10]


def written(tmp_path: Path, *lines: object) -> Path:
    path = tmp_path / "cases.jsonl"
    texts = (one if isinstance(one, str) else json.dumps(one) for one in lines)
    path.write_text("\n".join(texts), "utf-8")
    return path


def test_a_file_of_cases(tmp_path: Path) -> None:
    more = LINE | {"id": "x", "kind": "lookup", "filler": "And so on."}
    file = read_cases(written(tmp_path, LINE, "", more))
    first, second = file.cases
    assert (first.id, first.kind, first.filler) == (1, "question", None)
    assert (second.id, second.kind, second.filler) == ("x", "lookup", "And so on.")
    assert first.answers == {GOLD: ("17",), OTHER: ("45", "forty-five")}
    assert first.passages[UNRELATED] == "The moon is full."
    assert file.first(1) == file.cases  # of each kind


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in LINE.items() if key != name}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no", "line 1: not JSON; expected JSON lines with question, gold, gold_answer"),
        ([1], "line 1: found no object"),
        *((without(name), f"line 1: found no {name}") for name in LINE),
        (LINE | {"gold": 3}, "line 1: gold: found 3; expected a text"),
        (LINE | {"gold_answer": []}, "gold_answer: found []"),
        (LINE | {"gold_answer": ["a", None]}, "gold_answer: found null"),
        (LINE | {"filler": " "}, 'filler: found " "'),
        (LINE | {"gold_answer": "..."}, "the answer '...' has no words"),
        (LINE | {"gold_answer": "45"}, "the answer '45' has an answer of the other passage in it"),
        (LINE | {"gold_answer": "not 45"}, "'not 45' has an answer of the other passage in it"),
        (LINE | {"question": "a\ud800"}, "question has half a character"),
        ("", "found no cases; expected JSON lines"),
    ],
)
def test_what_is_no_case(tmp_path: Path, line: object, message: str) -> None:
    with pytest.raises(PromptsError) as caught:
        read_cases(written(tmp_path, line))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(PromptsError, match="no such file"):
        read_cases(tmp_path / "none")
    (tmp_path / "latin").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PromptsError, match="not UTF-8 at byte 1"):
        read_cases(tmp_path / "latin")
