"""Passages encoded once and kept on disk: the same text, nothing encoded, nothing half-written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import flashback.engines.passage_store as store_module
from command_line import refused, run
from families import FAMILIES, SLIDING, tiny_model
from flashback.engines.local import LocalEngine
from flashback.engines.passage_store import MANIFEST, Owner, PassageStore, write_store
from flashback.errors import PassageStoreError
from flashback.precomputation import Precomputation
from flashback.retrieval.bm25 import BM25Index
from flashback.settings import RetrievalSettings
from readers import tiny_reader
from recompute import TOLERANCE

SLOT = ("--pattern", "slot", "--passage-tokens", "40", "--device", "cpu")
GENERATE = ("--max-new-tokens", "32", "--stride", "8", "--query-tokens", "60", "--ignore-eos")
PROMPT = "A socket, or JSON? "


@pytest.fixture(scope="module")
def stored(index: Path, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All passages of the small corpus."""
    out = tmp_path_factory.mktemp("stored") / "PASSAGES"
    words = ("precompute", index, "--out", out, "--model", model_folder)
    said = run(*words, "--passage-tokens", "40", "--device", "cpu").out
    count = len(BM25Index.open(index))
    assert said.startswith(f"{out}: {count} passages, ")
    return out


@pytest.fixture
def generate(index: Path, model_folder: Path) -> Callable[..., Any]:
    def call(*more: str | Path) -> Any:
        words = ("generate", "--index", index, "--model", model_folder, *SLOT, *more)
        return run(*words, *GENERATE, "--json", PROMPT).record

    return call


def test_text_is_the_same_and_no_passage_is_encoded(
    stored: Path, generate: Callable[..., Any]
) -> None:
    fresh, read = generate(), generate("--passages-from", stored)
    assert [one["tokens"] for one in read["strides"]] == [one["tokens"] for one in fresh["strides"]]
    assert any(stride["passages"] for stride in fresh["strides"])
    # Of the context, one token at every boundary; what is encoded beyond that is a passage.
    assert [one["encoded"] for one in read["strides"][1:]] == [1] * (len(read["strides"]) - 1)
    assert sum(one["encoded"] for one in fresh["strides"]) > sum(
        one["encoded"] for one in read["strides"]
    )


@pytest.mark.parametrize("family", [one for one in FAMILIES if one not in SLIDING])
def test_what_is_read_is_what_was_encoded(family: str, tmp_path: Path) -> None:
    reader = tiny_reader(family)
    settings = RetrievalSettings("slot", passage_tokens=20)
    work = Precomputation.of(reader, ["One passage.", "Another, longer one.", ""], settings)
    assert len(work.passages) == 2
    work.run(tmp_path / "STORE")
    store = PassageStore.open(tmp_path / "STORE")
    assert len(store) == 2
    size = 0
    for passage in work.passages:
        found = store.find(passage, torch.device("cpu"))
        assert found is not None
        expected = work.engine.encode_passage(passage, work.room)
        for one, other in zip(found, expected, strict=True):
            for read, made in zip(one, other, strict=True):
                assert (read - made).abs().max() <= TOLERANCE
                size += made.nbytes
    assert size == work.bytes
    assert store.find((1, 2, 3), torch.device("cpu")) is None


def test_a_flipped_bit_never_reaches_the_reader(tmp_path: Path) -> None:
    engine, passage = LocalEngine(tiny_model("llama"), 192), (3, 4, 5)
    owner = Owner("r", "float32", 20)
    write_store(tmp_path / "STORE", owner, [passage], lambda ids: engine.encode_passage(ids, 20))
    (path,) = (tmp_path / "STORE").glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    store = PassageStore.open(tmp_path / "STORE")
    with pytest.raises(PassageStoreError, match="a checksum differs"):
        store.find(passage, torch.device("cpu"))


def test_passages_of_another_reader_dtype_or_slot_are_refused(
    stored: Path, index: Path, model_folder: Path, tmp_path: Path
) -> None:
    words = ("generate", "--index", index, "--passages-from", stored, "--model", model_folder)
    message = refused(*words, *SLOT, "--passage-tokens", "30", "Text", code=2)
    assert "are for a slot of" in message
    assert "this one has" in message
    message = refused(*words, *SLOT, "--dtype", "bfloat16", "Text", code=1)
    assert "are float32, but the reader is bfloat16" in message
    other = tmp_path / "other"
    tiny_model("llama", seed=5).save_pretrained(other)
    for path in model_folder.glob("tokenizer*"):
        (other / path.name).write_bytes(path.read_bytes())
    message = refused(*words[:-1], other, *SLOT, "Text", code=1)
    assert "another model" in message


def test_passages_of_other_rotations_are_refused(
    stored: Path, index: Path, model_folder: Path, tmp_path: Path
) -> None:
    """The weights are the same; what they compute is not."""
    other = Path(shutil.copytree(model_folder, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 50.0}
    (other / "config.json").write_text(json.dumps(config))
    words = ("generate", "--index", index, "--passages-from", stored, "--model", other)
    assert "another model" in refused(*words, *SLOT, "Text", code=1)


def test_a_slot_longer_than_the_window_is_refused(
    index: Path, model_folder: Path, tmp_path: Path
) -> None:
    words = ("precompute", index, "--model", model_folder, "--out", tmp_path / "OUT")
    message = refused(*words, "--passage-tokens", "5000")
    assert "leaves no room in the reader's window of" in message
    assert not (tmp_path / "OUT").exists()


def test_keys_and_values_may_differ_in_width(tmp_path: Path) -> None:
    """As those of multi-head latent attention do."""
    made = [(torch.randn(1, 4, 3, 6), torch.randn(1, 4, 3, 2)) for _ in range(2)]
    write_store(tmp_path / "STORE", Owner("r", "float32", 20), [(7, 8, 9)], lambda _: made)
    store = PassageStore.open(tmp_path / "STORE")
    assert len(store) == 1
    found = store.find((7, 8, 9), torch.device("cpu"))
    assert found is not None
    for one, other in zip(found, made, strict=True):
        assert all(torch.equal(*parts) for parts in zip(one, other, strict=True))


def test_other_patterns_have_no_use_for_them(stored: Path, index: Path) -> None:
    words = ("generate", "--index", index, "--pattern", "append")
    message = refused(*words, "--passages-from", stored, "Text")
    assert "--pattern slot only" in message


def test_rounded_weights_have_no_use_for_them(stored: Path, index: Path) -> None:
    words = ("--passages-from", stored, "--pattern", "slot", "--quantize", "int8")
    assert "were encoded with whole weights" in refused("generate", "--index", index, *words, "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.update(format=9), "format 9"),
        (lambda record: record.pop("owner"), "damaged"),
        (lambda record: record.update(files={"../x": 3}), "is no file of it"),
        (lambda record: record.update(files={"passages-00000.safetensors": 3}), "another size"),
    ],
)
def test_damaged_folders_are_told(
    change: Callable[[Any], Any], message: str, stored: Path, tmp_path: Path
) -> None:
    record = json.loads((stored / MANIFEST).read_text())
    change(record)
    for path in stored.glob("*.safetensors"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / MANIFEST).write_text(json.dumps(record))
    with pytest.raises(PassageStoreError, match=message):
        PassageStore.open(tmp_path)


def test_what_is_no_store_is_told(tmp_path: Path) -> None:
    with pytest.raises(PassageStoreError, match="make it with"):
        PassageStore.open(tmp_path)


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_precomputation_leaves_nothing(
    failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_SHARD_BYTES", 1)
    engine = LocalEngine(tiny_model("llama"), 192)
    encoded = 0

    def encode(passage: tuple[int, ...]) -> Any:
        nonlocal encoded
        encoded += 1
        if encoded == 3:
            raise failure
        return engine.encode_passage(passage, 20)

    passages = [(number, 5, 6) for number in range(5)]
    wanted = PassageStoreError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(wanted, match="No space left" if wanted is PassageStoreError else None):
        write_store(tmp_path / "STORE", Owner("r", "float32", 20), passages, encode)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_overwritten(stored: Path, index: Path, model_folder: Path) -> None:
    words = ("precompute", index, "--model", model_folder, "--out")
    assert "exists already" in refused(*words, stored, code=1)
    assert "no such folder" in refused(*words, stored / "no" / "OUT", code=1)


def test_large_stores_are_asked_for_and_must_fit(
    index: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("precompute", index, "--model", model_folder, "--out", tmp_path / "OUT")
    monkeypatch.setattr("flashback.cli.precompute._ASKED_FROM", 1)
    outcome = run(*words, code=2)
    assert "give --yes" in outcome.err
    monkeypatch.setattr(
        "flashback.engines.passage_store.shutil.disk_usage",
        lambda _: type("Usage", (), {"free": 10}),
    )
    outcome = run(*words, "--yes", code=1)
    assert "GB are free" in outcome.err
    assert list(tmp_path.iterdir()) == []
