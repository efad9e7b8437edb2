"""`--retriever` in every command that takes an index."""

import json
import sys
from pathlib import Path

import pytest

from command_line import refused, run
from small_corpora import FITS, write_corpus

MODULE = """
from flashback.retrieval.protocol import Hit

def make(text="The sea is salt."):
    class Same:
        def search(self, queries, options):
            return [[Hit("s#0", "s", "sea", text, 1.0)][: options.k] for _ in queries]
    return Same()
"""
SMALL = ("--stride", "4", "--query-tokens", "8", "--passage-tokens", "16")
TINY = (*SMALL, "--max-new-tokens", "6", "--device", "cpu", "--dtype", "float32")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a module in it; nothing is put on the path by the test."""
    (tmp_path / "own_retriever.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.delitem(sys.modules, "own_retriever", raising=False)
    return tmp_path


SPEC = ("--retriever", "own_retriever:make")


def test_writing_and_searching(here: Path, chat_model: Path, model_folder: Path) -> None:
    plain = ("--model", model_folder, "--pattern", "slot", *TINY)
    record = run("generate", *SPEC, *plain, "--json", "The moon").record
    assert record["strides"][0]["passages"][0]["text"] == "The sea is salt."
    model = ("--model", chat_model, "--pattern", "slot", *TINY)
    asked = run("ask", *SPEC, *model, "--json", "What is the sea?").out
    assert json.loads(asked)["sources"][0]["title"] == "sea"
    talked = run("chat", *SPEC, *model, input=b"What is the sea?\n").out
    assert "sea" in talked
    found = run("search", "--retriever", "own_retriever:make=Fresh.", "water", "--json").record
    assert found["hits"][0]["text"] == "Fresh."


def test_training_and_scoring(here: Path, model_folder: Path) -> None:
    texts = write_corpus(here / "texts.jsonl", 2)
    model = ("--model", model_folder, *FITS)
    outcome = run("eval", "perplexity", texts, *SPEC, *model, "--pattern", "append", "--json")
    assert json.loads(outcome.out)["settings"]["index"] == SPEC[1]
    assert "lookups are not kept: the retriever does not say what is in it" in outcome.err
    flags = [*FITS[:-2], "--steps", "1"]
    run("train", texts, *SPEC, "--model", model_folder, *flags, "--out", here / "ADAPTER")
    card = json.loads((here / "ADAPTER" / "flashback.json").read_text())
    assert SPEC[1] in json.dumps(card)


def test_answers(here: Path, chat_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps({"question": "What is salt?", "answer": "sea"}) + "\n")
    flags = ("--device", "cpu", "--dtype", "float32", "--passage-tokens", "24", "--json")
    words = ("eval", "qa", file, "--model", chat_model, "--max-new-tokens", "4", *flags)
    more = ("--resamples", "50", "--pattern", "prepend")
    record = run(*words, *SPEC, *more).record
    assert record["settings"]["index"] == SPEC[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("generate", "--retriever", "nonsuch:make", "x"), "there is no module nonsuch"),
        (("search", "x"), "expected FOLDER and QUERY; found 'x'"),
        (("search", *SPEC), "Missing argument"),
        (("search", "--retriever", "gopher://a", "x"), "unknown scheme gopher://"),
        (("bench", "pareto", "x", "--out", "y"), "Missing option '--index' (or '--retriever')"),
        (("generate", *SPEC, "--fusion-weights", "1,2", "x"), "a weight for each of 1 indexes"),
        (("generate", *SPEC, "--fusion-weights", "1,x", "x"), "expected numbers above 0"),
        (("search", *SPEC, "--reranker", "reader", "x"), "searches before its reader is loaded"),
    ],
)
def test_refusals(here: Path, words: tuple[str, ...], message: str) -> None:
    assert message in refused(*words)


def test_a_retriever_that_gives_no_hits_is_named(here: Path) -> None:
    Path("wrong.py").write_text("class Wrong:\n    def search(self, queries, options): return 5\n")
    message = refused("search", "--retriever", "wrong:Wrong", "x")
    assert "retriever Wrong: search returned 5; expected a list of flashback.Hit" in message
