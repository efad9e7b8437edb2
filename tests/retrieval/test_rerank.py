"""Rerankers: the contract, cross-encoders from a tiny folder, and what they may not give."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from flashback.corpus.documents import CorpusReport
from flashback.corpus.passages import Passage
from flashback.errors import ReaderError, SettingsError
from flashback.retrieval.bm25 import BM25Index, IndexSettings, build_index
from flashback.retrieval.protocol import Hit
from flashback.retrieval.rerank import (
    CrossEncoderReranker,
    RerankedRetriever,
    RerankSettings,
    reranked,
)
from flashback.retrieval.specs import CombinedSource, open_source
from flashback.settings import SearchOptions
from retrieval.contract import PETS, Make, RetrieverContract, ask_one, found, passages_of
from tiny_sentences import save_cross_encoder


class SharedWords:
    """Scores the share of words that query and text have in common."""

    def scores(self, query: str, hits: Sequence[Hit]) -> list[float]:
        asked = _words(query)
        both = [(asked & _words(hit.text), asked | _words(hit.text)) for hit in hits]
        return [(1 + len(shared)) / (1 + len(every)) for shared, every in both]


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


class TestReranked(RetrieverContract):
    """Over BM25, whose hits it only orders."""

    @pytest.fixture(scope="class")
    @classmethod
    def make(cls, tmp_path_factory: pytest.TempPathFactory) -> Make:
        def make(passages: Sequence[Passage]) -> RerankedRetriever:
            folder = tmp_path_factory.mktemp("reranked") / "index"
            build_index(folder, passages, IndexSettings(deduplicate=False), CorpusReport())
            return RerankedRetriever(BM25Index.open(folder), SharedWords())

        return make


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    build_index(tmp_path / "pets", passages_of(PETS), IndexSettings(), CorpusReport())
    return tmp_path / "pets"


class Given:
    """Scores as they were given."""

    def __init__(self, *scores: float) -> None:
        self.given = scores

    def scores(self, query: str, hits: Sequence[Hit]) -> Sequence[float]:
        return self.given


def test_no_more_than_the_candidates_are_ranked_however_many_are_wanted(pets: Path) -> None:
    asked: list[int] = []

    class Counting:
        def scores(self, query: str, hits: Sequence[Hit]) -> list[float]:
            asked.append(len(hits))
            return [1.0] * len(hits)

    again = RerankedRetriever(BM25Index.open(pets), Counting(), candidates=2)
    (hits,) = again.search(["a cat and a dog"], SearchOptions(k=100))
    assert (len(hits), asked) == (2, [2])


def test_candidates_are_ordered_by_new_scores(pets: Path) -> None:
    index = BM25Index.open(pets)
    first, second = found(index, "dog cat", k=2)
    again = RerankedRetriever(index, Given(0.25, 0.5), candidates=2)
    assert [(hit.document_id, hit.score) for hit in ask_one(again, "dog cat", k=2)] == [
        (second, 0.5),
        (first, 0.25),
    ]
    assert found(again, "dog cat", k=2, min_score=0.3) == [second]
    assert found(again, "dog cat", k=1) == [second]
    assert again.sample() == index.sample()


def test_no_reranker_changes_nothing(pets: Path) -> None:
    index = BM25Index.open(pets)
    assert reranked(index, RerankSettings()) is index


@pytest.mark.parametrize("scores", [(1.0,), (float("nan"), 1.0), (1.0, float("inf"))])
def test_a_number_for_each_is_expected(pets: Path, scores: tuple[float, ...]) -> None:
    again = RerankedRetriever(BM25Index.open(pets), Given(*scores), candidates=2)
    with pytest.raises(ReaderError, match="reranker Given: expected 2 finite numbers"):
        ask_one(again, "dog cat", k=2)


def test_a_cross_encoder_from_a_folder(pets: Path, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    name = save_cross_encoder(tmp_path / "encoder")
    source = CombinedSource((pets,), rerank=RerankSettings(reranker=str(name)))
    opened = open_source(source)
    hits = ask_one(opened, "the cat sleeps")
    assert {hit.document_id for hit in hits} == {"cats", "dogs"}
    assert all(0 < hit.score < 1 for hit in hits)
    (alone,) = opened.search(["the cat sleeps"], SearchOptions(k=1))
    assert alone == hits[:1]
    model = CrossEncoderReranker(str(name))
    scores = model.scores("the cat sleeps", hits)
    assert scores == pytest.approx([hit.score for hit in hits], abs=1e-6)
    assert str(source).endswith(f", reranked by {name}")


def test_a_classifier_of_several_labels_is_refused(pets: Path, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    name = save_cross_encoder(tmp_path / "encoder", labels=3)
    opened = open_source(CombinedSource((pets,), rerank=RerankSettings(reranker=str(name))))
    with pytest.raises(ReaderError, match=r"gives a pair of texts \(3,\) numbers; expected one"):
        ask_one(opened, "cat")


def test_what_is_no_model_is_one_line(tmp_path: Path, pets: Path) -> None:
    pytest.importorskip("sentence_transformers")
    with pytest.raises(ReaderError, match=r"reranker .*: cannot be loaded") as caught:
        CrossEncoderReranker(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_the_reader_is_known_to_load_alone(pets: Path) -> None:
    source = CombinedSource((pets,), rerank=RerankSettings(reranker="reader"))
    with pytest.raises(SettingsError, match="searches before its reader is loaded"):
        open_source(source)
