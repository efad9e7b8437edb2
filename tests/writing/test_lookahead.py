"""Searching ahead changes when a passage is worked out and which query it answers; nothing else."""

import threading
import time
from collections.abc import Sequence

import pytest

from flashback.corpus.documents import Document
from flashback.engines.local import LocalEngine
from flashback.errors import SettingsError
from flashback.retrieval.protocol import Hit
from flashback.scoring.lookup import Lookup
from flashback.scoring.window_settings import WindowSettings
from flashback.scoring.windows import cut_windows
from flashback.settings import RetrievalSettings, SearchOptions, Settings, StoppingSettings
from flashback.writing.generator import Generation, Generator, Stride, Writing
from tiny_readers import tiny_reader

PROMPT = [0, *range(10, 40)]


class Recording:
    """A passage that depends on the query alone; remembers queries, threads and times."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.queries: list[str] = []
        self.threads: list[str] = []
        self._seconds = seconds

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        self.queries += queries
        self.threads.append(threading.current_thread().name)
        time.sleep(self._seconds)
        return [[Hit("p", "d", "t", f"of {query[-3:]!r}", 1.0)] for query in queries]


def settings(pattern: str, lookahead: int, tokens: int = 40) -> Settings:
    retrieval = RetrievalSettings(
        pattern, stride=8, query_tokens=12, passage_tokens=20, lookahead=lookahead
    )
    return Settings(retrieval, stopping=StoppingSettings(tokens, ignore_eos=True))


@pytest.mark.parametrize("pattern", ["append", "prepend", "slot"])
@pytest.mark.parametrize("lookahead", [0, 1, 3, 7])
def test_queries_end_that_many_tokens_before_the_boundary(pattern: str, lookahead: int) -> None:
    reader, retriever = tiny_reader(), Recording()
    writer = Generator(reader, LocalEngine(reader.model, reader.window), retriever)
    found = writer.generate(PROMPT, settings(pattern, lookahead))
    ids = [*PROMPT, *found.tokens]
    ends = [len(PROMPT), *(len(PROMPT) + 8 * stride - lookahead for stride in range(1, 5))]
    assert retriever.queries == [reader.decode(ids[end - 12 : end]) for end in ends]
    ahead = [name.startswith("flashback-lookahead") for name in retriever.threads]
    assert ahead == [False, *[lookahead > 0] * 4]
    for stride, query in zip(found.strides, retriever.queries, strict=True):
        assert stride.passages[0].text == f"of {query[-3:]!r}"


@pytest.mark.parametrize("pattern", ["append", "slot"])
def test_a_batch_writes_what_each_text_alone_would(pattern: str) -> None:
    reader = tiny_reader()
    writer = Generator(reader, LocalEngine(reader.model, reader.window), Recording())
    prompts = [PROMPT, PROMPT[:9], PROMPT[:20]]
    wanted = settings(pattern, 3, tokens=150)  # with jumps
    together = writer.generate_batch(prompts, wanted, batch_size=3)
    alone = [writer.generate(prompt, wanted) for prompt in prompts]
    assert any(one.jumps for one in alone)
    assert [one.tokens for one in together] == [one.tokens for one in alone]
    assert [[s.passages for s in one.strides] for one in together] == [
        [s.passages for s in one.strides] for one in alone
    ]


def test_a_slow_search_is_not_waited_for_if_it_began_in_time() -> None:
    """The wait is what is left of the search when the boundary comes."""
    reader, retriever = tiny_reader(), Recording(seconds=0.3)
    writer = Generator(reader, LocalEngine(reader.model, reader.window), retriever)
    texts = writer.stream(PROMPT, settings("append", 7, tokens=16))
    for _ in texts:
        if len(retriever.queries) == 2:
            time.sleep(0.2)  # as if decoding took longer
    assert texts.result.strides[0].retrieve_seconds >= 0.3
    assert texts.result.strides[1].retrieve_seconds < 0.3


def test_a_failing_search_is_told_at_the_boundary() -> None:
    class Failing(Recording):
        def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
            if self.queries:
                raise OSError("the index is gone")
            return super().search(queries, options)

    reader = tiny_reader()
    writer = Generator(reader, LocalEngine(reader.model, reader.window), Failing())
    with pytest.raises(OSError, match="the index is gone"):
        writer.generate(PROMPT, settings("append", 4))


def test_a_text_that_is_closed_leaves_no_thread() -> None:
    reader = tiny_reader()
    writer = Generator(reader, LocalEngine(reader.model, reader.window), Recording())
    writing = writer.stream(PROMPT, settings("append", 7))
    for number, _ in enumerate(writing):
        if number == 6:
            writing.close()
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("flashback-lookahead")]


def searched_apart(writing: Writing) -> Generation:
    """Write to the end as who has other things to do during searches."""
    assert writing.search() is not None
    while (search := writing.search()) is not None:
        assert writing.search() is search
        search.result()
        next(event for event in writing if isinstance(event, Stride))
    return writing.finish()


@pytest.mark.parametrize("pattern", ["append", "slot"])
@pytest.mark.parametrize("lookahead", [0, 3])
def test_searches_begun_by_the_caller_change_nothing(pattern: str, lookahead: int) -> None:
    wanted = settings(pattern, lookahead, tokens=150)  # with jumps
    results, queries = [], []
    for finish in (Writing.finish, searched_apart):
        reader, retriever = tiny_reader(), Recording()
        writer = Generator(reader, LocalEngine(reader.model, reader.window), retriever)
        results.append(finish(writer.stream(PROMPT, wanted)))
        queries.append(retriever.queries)
    alone, apart = results
    assert alone.jumps
    assert (apart.tokens, apart.jumps) == (alone.tokens, alone.jumps)
    assert [s.passages for s in apart.strides] == [s.passages for s in alone.strides]
    assert queries[0] == queries[1]
    assert all(name.startswith("flashback-lookahead") for name in retriever.threads)


def test_a_search_begun_by_the_caller_is_waited_for_from_then_on() -> None:
    reader, retriever = tiny_reader(), Recording(seconds=0.1)
    writer = Generator(reader, LocalEngine(reader.model, reader.window), retriever)
    apart = searched_apart(writer.stream(PROMPT, settings("append", 0, tokens=16)))
    assert all(stride.retrieve_seconds >= 0.1 for stride in apart.strides)


def test_there_is_no_search_without_passages_or_behind_the_end() -> None:
    reader, retriever = tiny_reader(), Recording()
    writer = Generator(reader, LocalEngine(reader.model, reader.window), retriever)
    assert writer.stream(PROMPT, settings("none", 0)).search() is None
    writing = writer.stream(PROMPT, settings("append", 0, tokens=8))
    writing.finish()
    assert writing.search() is None


def test_a_search_that_is_not_wanted_any_more_leaves_no_thread() -> None:
    reader, retriever = tiny_reader(), Recording(seconds=0.05)
    writer = Generator(reader, LocalEngine(reader.model, reader.window), retriever)
    writing = writer.stream(PROMPT, settings("append", 0))
    assert writing.search() is not None
    writing.close()
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("flashback-lookahead")]


def test_a_lookahead_must_be_within_a_stride() -> None:
    reader = tiny_reader()
    writer = Generator(reader, LocalEngine(reader.model, reader.window), Recording())
    with pytest.raises(SettingsError, match="less than stride=8"):
        writer.generate(PROMPT, settings("append", 8))


def test_evaluation_asks_what_writing_asks() -> None:
    reader = tiny_reader()
    windows = WindowSettings(window_tokens=64, first_boundary=16)
    (window,) = cut_windows([Document("d", "", "x" * 30 + "y" * 30)], reader, windows, 8)
    retrieval = RetrievalSettings("append", stride=8, query_tokens=12, lookahead=3)
    queries = Lookup(reader, Recording(), retrieval).queries(window)
    ends = [16, *(cut.boundary - 3 for cut in window.cuts[1:])]
    assert queries == [reader.decode(window.ids[end - 12 : end]) for end in ends]
