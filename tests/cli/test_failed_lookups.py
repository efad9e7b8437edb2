"""A retriever that fails while passages are looked up: the command stops, or says how often."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from command_line import Outcome, run
from small_corpora import FITS, Corpora

FAILING = """
import os
from flashback.retrieval.kinds import open_index

class Failing:
    '''An index, whose searches fail while there is a file.'''
    identity = "failing"
    searches = 0

    def __init__(self, folder):
        self._index, self._broken = open_index(folder), folder + ".broken"

    def search(self, queries, options):
        Failing.searches += 1
        if os.path.exists(self._broken) and Failing.searches % 3 == 0:
            raise OSError("the store is down")
        return self._index.search(queries, options)
"""
ON = ("--on-retrieval-error", "continue")


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Corpora:
    return Corpora(tmp_path_factory.mktemp("corpora"))


class Failing:
    """A retriever for the command line, every third search of which fails."""

    def __init__(self, module: Any, broken: Path, words: tuple[str | Path, ...]) -> None:
        self._module = module
        self.broken = broken
        self.words = words

    def set(self, broken: bool) -> None:
        self._module.Failing.searches = 0
        self.broken.touch() if broken else self.broken.unlink(missing_ok=True)

    @property
    def searches(self) -> int:
        return int(self._module.Failing.searches)

    def stopped(self, *words: str | Path) -> Outcome:
        """A command that fails with one line."""
        self.set(broken=True)
        failed = run(*words, *self.words, code=1)
        said = failed.err.splitlines()[-1]
        assert said == "flashback: the retriever failed (OSError: the store is down)"
        assert failed.out == ""
        return failed

    def goes_on(self, *words: str | Path) -> Outcome:
        self.set(broken=True)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            done = run(*words, *self.words, *ON)
        assert "(OSError: the store is down); there is no passage" in done.err
        return done


@pytest.fixture
def failing(corpora: Corpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Failing]:
    (tmp_path / "failing_lookups.py").write_text(FAILING, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    import importlib

    module = importlib.reload(importlib.import_module("failing_lookups"))
    spec = f"failing_lookups:Failing={corpora.index}"
    yield Failing(module, Path(f"{corpora.index}.broken"), ("--retriever", spec))
    Path(f"{corpora.index}.broken").unlink(missing_ok=True)


def test_perplexity_stops_or_counts_and_keeps_no_failure(
    failing: Failing, corpora: Corpora, model_folder: Path
) -> None:
    words = ("eval", corpora.scored, "--model", model_folder, *FITS, "--json")
    failing.stopped(*words)
    for _ in range(2):  # a failed lookup is not kept
        done = failing.goes_on(*words)
        record = json.loads(done.out)
        assert record["failed_lookups"] > 0
        cuts, empty = (record["contamination"][name] for name in ("cuts", "empty"))
        assert empty >= record["failed_lookups"]
        assert cuts > empty
        assert f"{record['failed_lookups']} lookups failed; they have no passage" in done.err
    failing.set(broken=False)
    record = run(*words, *failing.words).record
    assert (record["failed_lookups"], record["contamination"]["empty"]) == (0, 0)
    searches = failing.searches
    assert searches > 0
    run(*words, *failing.words)
    assert failing.searches == searches  # it was kept


def test_answers_stop_or_count(failing: Failing, tmp_path: Path, chat_model: Path) -> None:
    file, out = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    lines = [{"question": f"What is word{at % 60}?", "answer": "a word"} for at in range(130)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    words = (
        *("eval", "qa", file, "--model", chat_model, "--device", "cpu", "--dtype", "float32"),
        *("--passage-tokens", "48", "--max-new-tokens", "2", "--resamples", "50", "--json"),
        *("--pattern", "none", "--batch-size", "32"),
    )
    failing.stopped(*words, "--out", out)
    assert not out.exists()
    record = json.loads(failing.goes_on(*words).out)
    assert record["failed_lookups"] == 2  # of the third search
    assert record["without_passage"] == 2
    assert record["audit"]["texts"] == 130


def test_training_stops_or_says_how_often(
    failing: Failing, corpora: Corpora, model_folder: Path, tmp_path: Path
) -> None:
    words = (
        *("train", corpora.trained, "--model", model_folder, "--out", tmp_path / "ADAPTER"),
        *(*FITS[:-2], "--steps", "1", "--windows-per-step", "1"),
    )
    failing.stopped(*words)
    assert not (tmp_path / "ADAPTER").exists()
    assert "lookups failed; they have no passage, and are not kept" in failing.goes_on(*words).err


def test_a_reproduction_stops(
    failing: Failing, corpora: Corpora, model_folder: Path, tmp_path: Path
) -> None:
    documents = ("--train", corpora.trained, "--evaluate", corpora.scored)
    failing.stopped(
        "reproduce", *documents, "--model", model_folder, *FITS, "--out", tmp_path / "TABLE"
    )
    assert not (tmp_path / "TABLE").exists()


def test_a_search_stops_or_says_which_failed(failing: Failing, corpora: Corpora) -> None:
    failing.set(broken=True)
    run("search", *failing.words, "word1")
    run("search", *failing.words, "word1")
    failed = run("search", *failing.words, "word1", code=1)
    assert failed.err == "flashback: the retriever failed (OSError: the store is down)\n"
    run("search", *failing.words, "word1")
    run("search", *failing.words, "word1")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        done = run("search", *failing.words, "word1", "--json", *ON)
    assert json.loads(done.out) == {"query": "word1", "hits": [], "failed": True}
    assert "nothing found" not in done.err
