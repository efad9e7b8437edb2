"""Encoders in the format ONNX, from tiny folders made here."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from flashback.errors import ReaderError
from flashback.retrieval.encoders import load_encoder
from flashback.retrieval.onnx_encoder import OnnxEncoder

WORDS = ("[PAD]", "[UNK]", "[CLS]", "cat", "dog", "bird", "sleeps", "query")
TABLE: NDArray[np.float32] = (
    np.random.default_rng(0).normal(size=(len(WORDS), 6)).astype(np.float32)
)
"""A vector for each word."""


def save_model(file: Path, *, pooled: bool = False) -> None:
    """A model whose states are the vectors of its tokens; `pooled`: the sum of them."""
    table = numpy_helper.from_array(TABLE, "table")
    sizes = ["batch", 6] if pooled else ["batch", "sequence", 6]
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["states"])]
    out = "states"
    constants = [table]
    if pooled:
        out = "sentence_embedding"
        constants.append(numpy_helper.from_array(np.array([1]), "axis"))
        nodes.append(helper.make_node("ReduceSum", ["states", "axis"], [out], keepdims=0))
    given = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
    gives = helper.make_tensor_value_info(out, TensorProto.FLOAT, sizes)
    graph = helper.make_graph(nodes, "tiny", [given], [gives], constants)
    file.parent.mkdir(parents=True, exist_ok=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(file))


def save_encoder(folder: Path, *, file: str = "model.onnx", **records: Any) -> Path:
    """An encoder; `records` are its files of JSON, by what stands in them."""
    save_model(folder / file)
    raw = Tokenizer(WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
    raw.pre_tokenizer = Whitespace()
    raw.post_processor = TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", WORDS.index("[CLS]"))]
    )
    raw.save(str(folder / "tokenizer.json"))
    names = {
        "modules": "modules.json",
        "pooling": "1_Pooling/config.json",
        "prompts": "config_sentence_transformers.json",
        "bert": "sentence_bert_config.json",
    }
    for name, content in records.items():
        path = folder / names[name]
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content), "utf-8")
    return folder


def mean_of(text: str) -> NDArray[np.float32]:
    """What the mean of the states of a text's tokens is."""
    words = ["[CLS]", *text.split()]
    rows = [WORDS.index(word) if word in WORDS else 1 for word in words]
    mean: NDArray[np.float32] = TABLE[rows].mean(0)
    return mean


TEXTS = ["cat", "the dog sleeps", "", " ".join(["bird"] * 40), *["cat dog"] * 70]


@pytest.mark.parametrize("file", ["model.onnx", "onnx/model.onnx"])
def test_vectors_are_the_means_of_states(tmp_path: Path, file: str) -> None:
    save_encoder(tmp_path, file=file)
    for path in (tmp_path, tmp_path / file):
        encoder = load_encoder(f"onnx:{path}")
        assert isinstance(encoder, OnnxEncoder)
        assert encoder.name == f"onnx:{path}"
        assert encoder.dimension == 6
        found = encoder.encode(TEXTS)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, [mean_of(text) for text in TEXTS], atol=1e-6)
        assert encoder.encode([]).shape == (0, 6)


@pytest.mark.parametrize("pooling", [{"pooling_mode": "cls"}, {"pooling_mode_cls_token": True}])
def test_the_first_state_is_a_vector_where_the_folder_says_so(
    tmp_path: Path, pooling: dict[str, Any]
) -> None:
    encoder = load_encoder(f"onnx:{save_encoder(tmp_path, pooling=pooling)}")
    np.testing.assert_allclose(encoder.encode(["cat", "dog dog"]), TABLE[[2, 2]])


def test_a_model_may_pool_by_itself(tmp_path: Path) -> None:
    save_encoder(tmp_path)
    save_model(tmp_path / "model.onnx", pooled=True)
    (found,) = load_encoder(f"onnx:{tmp_path}").encode(["cat dog"])
    np.testing.assert_allclose(found, 3 * mean_of("cat dog"), atol=1e-6)


def test_queries_and_passages_have_their_prompts_and_a_longest_length(tmp_path: Path) -> None:
    prompts = {"prompts": {"query": "query ", "passage": "bird "}}
    save_encoder(tmp_path, prompts=prompts, bert={"max_seq_length": 4})
    encoder = load_encoder(f"onnx:{tmp_path}")
    np.testing.assert_allclose(encoder.encode(["cat"], query=True)[0], mean_of("query cat"))
    np.testing.assert_allclose(encoder.encode(["cat"])[0], mean_of("bird cat"))
    long = encoder.encode(["cat dog dog dog"])[0]
    np.testing.assert_allclose(long, mean_of("bird cat dog"), atol=1e-6)


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ({"modules": [{"type": "sentence_transformers.models.Dense"}]}, "modules Dense"),
        ({"modules": {}}, "modules.json: found dict, expected list"),
        ({"pooling": {"pooling_mode": "max"}}, "pooling mode 'max'; expected 'mean' or 'cls'"),
        ({"pooling": {"pooling_mode_cls_token": 1, "pooling_mode_mean_tokens": 1}}, "pooling mode"),
        ({"pooling": {"include_prompt": False}}, "it pools without the prompt"),
    ],
)
def test_folders_of_something_else_are_refused(
    tmp_path: Path, records: dict[str, Any], said: str
) -> None:
    with pytest.raises(ReaderError, match=f"encoder onnx:.*{said}") as caught:
        load_encoder(f"onnx:{save_encoder(tmp_path, **records)}")
    assert "\n" not in str(caught.value)


def test_what_is_missing_or_damaged_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ReaderError, match=r"expected tokenizer\.json and model\.onnx or onnx/mod"):
        load_encoder(f"onnx:{tmp_path}")
    for name in ("model.onnx", "tokenizer.json"):
        folder = save_encoder(tmp_path / name)
        (folder / name).write_bytes(b"\0nothing")
        with pytest.raises(ReaderError, match="cannot be loaded") as caught:
            load_encoder(f"onnx:{folder}")
        assert "\n" not in str(caught.value)


def test_a_device_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_encoder(tmp_path)
    there = ["CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: there)
    assert load_encoder(f"onnx:{tmp_path}", "cpu").dimension == 6
    for device, said in (
        ("tpu", "expected auto, cpu or cuda"),
        ("cuda", "install onnxruntime-gpu"),
    ):
        with pytest.raises(ReaderError, match=said):
            load_encoder(f"onnx:{tmp_path}", device)
