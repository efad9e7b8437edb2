"""The language of a corpus, detected when an index is built."""

import builtins
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from flashback.corpus.passages import Passage
from flashback.errors import IndexFolderError, SettingsError
from flashback.retrieval import languages
from flashback.retrieval.bm25 import BM25Index
from flashback.retrieval.changes import merge
from flashback.retrieval.index_folder import MANIFEST, Manifest, read_manifest
from flashback.retrieval.index_settings import IndexSettings
from flashback.retrieval.indexing import index_corpus
from flashback.retrieval.kinds import open_index
from flashback.retrieval.languages import SAMPLE, Detection, detect
from flashback.settings import SearchOptions

TEXTS = {
    "english": (
        "The lighthouse of the island was built on a rock, and its lamps were lit by the keepers "
        "every evening. The boats that came home late were waiting for its light.",
        "Nobody knows who carried the heavy stones up to the tower. The oldest houses of the "
        "village were standing there when the builders arrived.",
    ),
    "german": (
        "Der Leuchtturm der Insel wurde auf einem Felsen gebaut, und seine Lampen wurden jeden "
        "Abend von den Wärtern angezündet. Die späten Boote warteten auf sein Licht.",
        "Niemand weiß, wer die schweren Steine auf den Turm getragen hat. Die ältesten Häuser des "
        "Dorfes standen schon, als die Baumeister ankamen.",
    ),
    "zh": (
        "这座岛上的灯塔建在一块岩石上，看守人每天晚上点亮灯。晚归的船只都在等待它的光。",
        "没有人知道是谁把沉重的石头搬到塔上的。建筑工人到来的时候，村里最古老的房子已经在那里了。",
    ),
    "ja": (
        "島の灯台は岩の上に建てられ、灯台守が毎晩その明かりをともしていた。遅く帰る船はその光を待っていた。",
        "重い石を塔まで運んだのが誰なのか、誰も知らない。職人たちが着いたとき、村の一番古い家々はもうそこにあった。",
    ),
    "pl": (
        "Latarnia morska na wyspie została zbudowana na skale, a jej lampy zapalali co wieczór "
        "latarnicy. Łodzie, które wracały późno, czekały na jej światło.",
    ),
}
CODE = "x = [f(i) for i in range(10)]"


def passages(texts: Iterable[str]) -> list[Passage]:
    return [Passage(f"d{at}#0", f"d{at}", "", text) for at, text in enumerate(texts)]


def built(folder: Path, texts: Iterable[str], language: str = "auto", **more: Any) -> Manifest:
    corpus = folder.parent / f"{folder.name}.jsonl"
    lines = ({"id": f"d{at}", "text": text} for at, text in enumerate(texts))
    corpus.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    return index_corpus(corpus, folder, IndexSettings(language=language, **more))


def found(index: Any, query: str) -> list[str]:
    return [hit.document_id for hit in index.search([query], SearchOptions(k=9))[0]]


@pytest.mark.parametrize(
    ("written", "taken"),
    [
        (["english"], "english"),
        (["german"], "german"),
        (["zh"], "english"),
        (["ja"], "english"),
        (["pl"], "none"),
        (["english", "german", "english"], "english+german"),
        (["english", "pl", "pl"], "english"),
        (["german", "pl", "pl", "pl"], "none"),
        (["german", "ja"], "german"),
        (["english", "zh", "ja"], "english"),
        (["german"] * 5 + ["english"], "german+english"),
        (["german"] * 10 + ["english"], "german"),
    ],
)
def test_what_latin_script_is_taken_for(written: list[str], taken: str) -> None:
    texts = [text for name in written for text in TEXTS[name]]
    seen = detect(texts, 10 * len(texts))
    assert (seen.language, seen.sampled) == (taken, len(texts))
    assert seen.share == pytest.approx(0.1)
    assert seen.languages.keys() == set(written)
    assert sum(seen.languages.values()) == pytest.approx(1)
    assert list(seen.languages.values()) == sorted(seen.languages.values(), reverse=True)


def test_code_and_numbers_have_no_say() -> None:
    seen = detect([*TEXTS["german"], CODE, CODE, "12 34", ""], 6)
    assert seen.language == "german"
    assert seen.languages["?"] == pytest.approx(4 / 6)
    assert detect([CODE], 1).language == "english"


@pytest.mark.parametrize("kind", ["bm25", "bm25s"])
def test_a_german_corpus_is_found_by_german_stems(tmp_path: Path, kind: str) -> None:
    manifest = built(tmp_path / "IDX", TEXTS["german"], kind=kind)
    assert manifest == read_manifest(tmp_path / "IDX")
    assert manifest.content.settings["language"] == "german"
    assert manifest.content.detected == {
        "sampled": 2,
        "share": 1.0,
        "language": "german",
        "languages": {"german": 1.0},
    }
    assert found(open_index(tmp_path / "IDX"), "ein ältester Stein") == ["d1"]
    built(tmp_path / "English", TEXTS["german"], language="english", kind=kind)
    assert found(open_index(tmp_path / "English"), "ein ältester") == []


def test_an_english_corpus_is_indexed_as_by_default(tmp_path: Path) -> None:
    texts = [*TEXTS["english"], CODE]
    detected = built(tmp_path / "auto", texts)
    given = built(tmp_path / "given", texts, IndexSettings().language)
    assert detected.content.settings == given.content.settings
    assert given.content.detected is None
    queries = ["light the lamp", "a house in villages", "carry stone", "range"]
    options = SearchOptions(k=9)
    by_default = BM25Index.open(tmp_path / "given").search(queries, options)
    assert BM25Index.open(tmp_path / "auto").search(queries, options) == by_default
    assert all(by_default)


def test_a_mixed_corpus_is_found_by_the_stems_of_its_languages(tmp_path: Path) -> None:
    mixed = [*TEXTS["english"], *TEXTS["german"], *TEXTS["zh"], *TEXTS["ja"]]
    assert built(tmp_path / "IDX", mixed).content.settings["language"] == "english+german"
    index = open_index(tmp_path / "IDX")
    assert found(index, "carrying stones") == ["d1"]
    assert found(index, "ältester") == ["d3"]
    assert found(index, "nobody") == ["d1"]
    assert "d2" in found(index, "seine")  # no stop word
    assert found(index, "灯塔")[0] == "d4"
    assert "d6" in found(index, "灯台守")


def test_without_a_language_words_are_found_as_they_are_written(tmp_path: Path) -> None:
    built(tmp_path / "IDX", [*TEXTS["pl"], *TEXTS["english"]], language="none")
    index = open_index(tmp_path / "IDX")
    assert found(index, "LIGHTHOUSE") == ["d1"]
    assert found(index, "lighthouses") == []
    assert found(index, "the")  # no stop word


@pytest.mark.parametrize("language", ["english+", "german+none", "auto+german", "klingon", ""])
def test_languages_that_are_not_known_are_refused(language: str) -> None:
    with pytest.raises(SettingsError, match="expected one of danish, dutch"):
        IndexSettings(language=language)
    with pytest.raises(SettingsError, match="expected every language once"):
        IndexSettings(language="german+german")


def test_what_was_detected_outlives_changes(tmp_path: Path) -> None:
    before = built(tmp_path / "IDX", TEXTS["german"])
    assert merge(tmp_path / "IDX").content.detected == before.content.detected
    assert found(open_index(tmp_path / "IDX"), "Stein") == ["d1"]


def test_a_large_corpus_is_sampled_evenly_and_the_same_way_each_time() -> None:
    texts = [f"{number}" for number in range(4 * SAMPLE)]
    seen = []
    for _ in range(2):
        detection = Detection(IndexSettings(language="auto"))
        assert len(list(detection.watch(passages(texts)))) == len(texts)
        assert detection.found is not None
        assert (detection.found.sampled, detection.found.share) == (SAMPLE, 0.25)
        seen.append(list(detection._sample))
    assert seen[0] == seen[1]
    assert len(set(seen[0])) == SAMPLE
    quarters = [sum(int(one) // SAMPLE == part for one in seen[0]) for part in range(4)]
    assert all(40 < count < 90 for count in quarters)


def test_nothing_is_looked_at_where_a_language_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(languages, "_identifier", None)
    detection = Detection(IndexSettings(language="german"))
    assert list(detection.watch(passages(["a"]))) == passages(["a"])
    assert detection.found is None
    assert detection.settings == IndexSettings(language="german")


def test_without_the_extra_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("py3langid"):
            raise ImportError(name, name="py3langid")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    languages._identifier.cache_clear()
    with pytest.raises(SettingsError, match=r"needs py3langid; .* pip install '\.\[languages\]'"):
        built(tmp_path / "IDX", TEXTS["german"])
    assert not (tmp_path / "IDX").exists()


def test_dense_indexes_have_no_language() -> None:
    with pytest.raises(SettingsError, match="the encoder has its languages"):
        IndexSettings(kind="dense", language="auto")


def test_an_index_of_no_certain_language_is_refused(tmp_path: Path) -> None:
    built(tmp_path / "IDX", TEXTS["german"])
    path = tmp_path / "IDX" / MANIFEST
    record = json.loads(path.read_text("utf-8"))
    record["content"]["settings"]["language"] = "auto"
    path.write_text(json.dumps(record), "utf-8")
    with pytest.raises(IndexFolderError, match="its manifest has other settings"):
        open_index(tmp_path / "IDX")
