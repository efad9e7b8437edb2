"""An index with k1 and b of one's own: the contract, and the formula."""

import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from flashback.corpus.documents import CorpusReport
from flashback.corpus.passages import Passage
from flashback.errors import FlashBackError, IndexFolderError, SettingsError
from flashback.retrieval.arrays import ArrayIndex, write_arrays
from flashback.retrieval.bm25 import IndexSettings, build_index
from flashback.retrieval.changes import changing
from flashback.retrieval.index_folder import read_manifest
from flashback.retrieval.indexing import index_corpus
from flashback.retrieval.kinds import open_index
from flashback.settings import SearchOptions
from retrieval.contract import PETS, Make, RetrieverContract, passages_of


def build(folder: Path, passages: Sequence[Passage], k1: float = 0.9, b: float = 0.4) -> ArrayIndex:
    made = IndexSettings(kind="bm25s", k1=k1, b=b)
    build_index(folder, passages, made, CorpusReport(), overwrite=True, write=write_arrays)
    index = open_index(folder)
    assert isinstance(index, ArrayIndex)
    return index


class TestContractOfArrays(RetrieverContract):
    @pytest.fixture(scope="class")
    @classmethod
    def make(cls, tmp_path_factory: pytest.TempPathFactory) -> Make:
        return lambda passages: build(tmp_path_factory.mktemp("index"), passages)


def lucene(query: Sequence[str], texts: Sequence[list[str]], k1: float, b: float) -> list[float]:
    """BM25 as Lucene has it, word by word."""
    average = sum(map(len, texts)) / len(texts)
    scores = []
    for text in texts:
        score = 0.0
        for term in query:
            n = sum(term in other for other in texts)
            idf = math.log(1 + (len(texts) - n + 0.5) / (n + 0.5))
            tf = text.count(term)
            score += idf * tf / (tf + k1 * (1 - b + b * len(text) / average))
        scores.append(score)
    return scores


@pytest.mark.parametrize(("k1", "b"), [(0.9, 0.4), (1.2, 0.75), (2.0, 0.0)])
def test_scores_are_those_of_the_formula(tmp_path: Path, k1: float, b: float) -> None:
    rng = random.Random(0)
    words = [f"w{n}x" for n in range(12)]  # neither stemmed nor stop words
    texts = [rng.choices(words, k=rng.randint(2, 39)) for _ in range(9)]
    passages = [Passage(f"{n}#0", str(n), "", " ".join(text)) for n, text in enumerate(texts)]
    index = build(tmp_path, passages, k1, b)
    for _ in range(20):
        query = rng.choices(words, k=rng.randint(1, 6))
        expected = {
            str(n): pytest.approx(score, rel=1e-4)
            for n, score in enumerate(lucene(query, texts, k1, b))
            if score
        }
        [hits] = index.search([" ".join(query)], SearchOptions(k=9))
        assert {hit.document_id: hit.score for hit in hits} == expected


def test_shared_passages_are_found_by_any_owner_that_is_allowed(tmp_path: Path) -> None:
    twins = [Passage(f"{n}#0", str(n), "", "The same words.") for n in range(3)]
    index = build(tmp_path, twins)
    assert len(index) == 1
    forbidden = SearchOptions(forbid_documents=("0", "1"))
    assert [hit.id for hit in index.search(["words"], forbidden)[0]] == ["2#0"]
    assert index.search(["words"], SearchOptions(forbid_documents=("0", "1", "2"))) == [[]]
    assert index.sample() == ["The same words."]


def test_a_corpus_of_stop_words_finds_nothing(tmp_path: Path) -> None:
    index = build(tmp_path, [Passage("a#0", "a", "", "The of and.")])
    assert index.search(["the of", ""], SearchOptions()) == [[], []]


def test_it_is_built_by_name_and_cannot_be_changed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The cat sleeps.")
    index_corpus(tmp_path / "a.txt", tmp_path / "IDX", IndexSettings(kind="bm25s", k1=0.9))
    assert open_index(tmp_path / "IDX").manifest.content.kind == "bm25s"
    with (
        pytest.raises(IndexFolderError, match="kind 'bm25s' cannot be changed"),
        changing(tmp_path / "IDX"),
    ):
        pass


def test_k1_and_b_need_the_kind_that_has_them() -> None:
    with pytest.raises(SettingsError, match=r"k1=0\.9 and b=0\.75 with kind='bm25'"):
        IndexSettings(k1=0.9)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    build(tmp_path, passages_of(PETS))
    manifest = read_manifest(tmp_path)
    for name in manifest.files:
        path = tmp_path / manifest.data / name
        if name.endswith((".npy", ".json")):
            data = path.read_bytes()
            path.write_bytes(bytes(len(data)))
            with pytest.raises(IndexFolderError, match="damaged"):
                ArrayIndex.open(tmp_path)
            path.write_bytes(data)
    path = tmp_path / manifest.data / "passages.jsonl"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(IndexFolderError, match="damaged"):
        ArrayIndex.open(tmp_path).search(["cat"], SearchOptions())


def test_without_the_library_a_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path, passages_of(PETS))
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(FlashBackError, match=r"need bm25s; pip install '\.\[bm25s\]'"):
        open_index(tmp_path)
