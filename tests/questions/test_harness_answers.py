"""What lm-evaluation-harness asks and scores is what `eval qa` does; no harness is needed here."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashback.questions.formats import Question
from flashback.questions.forms import Asking, Pasted
from flashback.questions.metrics import scores_of
from flashback.questions.question_settings import Form
from flashback.server.schema import FlashbackOptions
from harness.answers import scores
from harness_answers import FORMS, ROWS, SCORES, TASKS, Answer, compared

yaml: Any = importlib.import_module("yaml")  # without types

words = st.lists(st.sampled_from(["a", "The", "Ada", "ada", "Love-lace", "1,000", "“x”", "."]))
texts = words.map(" ".join)


@settings(deadline=None)  # the first example loads metrics
@given(texts, st.lists(texts.filter(str.strip), min_size=1, max_size=3))
def test_scores_are_those_of_eval_qa(written: str, answers: list[str]) -> None:
    found = scores({"answers": answers}, [written])
    own = scores_of(written.strip(), answers)
    for name in SCORES:
        assert found[name] == pytest.approx(getattr(own, name), abs=1e-3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("row", ROWS)
def test_tasks_ask_as_eval_qa_does(form: str, row: str) -> None:
    task = f"flashback_{form}{ROWS[row]}"
    found = yaml.safe_load((TASKS / f"{task}.yaml").read_text("utf-8"))
    assert (found["task"], found["include"]) == (task, "questions_of_a_file.yaml")
    asked = found["doc_to_text"].replace("{{question}}", "Who?")
    question = Question("q", "Who?", ("Ada",))
    assert asked == ("Who?" if form == "chat" else Asking(Form(form))._text(question, Pasted()))
    given = found["generation_kwargs"]
    assert given["until"] == ([] if form == "chat" else ["\n"])
    options = FlashbackOptions(**given["flashback"])
    assert (options.pattern, options.stride) == (row, given["max_gen_toks"])


def test_differences_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    same, other = Answer("Ada", (100.0, 100.0, 100.0)), Answer("Bob", (0.0, 0.0, 0.0))
    near = Answer("Ada", (100.0, 100.00001, 100.0))
    one = {"slot": {"1": same, "2": same}, "none": {"1": same}}
    assert compared(one, {"slot": {"1": near, "2": same}, "none": {"1": same}}) == 0
    capsys.readouterr()
    assert compared(one, {"slot": {"1": other, "2": same}, "none": {"2": same}}) == 3
    printed = capsys.readouterr().out
    assert "slot, harness: 2 questions, exact_match 50.000, f1 50.000" in printed
    assert "question 1: eval qa Answer(written='Ada'" in printed


def test_files_are_read_as_eval_qa_reads_them(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="comes with lm-eval: make extras")
    from harness.answers import questions

    file = tmp_path / "questions.jsonl"
    lines = [
        {"question": "Who?", "answer": " She "},
        {"question": "Why?", "answers": []},
        {"question": "Where?", "answers": ["Here"], "id": "w", "passage": "Here."},
    ]
    file.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    found = questions(str(file), other=1)["test"]
    assert list(found) == [
        {"id": "1", "question": "Who?", "answers": ["She"]},
        {"id": "w", "question": "Where?", "answers": ["Here"]},
    ]
