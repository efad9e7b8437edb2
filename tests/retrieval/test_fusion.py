"""Reciprocal rank fusion: the contract, its formula, and what the share of the best means."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashback.corpus.documents import CorpusReport
from flashback.corpus.passages import Passage
from flashback.errors import SettingsError
from flashback.retrieval.bm25 import IndexSettings, build_index
from flashback.retrieval.dense import build_dense
from flashback.retrieval.encoders import load_encoder
from flashback.retrieval.fusion import FusedRetriever, FusionSettings, fuse
from flashback.retrieval.kinds import open_index
from flashback.retrieval.protocol import Hit, near_best
from flashback.retrieval.specs import CombinedSource, open_source
from flashback.settings import SearchOptions
from retrieval.contract import PETS, Make, RetrieverContract, found, passages_of

pytest.importorskip("usearch")
pytest.importorskip("wordllama")


def build_both(folder: Path, passages: Sequence[Passage]) -> tuple[Path, Path]:
    """A BM25 index and a dense one of the same passages."""
    words, meaning = folder / "words", folder / "meaning"
    settings = IndexSettings(deduplicate=False)
    build_index(words, passages, settings, CorpusReport())
    build_dense(meaning, passages, settings, load_encoder("wordllama"), CorpusReport())
    return words, meaning


class TestFused(RetrieverContract):
    lexical = False
    forbidding_keeps_scores = False  # ranks close up

    @pytest.fixture(scope="class")
    @classmethod
    def make(cls, tmp_path_factory: pytest.TempPathFactory) -> Make:
        def make(passages: Sequence[Passage]) -> FusedRetriever:
            folders = build_both(tmp_path_factory.mktemp("fused"), passages)
            return FusedRetriever([open_index(folder) for folder in folders])

        return make


def ranking(names: Sequence[str]) -> list[Hit]:
    return [Hit(f"{name}#0", name, "", name, 9.0 - at) for at, name in enumerate(names)]


NAMES = st.lists(st.sampled_from("abcdefgh"), unique=True)
RANKINGS = st.lists(st.tuples(NAMES, st.floats(0.01, 100)), min_size=1, max_size=4)


@given(RANKINGS)
def test_scores_are_shares_of_the_best_possible(given_: list[tuple[list[str], float]]) -> None:
    rankings = [ranking(names) for names, _ in given_]
    weights = [weight for _, weight in given_]
    fused = fuse(rankings, weights)
    assert {hit.document_id for hit in fused} == {name for names, _ in given_ for name in names}
    assert [hit.score for hit in fused] == sorted((hit.score for hit in fused), reverse=True)
    for hit in fused:
        parts = [
            weight / (61 + names.index(hit.document_id))
            for names, weight in given_
            if hit.document_id in names
        ]
        assert hit.score == pytest.approx(sum(parts) * 61 / sum(weights))
        assert 0 < hit.score <= 1 + 1e-9


@given(NAMES)
def test_one_ranking_keeps_its_order(names: list[str]) -> None:
    assert [hit.document_id for hit in fuse([ranking(names)], [1.0])] == names


def test_equal_scores_are_ranked_as_the_first_ranking_has_them() -> None:
    assert [hit.text for hit in fuse([ranking("ab"), ranking("ba")], [1, 1])] == ["a", "b"]
    assert [hit.text for hit in fuse([ranking("ab"), ranking("ba")], [1, 2])] == ["b", "a"]


def test_a_passage_twice_in_a_ranking_counts_once() -> None:
    fused = fuse([[*ranking("a"), *ranking("ab")]], [1.0])
    assert [hit.text for hit in fused] == ["a", "b"]
    assert [hit.score for hit in fused] == pytest.approx([1.0, 61 / 62])


def test_the_share_of_the_best_is_one_of_agreement() -> None:
    """Half of the best: found by retrievers of about half of the weight."""
    fused = fuse([ranking("abcx"), ranking("bayz")], [1, 1])
    assert {hit.text for hit in near_best(fused, 0.5)} == {"a", "b"}
    apart = fuse([ranking("abc"), ranking("xyz")], [1, 1])
    assert len(near_best(apart, 0.5)) == 6  # none agrees with another


def test_the_same_text_of_another_document_is_another_passage() -> None:
    one, two = Hit("a#0", "a", "", "same", 1.0), Hit("b#0", "b", "", "same", 1.0)
    assert [hit.document_id for hit in fuse([[one], [two]], [2, 1])] == ["a", "b"]
    other_id = Hit("x", "a", "", "same", 1.0)
    assert [hit.id for hit in fuse([[one], [other_id]], [1, 1])] == ["a#0"]


def test_several_indexes_are_one_source(tmp_path: Path) -> None:
    folders = build_both(tmp_path, passages_of(PETS))
    source = CombinedSource(folders, FusionSettings(fusion_weights="1,0.5"))
    opened = open_source(source)
    assert found(opened, "cuckoo", k=1) == ["birds"]
    assert isinstance(opened, FusedRetriever)
    assert len(opened.sample()) == 8
    assert str(source) == f"{folders[0]} + {folders[1]} (1,0.5)"


@pytest.mark.parametrize("text", ["1,x", "1,-1", "0", "nan", "1,,2", "inf"])
def test_weights_are_numbers_above_0(text: str) -> None:
    with pytest.raises(SettingsError, match="expected numbers above 0"):
        FusionSettings(fusion_weights=text)


def test_there_is_a_weight_for_each(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="a weight for each of 1 indexes, found 2"):
        open_source(CombinedSource((tmp_path,), FusionSettings(fusion_weights="1,2")))


def test_no_more_than_the_depth_is_looked_at() -> None:
    class Many:
        asked = 0

        def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
            self.asked = options.k
            return [ranking("abcdefgh")[: options.k] for _ in queries]

    many = Many()
    fused = FusedRetriever([many, many], FusionSettings(fusion_depth=3))
    assert found(fused, "x", k=2) == ["a", "b"]
    assert many.asked == 3
    assert len(found(fused, "x", k=5)) == 5
