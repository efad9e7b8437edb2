"""The reader as a reranker: its scores are those of whole sequences, run one by one."""

from pathlib import Path

import pytest
import torch

import flashback
from flashback.readers.reader import Reader
from flashback.retrieval.protocol import Hit
from flashback.retrieval.rerank import RerankedRetriever, RerankSettings
from flashback.scoring.reader_reranker import ReaderReranker
from tiny_readers import tiny_reader

TEXTS = ("The sea is salt.", "A much longer passage about the moon and the sea.", "x")


def hits(*texts: str) -> list[Hit]:
    return [Hit(str(at), str(at), "", text, 1.0) for at, text in enumerate(texts)]


def alone(reader: Reader, query: str, text: str, passage_tokens: int, tokens: int) -> float:
    """The same score, from one pass over the whole sequence."""
    frame = reader.frame(None, "prepend")
    passage = tuple(reader.encode(text)[:passage_tokens])
    ids = (*reader.bos, *frame.around(passage), *reader.encode(query))
    with torch.inference_mode():
        logits = reader.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    found = [logits[at - 1, ids[at]] for at in range(len(ids) - tokens, len(ids))]
    return float(torch.stack(found).mean().exp())


@pytest.mark.parametrize("query", ["The moon is far away tonight", "sea?", "z"])
@pytest.mark.parametrize("family", ["llama", "opt", "mistral"])
def test_scores_are_those_of_sequences_run_alone(family: str, query: str) -> None:
    reader = tiny_reader(family)
    found = ReaderReranker(reader, passage_tokens=24).scores(query, hits(*TEXTS))
    tokens = min(len(reader.encode(query)), 16)
    expected = [alone(reader, query, text, 24, tokens) for text in TEXTS]
    assert found == pytest.approx(expected, rel=1e-4)
    assert all(0 < score < 1 for score in found)


def test_a_long_query_is_cut_to_the_window() -> None:
    reader = tiny_reader(window=64)
    found = ReaderReranker(reader, passage_tokens=24).scores("word " * 100, hits(*TEXTS))
    assert len(found) == 3


def test_a_query_without_targets_scores_all_alike() -> None:
    reader = tiny_reader(bos=False)
    assert ReaderReranker(reader).scores("z", hits(*TEXTS)) == [1.0] * 3
    narrow = tiny_reader(window=16)
    assert ReaderReranker(narrow, passage_tokens=64).scores("sea", hits("a", "b")) == [1.0] * 2


def test_load_puts_the_reader_in_front_of_an_index(model_folder: Path, index: Path) -> None:
    rerank = RerankSettings(reranker="reader", rerank_candidates=4)
    writer = flashback.load(model_folder, index=[index], rerank=rerank, device="cpu")
    assert isinstance(writer.retriever, RerankedRetriever)
    assert isinstance(writer.retriever.reranker, ReaderReranker)
    stride = writer.generate("The moon", max_new_tokens=4, pattern="prepend", stride=4).strides[0]
    assert all(0 < passage.score < 1 for passage in stride.passages)


def test_load_fuses_several_indexes(model_folder: Path, index: Path) -> None:
    writer = flashback.load(model_folder, index=[index, index], device="cpu")
    (one,) = writer.find(["moon"], flashback.RetrievalSettings(passages=1))
    assert [hit.score for hit in one] == [1.0]
