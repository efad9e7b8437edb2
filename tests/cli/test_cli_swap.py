"""`flashback eval swap` as researchers meet it: tables, answers in a file, refusals."""

import json
from pathlib import Path
from typing import Any

import pytest

from command_line import refused, run

LINE: dict[str, Any] = {
    "question": "What is the code?",
    "gold": "The code is 17.",
    "gold_answer": "17",
    "counterfactual": "The code is 45, I think.",
    "counterfactual_answer": "45",
    "unrelated": "The moon is full.",
}
ROWS = ["prepend", "none", "append", "slot, e = 1", "slot, e = all"]


@pytest.fixture
def words(tmp_path: Path, chat_model: Path) -> tuple[str | Path, ...]:
    file = tmp_path / "cases.jsonl"
    lines = (LINE, LINE | {"question": "And the code?", "kind": "other"})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return (
        *("eval", "swap", file, "--model", chat_model, "--device", "cpu", "--dtype", "float32"),
        *("--passage-tokens", "32", "--max-new-tokens", "4", "--resamples", "50"),
        *("--distance", "20", "--recompute-tokens", "1,all"),
    )


def test_tables_of_every_exchange_and_every_answer(
    words: tuple[str | Path, ...], tmp_path: Path
) -> None:
    out = tmp_path / "answers.jsonl"
    found = run(*words, "--form", "text", "--out", out, "--json").record
    tables = found["tables"]
    kinds = [(one["exchange"], one["kind"]) for one in tables]
    names = ("gold -> counterfactual", "gold -> unrelated", "unrelated -> gold")
    assert kinds == [(name, kind) for name in names for kind in ("other", "question")]
    assert all([row["name"] for row in one["rows"]] == ROWS for one in tables)
    assert found["settings"]["asked"] == "behind"
    answers = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [one["number"] for one in answers] == [*range(1, 31)]
    assert {one["stale_tokens"] for one in answers if one["row"] == "slot, e = 1"} == {19}
    cut = out.read_text("utf-8").splitlines(keepends=True)[:11]
    out.write_text("".join(cut) + '{"number"', "utf-8")
    again = run(*words, "--form", "text", "--out", out, "--json").record
    assert [one["cases"] for one in again["tables"]] == [1] * 6
    assert len(out.read_text("utf-8").splitlines()) == 30
    printed = run(*words, "--form", "text", "--out", out).out
    assert "gold -> counterfactual, 20 tokens, 1 cases (question)" in printed
    assert all(name in printed for name in (*ROWS, "old one", "95 % intervals"))
    changed = refused(*words, "--form", "text", "--asked", "twice", "--out", out, code=1)
    assert 'begun with asked "behind", not "twice"' in changed


def test_a_conversation_of_made_up_cases(chat_model: Path, tmp_path: Path) -> None:
    filler = tmp_path / "filler.txt"
    filler.write_text("It goes on. And on.", "utf-8")
    found = run(
        *("eval", "swap", "--model", chat_model, "--dtype", "float32", "--device", "cpu"),
        *("--limit", "1", "--asked", "before", "--pattern", "slot", "--recompute-tokens", "1"),
        *("--exchange", "gold-unrelated", "--max-new-tokens", "2", "--resamples", "10"),
        *("--distance", "0", "--filler", filler, "--json"),
    ).record
    assert [one["kind"] for one in found["tables"]] == ["lookup", "two-step"]
    assert found["settings"]["form"] == "chat"
    assert found["settings"]["cases"] == 2
    assert found["settings"]["rows"] == ["prepend", "slot, e = 1"]


@pytest.mark.parametrize(
    ("more", "message", "code"),
    [
        (("--distance", "some"), "--distance some: expected whole numbers", 2),
        (("--distance", "0"), "found 0; expected 1 or more, or --asked before", 2),
        (("--recompute-tokens", "1,no"), "expected whole numbers from 0 to 1048576", 2),
        (("--exchange", "gold-gold"), "'gold-gold' is not one of", 2),
        (("--filler", "nowhere.txt"), "--filler nowhere.txt: no such file", 1),
        (("--out", "no/where.jsonl"), "no such folder as no", 2),
        (("--distance", "600"), "case 1, prepend: the prompt has", 1),
    ],
)
def test_what_is_refused(
    words: tuple[str | Path, ...], more: tuple[str, ...], message: str, code: int
) -> None:
    assert message in refused(*words, *more, code=code)


def test_files_that_are_none(words: tuple[str | Path, ...], tmp_path: Path) -> None:
    assert "no such file" in refused("eval", "swap", tmp_path / "none", *words[3:], code=1)
    empty = tmp_path / "empty.txt"
    empty.write_text("\n", "utf-8")
    assert "found no text" in refused(*words, "--filler", empty, code=1)
