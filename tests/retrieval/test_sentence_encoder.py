"""Encoders of sentence-transformers, from tiny folders of their format made here."""

from pathlib import Path

import numpy as np
import pytest
import torch

from flashback.corpus.documents import CorpusReport
from flashback.errors import IndexFolderError, ReaderError
from flashback.retrieval.bm25 import IndexSettings
from flashback.retrieval.dense import build_dense
from flashback.retrieval.encoders import load_encoder
from flashback.retrieval.kinds import open_index
from flashback.retrieval.sentence_encoder import SentenceEncoder
from retrieval.contract import PETS, found, passages_of
from tiny_sentences import save_encoder

pytest.importorskip("sentence_transformers")
pytest.importorskip("usearch")


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("encoders") / "tiny")


def test_a_folder_is_an_encoder(encoder_folder: Path) -> None:
    encoder = load_encoder(str(encoder_folder))
    assert isinstance(encoder, SentenceEncoder)
    assert encoder.name == str(encoder_folder)
    vectors = encoder.encode(["the cat sleeps", "the dog runs"])
    assert vectors.shape == (2, encoder.dimension) == (2, 16)
    assert vectors.dtype == np.float32


def test_an_encoder_runs_where_it_is_told_to(encoder_folder: Path) -> None:
    assert load_encoder(str(encoder_folder), "cpu").dimension == 16
    with pytest.raises(ReaderError, match="cannot be loaded") as caught:
        load_encoder(str(encoder_folder), "nowhere")
    assert "\n" not in str(caught.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_vectors_of_a_gpu_are_those_of_the_cpu(encoder_folder: Path) -> None:
    here, there = (load_encoder(str(encoder_folder), device) for device in ("cpu", "cuda"))
    texts = ["the cat sleeps", "the dog runs"]
    np.testing.assert_allclose(there.encode(texts), here.encode(texts), atol=1e-4)


def test_queries_get_the_prompt_of_queries(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "prompted", prompts={"query": "dog ", "document": ""})
    encoder = load_encoder(str(folder))
    asked = encoder.encode(["cat"], query=True)
    np.testing.assert_allclose(asked, encoder.encode(["dog cat"]), atol=1e-6)
    assert not np.allclose(asked, encoder.encode(["cat"]))


def test_an_index_finds_its_encoder_again(encoder_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    encoder = load_encoder(str(encoder_folder))
    build_dense(folder, passages_of(PETS), IndexSettings(title=False), encoder, CorpusReport())
    opened = open_index(folder)
    for title, text in PETS.items():
        assert found(opened, text, k=1) == [title.lower()]


def test_an_index_of_an_encoder_with_other_weights_is_refused(tmp_path: Path) -> None:
    name = tmp_path / "encoder"
    save_encoder(name, seed=0)
    encoder = load_encoder(str(name))
    build_dense(tmp_path / "index", passages_of(PETS), IndexSettings(), encoder, CorpusReport())
    save_encoder(name, seed=1)
    with pytest.raises(IndexFolderError, match="gives other vectors than those in the index"):
        open_index(tmp_path / "index")


def test_a_folder_that_is_no_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ReaderError) as caught:
        load_encoder(str(tmp_path))
    assert "\n" not in str(caught.value)
    assert "expected a folder or hub name of a model of sentence-transformers" in str(caught.value)
