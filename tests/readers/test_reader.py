"""Loading readers: folders as a hub would give them, whole, broken or foreign."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from transformers import LlamaConfig, Phi3Config

from families import FAMILIES, tiny_config, tiny_model
from flashback.errors import ReaderError, SettingsError
from flashback.readers.load import load_reader, window_of
from flashback.readers.placement import choose_placement
from flashback.readers.text_reader import MARK_LEFT, MARK_RIGHT
from flashback.settings import FrameText
from tiny_readers import byte_tokenizer, tiny_reader


@pytest.fixture
def broken(model_folder: Path, tmp_path: Path) -> Path:
    """A copy of a good model folder, to be broken."""
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def answered(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    """What the hub's client raises for an answer."""
    request = httpx2.Request("GET", "https://huggingface.co/some/model/resolve/main/config.json")
    return kind("a very long story", response=httpx2.Response(status, request=request))


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        (
            answered(RepositoryNotFoundError, 404),
            "found no such folder, and no such model on the hub; expected a model's folder, a GGUF "
            "file, a hub model, or a name of `flashback models`; a private one needs `hf auth "
            "login`",
        ),
        (
            answered(GatedRepoError, 403),
            "found it on the hub, where its authors give access on request; ask for it at "
            "https://huggingface.co/some/model, then log in with `hf auth login`",
        ),
        (
            LocalEntryNotFoundError("a very long story"),
            "found no such folder, no downloaded configuration of that name, and no connection to "
            "the hub; expected a model's folder, a GGUF file, a hub model, or a name of `flashback "
            "models`; is the name right, and this machine online?",
        ),
        (
            answered(HfHubHTTPError, 500),
            "no such folder here, and as a hub model its configuration cannot be loaded: see above "
            "(OSError)",
        ),
    ],
)
def test_what_the_hub_answers_is_one_line(
    cause: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("see above") from cause

    monkeypatch.setattr("flashback.readers.load.AutoConfig.from_pretrained", fail)
    with pytest.raises(ReaderError) as caught:
        load_reader("some/model")
    assert str(caught.value) == f"model some/model: {message}"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_of_every_family_loads_with_equal_logits(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    reader = load_reader(str(tmp_path))
    ids = torch.tensor([[0, 5, 6, 7]])
    with torch.inference_mode():
        assert torch.equal(reader.model(ids).logits, model(ids).logits)
    assert reader.window == getattr(tiny_config(family), "max_position_embeddings", 2048)
    assert reader.bos == (0,)
    assert reader.eos == {1}


def test_bin_weights_load(broken: Path) -> None:
    torch.save(tiny_model("llama").state_dict(), broken / "pytorch_model.bin")
    (broken / "model.safetensors").unlink()
    expected = tiny_model("llama").state_dict()
    loaded = load_reader(str(broken)).model.state_dict()
    assert all(torch.equal(expected[name], loaded[name]) for name in expected)


class _Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (__import__("os").mkdir, ("executed",))


def test_a_pickle_that_runs_code_is_refused_and_not_run(
    broken: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model.embed_tokens.weight": _Payload()}, broken / "pytorch_model.bin")
    (broken / "model.safetensors").unlink()
    with pytest.raises(ReaderError, match="cannot be loaded"):
        load_reader(str(broken))
    assert not (tmp_path / "executed").exists()


def test_weights_that_are_missing_are_not_made_up(broken: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(broken / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ReaderError, match=r"1 weights are missing, such as model\.layers\.1"):
        load_reader(str(broken))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", b"x" * 100),
        ("config.json", b"{"),
        ("config.json", b'{"model_type": "never-heard-of"}'),
        ("tokenizer.json", b"[]"),
    ],
)
def test_damaged_files_are_named_in_one_line(broken: Path, file: str, content: bytes) -> None:
    (broken / file).write_bytes(content)
    with pytest.raises(ReaderError) as raised:
        load_reader(str(broken))
    assert "cannot be loaded" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "found nothing there"),
        ("/etc/hostname", "found a file there"),
        ("some-organisation/no-such-model", "found no such folder"),
        ("~no-such-user/model", "found nothing there"),
    ],
)
def test_models_that_are_not_there(name: str, message: str) -> None:
    with pytest.raises(ReaderError, match=message):
        load_reader(name)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ReaderError, match=r"no config\.json"):
        load_reader(str(tmp_path))


def test_the_window_can_be_made_smaller_only(model_folder: Path) -> None:
    assert load_reader(str(model_folder), window=50).window == 50
    with pytest.raises(SettingsError, match="window=193: expected 1 to 192"):
        load_reader(str(model_folder), window=193)


def test_rotations_that_change_with_the_length_end_the_window(broken: Path) -> None:
    """Past its original length, such a model would rotate cached keys differently."""
    config = json.loads((broken / "config.json").read_text())
    config["rope_parameters"] = {
        "rope_type": "dynamic",
        "factor": 4.0,
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 64,
    }
    (broken / "config.json").write_text(json.dumps(config))
    reader = load_reader(str(broken))
    assert reader.window == 64
    assert "constant up to there" in reader.window_reason


def test_dtype_and_device_come_with_a_reason(model_folder: Path) -> None:
    reader = load_reader(str(model_folder), dtype="bfloat16", device="cpu")
    assert reader.model.dtype == torch.bfloat16
    assert str(reader.placement) == "bfloat16 on cpu (device as asked, dtype as asked)"
    automatic = choose_placement()
    if automatic.device.type == "cpu":
        assert automatic.dtype == torch.float32
    assert automatic.reason


def test_each_process_of_torchrun_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    for device in ("auto", "cuda"):
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        assert choose_placement(device, "float32").device == torch.device("cuda")
        monkeypatch.setenv("LOCAL_RANK", "2")
        assert choose_placement(device, "float32").device == torch.device("cuda:2")
    assert choose_placement("cuda:1", "float32").device == torch.device("cuda:1")


@pytest.mark.parametrize(
    ("device", "dtype", "message"),
    [("toaster", "auto", "device='toaster'"), ("auto", "int3", "dtype='int3'")],
)
def test_unknown_devices_and_dtypes(device: str, dtype: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        choose_placement(device, dtype)


def test_marks_are_found_by_name_and_are_the_frame() -> None:
    reader = tiny_reader(marks=True)
    vocabulary = reader.tokenizer.get_vocab()
    left, right = vocabulary[MARK_LEFT], vocabulary[MARK_RIGHT]
    assert reader.marks == reader.forbidden == (left, right)
    frame = reader.frame(None, "append")
    assert (frame.before, frame.after) == ((left,), (right,))
    assert reader.decode([left, *reader.encode("x"), right]) == "x"


def test_frames_of_plain_text_are_used_as_given() -> None:
    reader = tiny_reader()
    frame = reader.frame(FrameText("<", ""), "append")
    assert (reader.show(frame.before), frame.after) == ("<", ())
    assert "Reference:" in reader.show(reader.frame(None, "append").before)


def test_an_echo_alone_changes_the_echo_alone() -> None:
    for reader in (tiny_reader(), tiny_reader(marks=True)):
        own = reader.frame(None, "append")
        assert reader.frame(FrameText(echo_tokens=3), "append") == replace(own, echo=3)
        texts = reader.frame(FrameText("<", ">"), "append")
        assert (texts.echo, reader.show(texts.before)) == (own.echo, "<")


def test_texts_can_be_encoded_in_threads() -> None:
    """Whether special tokens are split is a state of the tokenizer, not of a call."""
    reader = tiny_reader()
    text = f"a {reader.tokenizer.eos_token} b"
    split, meant = reader.encode(text), reader.encode_prompt(text)
    assert split != meant[len(reader.bos) :]
    with ThreadPoolExecutor(2) as pool:
        ours = pool.map(reader.encode, [text] * 300)
        theirs = pool.map(reader.encode_prompt, [text] * 300)
        assert all(ids == split for ids in ours)
        assert all(ids == meant for ids in theirs)


@pytest.mark.parametrize("bos", [True, False])
def test_in_a_slot_a_passage_is_computed_behind_bos_as_any_text(bos: bool) -> None:
    reader = tiny_reader(bos=bos)
    assert reader.frame(None, "slot") == reader.frame(None, "prepend")
    for text in (None, FrameText("", "", 0), FrameText(echo_tokens=2)):
        assert reader.frame(text, "slot").sink == reader.bos
    given = reader.frame(FrameText("(", ")", sink="You are"), "slot")
    assert given.sink == tuple(reader.encode("You are"))
    long = reader.frame(FrameText("(", ")", sink="<s>" + "x" * 40 + "y"), "slot")
    assert reader.show(long.sink) == ("<s>" if bos else "") + "x" * 30 + ("y" if bos else "xy")


@pytest.mark.parametrize("bos", [True, False])
def test_a_prompt_begins_with_bos_where_the_tokenizer_says_so(bos: bool) -> None:
    reader = tiny_reader(bos=bos)
    assert reader.bos == ((0,) if bos else ())
    assert reader.encode_prompt("") == [0]  # something must be there to continue
    assert reader.show(reader.encode_prompt("x")) == ("<s>x" if bos else "x")


def test_configurations_of_large_models_give_their_windows() -> None:

    tokenizer = byte_tokenizer()
    assert window_of(LlamaConfig(max_position_embeddings=4096), tokenizer)[0] == 4096
    assert window_of(Phi3Config(max_position_embeddings=4096), tokenizer)[0] == 4096


def test_special_tokens_in_a_passage_are_text_and_in_a_prompt_are_meant() -> None:
    reader = tiny_reader(marks=True)
    assert reader.marks is not None
    text = f"a</s>b<s>c{MARK_RIGHT}"
    ids = reader.encode(text)
    assert not {0, 1, *reader.marks} & set(ids)
    assert reader.decode(ids) == text
    assert reader.encode_prompt("a</s>") == [0, *reader.encode("a"), 1]


def test_rotations_of_single_kinds_of_layers_end_the_window_too() -> None:
    config = tiny_config("gemma3")
    config.rope_parameters["sliding_attention"] = {
        "rope_type": "dynamic",
        "factor": 2.0,
        "rope_theta": 1e4,
        "original_max_position_embeddings": 64,
    }
    assert window_of(config, byte_tokenizer())[0] == 64


@pytest.mark.parametrize("name", ["auto", "sideways"])
def test_a_pattern_that_there_is_not_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=f"pattern={name!r}: expected one of none, "):
        tiny_reader("llama").check_pattern(name)
