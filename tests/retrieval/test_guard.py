"""A retriever that is slow, hangs or fails, in the library and on the command line."""

import json
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from command_line import run
from flashback.engines.local import LocalEngine
from flashback.errors import FlashBackWarning, RetrieverError, SettingsError
from flashback.loading import load
from flashback.retrieval.guard import GuardSettings, LimitedRetriever, OnRetrievalError
from flashback.retrieval.protocol import Hit, failures_of
from flashback.settings import RetrievalSettings, SearchOptions, Settings, StoppingSettings
from flashback.writing.generator import Generator, TextPiece
from tiny_readers import tiny_reader

CONTINUE = OnRetrievalError.CONTINUE
PROMPT = [0, *range(10, 40)]


class Calling:
    """Finds a passage after a call."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        self._call()
        return [[Hit("p", "d", "t", "a passage", 1.0)] for _ in queries]


def fail() -> None:
    raise OSError("the index\nis gone")


def settings(lookahead: int, tokens: int = 24) -> Settings:
    retrieval = RetrievalSettings(
        "append", stride=8, query_tokens=12, passage_tokens=20, lookahead=lookahead
    )
    return Settings(retrieval, stopping=StoppingSettings(tokens, ignore_eos=True))


def test_a_slow_search_stops_no_decoding_when_it_looks_ahead() -> None:
    """Each search ends only when the last token before its boundary has been written."""
    reader = tiny_reader()
    may_end = threading.Event()
    may_end.set()  # nothing is decoded before the first one
    begun: list[bool] = []

    def wait() -> None:
        begun.append(True)
        assert may_end.wait(240)
        may_end.clear()

    writer = Generator(reader, LocalEngine(reader.model, reader.window), Calling(wait))
    tokens = 0
    for event in writer.stream(PROMPT, settings(lookahead=4)):
        if isinstance(event, TextPiece):
            tokens += 1
            if tokens in (7, 15):
                may_end.set()  # with a token of the stride left
    assert tokens == 24
    assert len(begun) == 3


def test_a_failure_ends_the_text_or_the_stride_does_without() -> None:
    stopped = LimitedRetriever(Calling(fail), GuardSettings())
    with pytest.raises(RetrieverError, match=r"the retriever failed \(OSError: the index is gone"):
        stopped.search(["a"], SearchOptions())
    going_on = LimitedRetriever(Calling(fail), GuardSettings(on_retrieval_error=CONTINUE))
    with pytest.warns(FlashBackWarning, match="the index is gone.; there is no passage"):
        assert going_on.search(["a", "b"], SearchOptions()) == [[], []]
    assert (failures_of(going_on), failures_of(stopped)) == (2, 0)


def test_what_is_no_list_of_hits_is_the_retrievers_fault() -> None:
    class Wrong:
        def search(self, queries: Sequence[str], options: SearchOptions) -> Any:
            return "nothing"

    guarded = LimitedRetriever(Wrong(), GuardSettings(on_retrieval_error=CONTINUE))
    with pytest.raises(SettingsError, match="retriever Wrong: search returned 'nothing'"):
        guarded.search(["a"], SearchOptions())


@pytest.mark.parametrize("lookahead", [0, 4])
def test_a_search_that_hangs_is_left(lookahead: int) -> None:
    reader = tiny_reader()
    ended = threading.Event()
    guarded = LimitedRetriever(Calling(ended.wait), GuardSettings(0.05, CONTINUE))
    writer = Generator(reader, LocalEngine(reader.model, reader.window), guarded)
    with pytest.warns(
        FlashBackWarning, match=r"TimeoutError: no answer in 0\.05 s; retrieval_limit"
    ):
        result = writer.generate(PROMPT, settings(lookahead))
    ended.set()
    assert len(result.tokens) == 24
    assert not result.sources


def test_wrong_options_are_always_refused(index: Path) -> None:
    guard = GuardSettings(on_retrieval_error=CONTINUE)
    writer = load(index=index, guard=guard, adapter=None, device="cpu", dtype="float32")
    assert writer.retriever is not None
    with pytest.raises(SettingsError, match="k=0"):
        writer.retriever.search(["a"], SearchOptions(k=0))
    assert writer.generate("The moon", max_new_tokens=2).sources


def test_the_command_line_obeys(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "falling.py").write_text(
        "class Down:\n    def search(self, queries, options):\n        raise OSError('down')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    small = (
        "--stride",
        "4",
        "--passage-tokens",
        "16",
        "--max-new-tokens",
        "4",
        "--pattern",
        "slot",
    )
    words = ("generate", "--retriever", "falling:Down", "--model", model_folder, *small)
    failed = run(*words, "The moon", code=1)
    assert "flashback: the retriever failed (OSError: down)\n" in failed.err
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        written = run(*words, "--on-retrieval-error", "continue", "--json", "The moon")
    assert "(OSError: down); there is no passage" in written.err
    assert json.loads(written.out)["strides"][0]["passages"] == []
