"""`flashback eval qa` as researchers meet it: a table, answers in a file, resumption, refusals."""

import json
from pathlib import Path
from typing import Any

import pytest

from command_line import refused, run
from flashback.questions.answers import Respondent
from flashback.retrieval.bm25 import BM25Index
from small_corpora import FITS, Corpora

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
NAMES = ["plain RAG", "none", "prepend", "append", "slot"]
LINES: list[dict[str, Any]] = [
    {"question": "What follows the moon?", "answer": "tides", "passage": "Tides follow it."},
    {"question": "Which format is JSON?", "answers": ["data", "a format"], "passage": "Data."},
    {"question": "What is snow in Japanese?", "answer": ["雪"], "id": "s", "passage": "Yuki, 雪"},
]


@pytest.fixture
def words(tmp_path: Path, chat_model: Path) -> tuple[str | Path, ...]:
    """A command that is complete but for --index or --oracle."""
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in LINES), "utf-8")
    return (
        *("eval", "qa", file, "--model", chat_model, "--device", "cpu", "--dtype", "float32"),
        *("--passage-tokens", "48", "--max-new-tokens", "6", "--resamples", "50"),
    )


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def in_order(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(answers, key=lambda one: int(one["number"]))


def test_a_table_with_every_row_and_every_answer(
    words: tuple[str | Path, ...], index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries: list[str] = []
    search = BM25Index.search

    def counted(self: Any, asked: Any, options: Any) -> Any:
        queries.extend(asked)
        return search(self, asked, options)

    monkeypatch.setattr(BM25Index, "search", counted)
    out = tmp_path / "answers.jsonl"
    record = run(*words, "--index", index, "--out", out, "--json").record
    assert queries == [line["question"] for line in LINES]  # once, for all rows
    assert [row["name"] for row in record["rows"]] == NAMES
    assert (record["questions"], record["settings"]["form"]) == (3, "chat")
    assert [row["frame"] is None for row in record["rows"]] == [True, True, False, False, False]
    for row in record["rows"]:
        assert row["nats_per_token"]["low"] <= row["nats_per_token"]["value"]
        assert row["against_plain_rag"].keys() == {
            *("exact_match", "f1", "substring", "nats_per_token")
        }
    answers = in_order(read(out))
    assert [one["number"] for one in answers] == [*range(1, 16)]
    assert [one["id"] for one in answers[::5]] == [1, "s", 2]
    by_question = [{json.dumps(one["passages"]) for one in answers[n::3]} for n in range(3)]
    assert all(len(own) == 1 for own in by_question)  # all rows had the same passages
    mean = sum(one["nats"] for one in answers[:3]) / sum(
        one["answer_tokens"] for one in answers[:3]
    )
    assert record["rows"][0]["nats_per_token"]["value"] == pytest.approx(mean)
    printed = run(*words, "--index", index, "--out", out).out  # all of it is there
    assert all(name in printed for name in (*NAMES, "F1", "-log p", "3 questions on 3 passages"))
    assert "Frame of append: " in printed
    assert in_order(read(out)) == answers


def test_an_interrupted_run_goes_on_where_it_was(
    words: tuple[str | Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    more = ("--oracle", "--form", "few-shot", "--examples", "1", "--batch-size", "2", "--json")
    record = run(*words, *more, "--out", whole).record
    records, answered = Respondent.records, 0

    def interrupted(self: Respondent, *arguments: Any) -> Any:
        nonlocal answered
        for one in records(self, *arguments):
            if answered == 7:
                raise KeyboardInterrupt
            answered += 1
            yield one

    monkeypatch.setattr(Respondent, "records", interrupted)
    run(*words, *more, "--out", cut, code=130)
    monkeypatch.setattr(Respondent, "records", records)
    assert len(read(cut)) == 7
    with open(cut, "a", encoding="utf-8") as file:
        file.write('{"number": 8, "ro')
    again = run(*words, *more, "--out", cut).record
    for one, other in zip(again.pop("rows"), record.pop("rows"), strict=True):
        for figures, expected in (
            (one, other),
            (one["against_plain_rag"], other["against_plain_rag"]),
        ):
            nats = figures.pop("nats_per_token")
            assert nats == pytest.approx(expected.pop("nats_per_token"), abs=1e-3)
        assert one == other
    assert again == record
    same = [{**one, "nats": pytest.approx(one["nats"], abs=1e-3)} for one in in_order(read(whole))]
    assert in_order(read(cut)) == same
    changed = refused(*words, *more, "--seed", "1", "--out", cut, code=1)
    assert "begun with seed 0, not 1" in changed


def test_documents_that_questions_name_are_shown(
    words: tuple[str | Path, ...], tmp_path: Path
) -> None:
    """From an index whose searches are limited in time, as all of the command's are."""
    documents = [{"id": name, "text": f"Once {name} was seen."} for name in ("moon", "snow")]
    lines = tmp_path / "documents.jsonl"
    lines.write_text("".join(json.dumps(one) + "\n" for one in documents), "utf-8")
    run("index", lines, "--out", tmp_path / "IDX")
    asked = [{"question": "Was it?", "answer": "yes", "passages": [one["id"]]} for one in documents]
    Path(words[2]).write_text("".join(json.dumps(one) + "\n" for one in asked), "utf-8")
    out = tmp_path / "answers.jsonl"
    run(*words, "--oracle", "--index", tmp_path / "IDX", "--pattern", "none", "--out", out)
    shown = [one["passages"][0]["id"] for one in read(out)[:2]]
    assert ["moon" in one for one in shown] == [True, False]
    assert ["snow" in one for one in shown] == [False, True]


def test_an_own_frame_and_chosen_rows(words: tuple[str | Path, ...]) -> None:
    more = ("--oracle", "--pattern", "slot", "--limit", "2", "--frame-before", "{", "--json")
    record = run(*words, *more).record
    assert [row["name"] for row in record["rows"]] == ["plain RAG", "slot"]
    assert record["rows"][1]["frame"]["before"].endswith("{")
    assert record["questions"] == 2
    assert record["answer_shown"] in (50, 100)


TALKS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "What follows the moon?"}], "answer": "tides"},
    {
        "messages": [
            {"role": "user", "content": "Which format is JSON?"},
            {"role": "assistant", "content": "A text."},
            {"role": "user", "content": "And a socket?"},
        ],
        "answer": "a connection",
        "passages": ["b"],
        "support": "reaches",
    },
]


def test_conversations(words: tuple[str | Path, ...], index: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "talks.jsonl", tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in TALKS), "utf-8")
    asked = ("eval", "qa", file, *words[3:], "--index", index, "--out", out)
    record = run(*asked, "--json").record
    names = [NAMES[0], "plain RAG, kept", *NAMES[1:]]
    assert [row["name"] for row in record["rows"]] == names
    assert (record["conversations"], record["sources"]["questions"]) == (2, 1)
    answers = read(out)
    assert [one["turns"] for one in answers] == [1, 2] * 6
    for row, own in zip(record["rows"], zip(answers[::2], answers[1::2], strict=True), strict=True):
        assert row["prefilled"]["value"] == sum(one["prefilled"] for one in own) / 2
        assert row["support"]["answers"] == 1
    printed = " ".join(run(*asked).out.split())  # all of it is there
    assert "2 questions on 2 conversations" in printed
    assert "What answers was found for " in printed
    assert "Answers with what they rest on in view: plain RAG " in printed
    assert read(out) == answers
    shorter = refused(*asked, "--form", "question", code=2)
    assert "question 1 ends a conversation; expected --form chat and" in shorter


def test_messages_that_are_none_are_one_line(words: tuple[str | Path, ...], tmp_path: Path) -> None:
    file = tmp_path / "talks.jsonl"
    file.write_text('{"messages": [{"role": "robot", "content": "a"}], "answer": "b"}\n', "utf-8")
    message = refused("eval", "qa", file, *words[3:], "--oracle", code=1)
    assert "line 1: message 1 has the role 'robot'; expected user or assistant" in message


def test_in_context_ralms_prompt(words: tuple[str | Path, ...]) -> None:
    more = ("--oracle", "--form", "in-context-ralm", "--pattern", "prepend", "--json")
    record = run(*words, *more).record
    plain, prepend = record["rows"]
    assert prepend["frame"] == {"before": "", "after": "\n\n", "echo_tokens": 0}
    for name in ("f1", "nats_per_token"):  # the same ids, but for where texts are joined
        assert prepend[name]["value"] == pytest.approx(plain[name]["value"])


@pytest.mark.filterwarnings("default::flashback.errors.FlashBackWarning")
def test_adapters_are_rows_with_the_frame_they_were_trained_with(
    words: tuple[str | Path, ...], chat_model: Path, tmp_path: Path
) -> None:
    corpora, adapter = Corpora(tmp_path), tmp_path / "ADAPTER"
    trained = ("train", corpora.trained, "--index", corpora.index, "--model", chat_model)
    few = ("--steps", "1", "--windows-per-step", "1", "--out", adapter)
    run(*trained, *(word for word in FITS if word not in ("--resamples", "50")), *few)
    more = ("--oracle", "--limit", "2", "--adapter", adapter, "--pattern", "append")
    record = run(*words, *more, "--passage-tokens", "40", "--json").record  # and no warning
    assert [(row["name"], row["adapter"], row["trained_for"]) for row in record["rows"]] == [
        ("plain RAG", None, None),
        ("append", None, None),
        ("append + LoRA, trained marks", str(adapter), "append"),
    ]
    assert record["rows"][2]["frame"] is None
    nats = [row["nats_per_token"]["value"] for row in record["rows"]]
    assert len(set(nats)) == 3
    outcome = run(*words, *more, "--passages", "2")
    assert "was trained for passage tokens 40, not 48; passages 1, not 2" in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    ("more", "message", "code"),
    [
        ((), "expected --index IDX or --oracle, found neither", 2),
        (("--oracle", "--index", "IDX"), "found both, and no question that names its passages", 2),
        (("--oracle", "--form", "completion"), "question 1 has no text to be continued", 2),
        (("--oracle", "--form", "poem"), "'poem' is not one of", 2),
        (("--oracle", "--out", "no/where.jsonl"), "no such folder as no", 2),
        (("--oracle", "--form", "few-shot"), "expected more than the 4 of --examples", 1),
        (("--oracle", "--adapter", "nowhere"), "adapter nowhere: no such folder", 1),
        (("--oracle", "--pattern", "slot", "--echo-tokens", "4"), "has no effect with", 2),
    ],
)
def test_what_is_refused(
    words: tuple[str | Path, ...], more: tuple[str, ...], message: str, code: int
) -> None:
    assert message in refused(*words, *more, code=code)


def test_a_file_of_another_kind_is_one_line(words: tuple[str | Path, ...], tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("Once upon a time\n", "utf-8")
    message = refused(*("eval", "qa", other), *words[3:], "--oracle", code=1)
    assert "line 1: not JSON; expected JSON lines" in message


def test_the_group_means_perplexity_without_a_name() -> None:
    assert "flashback eval perplexity [OPTIONS] DOCUMENTS" in run("eval", "perplexity", "-h").out
    assert "flashback eval [OPTIONS] COMMAND" in run("eval", "--help").out
    for words in (("eval", "nowhere"), ("eval", "perplexity", "nowhere")):
        assert "nowhere" in refused(*words, "--pattern", "none", code=1)
