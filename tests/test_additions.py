"""A new pattern, index kind or engine is one file and one line: everything else finds it.

`test_fifth_pattern.py` scores and trains with new patterns.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from command_line import refused, run
from flashback.engines.local import LocalEngine
from flashback.errors import IndexFolderError, SettingsError
from flashback.evaluation.arms import untrained_arms
from flashback.evaluation.frame_kind import FrameKind
from flashback.loading import ENGINES, load
from flashback.patterns.registry import PATTERNS
from flashback.retrieval.kinds import KINDS, open_index
from flashback.settings import RetrievalSettings, SearchOptions, Settings, StoppingSettings
from flashback.writing.generator import Generator
from recompute import check_greedy
from servers import serving
from throw_away import Middle, Parrot, WordIndex, open_parrot, registered, write_word_index
from tiny_readers import MadeUpRetriever, tiny_reader

PASSAGES = ("The moon pulls the tides of the ocean.", "A lighthouse warns ships at night.")


@pytest.fixture
def middle() -> Iterator[str]:
    with registered(PATTERNS, "middle", Middle()):
        yield "middle"


def settings(pattern: str, **more: Any) -> Settings:
    retrieval = RetrievalSettings(pattern, stride=5, query_tokens=8, passage_tokens=24)
    return Settings(replace(retrieval, **more), stopping=StoppingSettings(20, ignore_eos=True))


def test_a_new_pattern_is_written_with_exactly(middle: str) -> None:
    reader = tiny_reader()
    writer = Generator(reader, LocalEngine(reader.model, reader.window), MadeUpRetriever())
    found = writer.generate("A text that goes on", settings(middle))
    assert any(stride.passages for stride in found.strides)
    check_greedy(reader.model, found, reader.forbidden)


def test_a_new_pattern_is_listed(middle: str) -> None:
    arms = untrained_arms(list(PATTERNS), [FrameKind.TEXT])
    assert middle in {arm.pattern for arm in arms}
    assert "middle" in run("generate", "--help").out
    assert "middle" in run("train", "--help").out
    with serving() as served:
        with served.http() as http:
            (model,) = http.get("/v1/models").json()["data"]
        about = model["flashback"]
        assert middle in about["patterns"]
        assert about["pattern_summaries"][middle] == Middle.summary
        record = served.complete(max_tokens=4, flashback={"pattern": middle})
        assert record["choices"][0]["finish_reason"] == "length"


def test_a_new_pattern_is_timed(middle: str) -> None:
    arguments = ("--shape", "flashback-mini", "--lengths", "64:160", "--stride", "16")
    more = ("--passage-tokens", "16", "--device", "cpu", "--sampled", "--json")
    record = run("bench", "runtime", *arguments, *more, "--pattern", middle).record
    assert {row["pattern"] for row in record["rows"]} == {middle}


def test_an_unknown_pattern_is_refused_by_name() -> None:
    with pytest.raises(SettingsError, match="pattern='middle': expected one of auto, none"):
        RetrievalSettings("middle")


def test_a_new_index_kind_is_opened_by_its_manifest(tmp_path: Path) -> None:
    write_word_index(tmp_path / "IDX", PASSAGES)
    with pytest.raises(IndexFolderError, match="kind 'words'; expected one of bm25"):
        open_index(tmp_path / "IDX")
    assert "kind 'words'" in refused("search", tmp_path / "IDX", "moon", code=1)
    with registered(KINDS, "words", WordIndex):
        index = open_index(tmp_path / "IDX")
        ((hit,),) = index.search(["the moon"], SearchOptions())
        assert hit.text == PASSAGES[0]
        assert "lighthouse" in run("search", tmp_path / "IDX", "ships at night", "-k", "1").out
        small = ("--stride", "4", "--passage-tokens", "16", "--max-new-tokens", "8", "--json")
        record = run("generate", "--index", tmp_path / "IDX", *small, "The moon").record
        assert record["strides"][0]["passages"][0]["text"] == PASSAGES[0]


def test_a_new_engine_writes_and_serves(tmp_path: Path) -> None:
    write_word_index(tmp_path / "IDX", PASSAGES)
    with registered(KINDS, "words", WordIndex), registered(ENGINES, "parrot", open_parrot):
        writer = load("elsewhere", tmp_path / "IDX", engine="parrot")
        assert isinstance(writer.engine, Parrot)
        found = writer.generate("The moon", settings("append", passage_tokens=40))
        assert found.strides[0].passages[0].text == PASSAGES[0]
        assert len(found.tokens) == 20
        with serving(writer.reader, writer.retriever, engine=writer.engine) as served:
            record = served.complete("The moon", max_tokens=6)
            assert record["usage"]["completion_tokens"] == 6


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(SettingsError, match="engine='parrot': expected one of local"):
        load(engine="parrot")
