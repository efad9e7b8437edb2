"""scripts/exchanged_passages.py: which passages it exchanges, and what it refuses."""

import json
from pathlib import Path

import pytest

import exchanged_passages
from exchanged_passages import other_of
from flashback.questions.formats import Question


def question(number: int, passage: str, answer: str) -> Question:
    return Question(number, f"q{number}", (answer,), passage)


QUESTIONS = [
    question(0, "p", "a"),
    question(1, "p", "b"),
    question(2, "q", "b"),
    question(3, "q", "c"),
    question(4, "r", "c"),
]


@pytest.mark.parametrize(("at", "expected"), list(enumerate([4, 4, 0, 1, 2])))
def test_the_other_passage_is_never_the_questions_own(at: int, expected: int) -> None:
    assert other_of(QUESTIONS, at) == QUESTIONS[expected]


@pytest.mark.parametrize("questions", [QUESTIONS[:1], QUESTIONS[:2], QUESTIONS[1:3]])
def test_questions_of_one_passage_or_answer_are_refused(questions: list[Question]) -> None:
    with pytest.raises(SystemExit, match=r"question \d: found no other"):
        other_of(questions, 0)


@pytest.mark.parametrize("limit", ["1", "0", "-3"])
def test_a_limit_without_an_interval_is_refused(
    limit: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["exchanged_passages", "none.jsonl", "--model", "none", "--limit", limit]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit, match="2"):
        exchanged_passages.main()
    assert f"--limit {limit}: expected 2 or more" in capsys.readouterr().err


def test_a_table_of_two_questions(
    tmp_path: Path,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "questions.jsonl"
    asked = [("Who?", "Ada", "It was Ada."), ("Where?", "Rome", "It is in Rome.")]
    keys = ("question", "answer", "passage")
    lines = [json.dumps(dict(zip(keys, one, strict=True))) for one in asked]
    file.write_text("\n".join(lines), "utf-8")
    words = ["exchanged_passages", str(file), "--model", str(model_folder), "--limit", "2"]
    options = ["--form", "question", "--passage-tokens", "24", "--recompute-tokens", "1"]
    monkeypatch.setattr("sys.argv", [*words, *options])
    exchanged_passages.main()
    shown = capsys.readouterr().out
    for row in ("none", "prepend", "slot after unrelated", "slot after counterfactual"):
        assert row in shown
