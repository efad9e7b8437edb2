"""Readers in GGUF files: equal to their safetensors twins; bad files are refused in one line."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

pytest.importorskip("gguf")

from flashback.errors import FlashBackWarning, ReaderError, UnsupportedReader
from flashback.patterns.registry import PATTERNS
from flashback.readers.fingerprint import fingerprint
from flashback.readers.gguf import open_gguf
from flashback.readers.gguf_metadata import gguf_config
from flashback.readers.load import load_reader, locate
from flashback.readers.reader import Reader
from gguf_files import (
    TEMPLATE,
    gemma_tokenizer,
    merging_tokenizer,
    tiny_gemma,
    tiny_llama,
    words_of,
    write_gguf,
)

TEXTS = ("", "a", "the cat  the\n\n  12 1234   5", " 12<s>x</s>", "雪 melts, été", "a\tb")
KINDS: dict[str, Any] = {
    "llama": (tiny_llama, merging_tokenizer),
    "gemma3": (tiny_gemma, gemma_tokenizer),
}


@pytest.fixture(scope="module", params=list(KINDS))
def twins(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> "Twins":
    """One model as GGUF and as safetensors, both loaded."""
    folder = tmp_path_factory.mktemp(request.param)
    model, tokenizer = (make() for make in KINDS[request.param])
    file = write_gguf(folder / "tiny.gguf", model, tokenizer)
    model.save_pretrained(folder / "twin")
    tokenizer.save_pretrained(folder / "twin")
    return Twins(load_reader(str(file)), load_reader(str(folder / "twin")))


class Twins:
    """A reader from GGUF and its twin from safetensors."""

    def __init__(self, found: Reader, wanted: Reader) -> None:
        self.found, self.wanted = found, wanted


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return tiny_llama()


@torch.inference_mode()
def logits(of: Reader | PreTrainedModel) -> torch.Tensor:
    """Behind each of a few ids."""
    model = of.model if isinstance(of, Reader) else of
    found: torch.Tensor = model(torch.tensor([[2, *range(40, 110), 7]])).logits
    return found


def test_logits_and_weights_are_those_of_the_twin(twins: Twins) -> None:
    assert (logits(twins.found) - logits(twins.wanted)).abs().max() <= 1e-5
    assert twins.found.model.dtype == torch.float32
    for (name, weight), other in zip(
        sorted(twins.found.model.named_parameters()),
        (weight for _, weight in sorted(twins.wanted.model.named_parameters())),
        strict=True,
    ):
        assert torch.allclose(weight, other, atol=1e-6), name


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_the_twin(twins: Twins, text: str) -> None:
    for encode in ("encode", "encode_prompt"):
        found = getattr(twins.found, encode)(text)
        assert found == getattr(twins.wanted, encode)(text)
        assert twins.found.decode(found) == twins.wanted.decode(found)


def test_the_rest_is_that_of_the_twin(twins: Twins) -> None:
    found, wanted = twins.found, twins.wanted
    assert (found.bos, found.eos, found.window) == (wanted.bos, wanted.eos, 160)
    assert found.tokenizer.chat_template == wanted.tokenizer.chat_template
    for pattern in PATTERNS.values():
        assert found.can_have(pattern) == wanted.can_have(pattern)


def test_what_is_saved_is_a_plain_checkpoint(twins: Twins, tmp_path: Path) -> None:
    twins.found.model.save_pretrained(tmp_path)
    twins.found.tokenizer.save_pretrained(tmp_path)
    again = load_reader(str(tmp_path))
    assert torch.equal(logits(again), logits(twins.found))
    assert fingerprint(again.model) == fingerprint(twins.found.model)
    assert [again.encode_prompt(text) for text in TEXTS] == [
        twins.found.encode_prompt(text) for text in TEXTS
    ]
    assert (again.eos, again.bos) == (twins.found.eos, twins.found.bos)


def test_the_twins_tokenizer_is_that_of_transformers(tmp_path: Path) -> None:
    """Where transformers knows the pre-tokenizer, its own way of loading gives the same ids."""
    file = write_gguf(tmp_path / "x.gguf", tiny_gemma(), gemma_tokenizer())
    own = AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    ours = load_reader(str(file)).tokenizer
    assert [own(text)["input_ids"] for text in TEXTS] == [ours(text)["input_ids"] for text in TEXTS]


def test_a_folder_with_one_file_is_a_model(llama: PreTrainedModel, tmp_path: Path) -> None:
    write_gguf(tmp_path / "one.gguf", llama, merging_tokenizer())
    (tmp_path / "tokenizer.json").write_text("[]")  # of nobody
    reader = load_reader(str(tmp_path), dtype="bfloat16", device="cpu", window=50)
    assert (reader.model.dtype, reader.window) == (torch.bfloat16, 50)
    assert reader.tokenizer.chat_template == TEMPLATE


def test_a_quantised_file_is_dequantised(llama: PreTrainedModel, tmp_path: Path) -> None:
    tokenizer = merging_tokenizer()
    plain = load_reader(str(write_gguf(tmp_path / "32.gguf", llama, tokenizer)))
    small = write_gguf(tmp_path / "8.gguf", llama, tokenizer, quantized=True)
    assert small.stat().st_size < (tmp_path / "32.gguf").stat().st_size / 2
    difference = (logits(load_reader(str(small))) - logits(plain)).abs().max()
    assert 0 < difference < 0.05 * logits(plain).abs().max()


def written(path: Path, model: PreTrainedModel, **changes: Any) -> str:
    """A file whose words differ from its model's."""
    return str(write_gguf(path / "x.gguf", model, merging_tokenizer(), **changes))


def test_the_end_of_a_turn_ends_a_text(llama: PreTrainedModel, tmp_path: Path) -> None:
    reader = load_reader(written(tmp_path, llama, words={"tokenizer.ggml.eot_token_id": 9}))
    assert reader.eos == {1, 9}


@pytest.mark.parametrize("weights", ["none", "safetensors", "bin"])
def test_a_folder_with_config_and_one_gguf_file_is_the_file_unless_it_has_weights(
    llama: PreTrainedModel, tmp_path: Path, weights: str
) -> None:
    file = written(tmp_path, llama)
    if weights == "none":
        llama.config.save_pretrained(tmp_path)
        merging_tokenizer().save_pretrained(tmp_path)
    else:
        llama.save_pretrained(tmp_path)
        merging_tokenizer().save_pretrained(tmp_path)
    if weights == "bin":
        (tmp_path / "model.safetensors").rename(tmp_path / "x.bin")
    source = locate(str(tmp_path))
    assert (source.gguf is not None) == (weights == "none")
    if source.gguf is not None:
        assert load_reader(str(tmp_path)).model.name_or_path == file


@pytest.mark.parametrize(
    ("names", "words", "ends"),
    [
        (["<|end|>"], {}, {1, 290}),
        (["<|eot_id|>", "<|eom_id|>"], {}, {1, 290, 291}),
        (["<|im_end|>", "<|endoftext|>"], {}, {1, 290, 291}),
        (["<end_of_turn>"], {"tokenizer.ggml.eos_token_id": None}, {290}),
        (["<|end|>", "<|return|>", "<|call|>"], {}, {1, 291, 292}),
        (["<|end|>"], {"tokenizer.ggml.eot_token_id": 9}, {1, 9}),
        (["<|end of it|>"], {}, {1}),
    ],
)
def test_an_end_of_a_turn_that_the_file_does_not_name_is_found_by_its_spelling(
    llama: PreTrainedModel,
    tmp_path: Path,
    names: list[str],
    words: dict[str, Any],
    ends: set[int],
) -> None:
    tokens = words_of(llama, merging_tokenizer())["tokenizer.ggml.tokens"]
    tokens[290 : 290 + len(names)] = names
    own = {"tokenizer.ggml.tokens": tokens} | words
    assert load_reader(written(tmp_path, llama, words=own)).eos == ends


def test_without_eos_nothing_ends_a_text(llama: PreTrainedModel, tmp_path: Path) -> None:
    words = {"tokenizer.ggml.eos_token_id": None, "tokenizer.ggml.bos_token_id": None}
    reader = load_reader(written(tmp_path, llama, words=words))
    assert (reader.eos, reader.bos) == (frozenset(), ())


@pytest.mark.parametrize(
    ("pre", "added", "bos"),
    [
        ("llama-bpe", None, (0,)),
        ("llama-bpe", False, ()),
        ("gpt-2", None, ()),
        ("gpt-2", True, (0,)),
    ],
)
def test_bos_is_as_llama_cpp_has_it(
    llama: PreTrainedModel, tmp_path: Path, pre: str, added: bool | None, bos: tuple[int, ...]
) -> None:
    words = {"tokenizer.ggml.pre": pre, "tokenizer.ggml.add_bos_token": added}
    assert load_reader(written(tmp_path, llama, words=words)).bos == bos


def test_digits_are_apart_where_the_vocabulary_was_learned_so(
    llama: PreTrainedModel, tmp_path: Path
) -> None:
    """With GPT-2's way of splitting, a space would be taken from the run before a digit."""
    text = "a  12"
    assert load_reader(written(tmp_path, llama)).encode(text) == merging_tokenizer().encode(text)
    words = {"tokenizer.ggml.pre": "gpt-2"}
    together = load_reader(written(tmp_path, llama, words=words)).encode(text)
    assert together != merging_tokenizer().encode(text)


def test_an_unknown_pre_tokenizer_is_said(llama: PreTrainedModel, tmp_path: Path) -> None:
    file = written(tmp_path, llama, words={"tokenizer.ggml.pre": "never-heard-of"})
    with pytest.warns(FlashBackWarning, match="splits texts as 'never-heard-of' does"):
        load_reader(file)


def test_an_unread_word_is_said(llama: PreTrainedModel, tmp_path: Path) -> None:
    file = written(tmp_path, llama, words={"llama.attention.scale": 0.5})
    with pytest.warns(FlashBackWarning, match=r"does not read attention\.scale"):
        load_reader(file)


@pytest.mark.parametrize(
    ("rope", "words"),
    [
        (
            {"rope_type": "linear", "factor": 4.0},
            {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
        ),
        (
            {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 80},
            {
                "llama.rope.scaling.type": "yarn",
                "llama.rope.scaling.factor": 2.0,
                "llama.rope.scaling.original_context_length": 80,
            },
        ),
    ],
)
def test_scaled_rotations_are_taken(
    rope: dict[str, Any], words: dict[str, Any], tmp_path: Path
) -> None:
    model = tiny_llama(rope_parameters={"rope_theta": 5e4} | rope)
    found = load_reader(written(tmp_path, model, words=words))
    assert (logits(found) - logits(model)).abs().max() < 1e-5


def configured(path: Path, architecture: str, **words: Any) -> Any:
    """The configuration of a file of another architecture, whose weights do not matter."""
    changed: dict[str, Any] = {"general.architecture": architecture}
    for key, value in words_of(*tiny()).items():
        if key.startswith("llama."):
            changed[key.replace("llama", architecture, 1)] = value
    changed |= {f"{architecture}.{key.replace('__', '.')}": word for key, word in words.items()}
    file = write_gguf(path / "x.gguf", *tiny(), words=changed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FlashBackWarning)
        return gguf_config(open_gguf(file, "x"))


def tiny() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return tiny_llama(), merging_tokenizer()


def test_words_that_transformers_does_not_take_are_taken(tmp_path: Path) -> None:
    """The base of StarCoder2's rotations and its window; the scale of the largest Gemma."""
    config = configured(tmp_path, "starcoder2", rope__freq_base=9e5, attention__sliding_window=32)
    assert (config.rope_parameters["rope_theta"], config.sliding_window) == (9e5, 32)
    assert config.max_position_embeddings == 160
    for layers, scale in ((62, 32 // 4), (26, 256)):
        assert configured(tmp_path, "gemma3", block_count=layers).query_pre_attn_scalar == scale


def test_a_word_of_llama_3s_vocabulary_is_one_token(llama: PreTrainedModel, tmp_path: Path) -> None:
    tokens = merging_tokenizer().convert_ids_to_tokens(list(range(300)))
    at = tokens.index("[PAD299]")
    kinds = words_of(*tiny())["tokenizer.ggml.token_type"]
    for pre, length in (("llama-bpe", 1), ("gpt-2", 3)):
        words = {
            "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.tokens": [*tokens[:at], "xyz", *tokens[at + 1 :]],
            "tokenizer.ggml.token_type": [*kinds[:at], 1, *kinds[at + 1 :]],
        }
        assert len(load_reader(written(tmp_path, llama, words=words)).encode("xyz")) == length


def llama3() -> tuple[PreTrainedModel, np.ndarray[Any, Any]]:
    """A model with Llama 3's rotations, and the factors that llama.cpp writes for them."""
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 5e4,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    model: Any = tiny_llama(rope_parameters=scaling)
    plain = 5e4 ** -(torch.arange(4) / 4)
    return model, (plain / model.model.rotary_emb.inv_freq).numpy()


def test_the_rotations_of_llama_3_are_taken(tmp_path: Path) -> None:
    model, factors = llama3()
    assert factors.max() == 32
    found = load_reader(written(tmp_path, model, more={"rope_freqs.weight": factors}))
    assert (logits(found) - logits(model)).abs().max() < 1e-5


# Refused


def refused(name: str | Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FlashBackWarning)
        with pytest.raises(ReaderError) as raised:
            load_reader(str(name))
    message = str(raised.value)
    assert message.startswith(f"model {name}")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"words": {"general.architecture": "rwkv6"}}, "architecture 'rwkv6'; it does of bloom, "),
        ({"words": {"llama.block_count": 3}}, "weights are missing, such as model.layers.2"),
        ({"words": {"llama.feed_forward_length": 32}}, "do not fit its metadata"),
        ({"without": ["blk.1.ffn_up.weight"]}, "1 weights are missing, such as model.layers.1.mlp"),
        (
            {"more": {"blk.0.attn_q.bias": np.zeros(32, np.float32)}},
            "leaves out 1 of its weights, such as blk.0.attn_q.bias",
        ),
        (
            {"more": {"rope_freqs.weight": np.arange(1, 5, dtype=np.float32)}},
            "that are not Llama 3's",
        ),
        (
            {"more": {"rope_factors_long.weight": np.ones(4, np.float32)}},
            "have long and short factors",
        ),
        ({"words": {"llama.rope.scaling.type": "longrope"}}, "are scaled by 'longrope'"),
        ({"words": {"tokenizer.ggml.eos_token_id": 900}}, "eos_token_id is 900, but it lists 300"),
        ({"words": {"tokenizer.ggml.model": "bert"}}, "tokenizer cannot be loaded"),
    ],
)
def test_files_that_cannot_be_read_rightly(
    changes: dict[str, Any], message: str, llama: PreTrainedModel, tmp_path: Path
) -> None:
    assert message in refused(written(tmp_path, llama, **changes))


def test_a_special_token_with_another_id_is_refused(llama: PreTrainedModel, tmp_path: Path) -> None:
    """transformers respells it in bytes and then adds it anew, behind the vocabulary."""
    tokens = merging_tokenizer().convert_ids_to_tokens(list(range(300)))
    words = {"tokenizer.ggml.tokens": ["<｜begin▁of▁text｜>", *tokens[1:]]}
    assert "its BOS is token 0" in refused(written(tmp_path, llama, words=words))


@pytest.mark.parametrize("name", ["x.gguf", "model"])
def test_what_does_not_begin_as_gguf(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"<html>no such file</html>")
    message = refused(tmp_path / name)
    assert ("begins with b'<htm', not with b'GGUF'" in message) == (name == "x.gguf")


@pytest.mark.parametrize("kept", [4, 20, 500, 0.5, 0.99])
def test_a_file_that_was_cut_off(llama: PreTrainedModel, tmp_path: Path, kept: float) -> None:
    file = Path(written(tmp_path, llama))
    content = file.read_bytes()
    file.write_bytes(content[: int(kept if kept > 1 else kept * len(content))])
    assert "is damaged" in (message := refused(file)) or "cannot be loaded" in message


def test_split_files_are_refused_with_what_joins_them(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"big-0000{number}-of-00002.gguf").write_bytes(b"GGUF")
    wanted = "llama-gguf-split --merge big-00001-of-00002.gguf big.gguf"
    assert wanted in refused(tmp_path / "big-00001-of-00002.gguf")
    assert wanted in refused(tmp_path)


def test_parts_are_refused_with_what_joins_them(tmp_path: Path) -> None:
    for number in (0, 1):
        (tmp_path / f"big.gguf.part0{number}").write_bytes(b"GGUF")
    wanted = "cat big.gguf.part* > big.gguf"
    assert wanted in refused(tmp_path / "big.gguf.part00")
    assert wanted in refused(tmp_path)


def test_one_of_several_files_must_be_named(llama: PreTrainedModel, tmp_path: Path) -> None:
    first = Path(written(tmp_path, llama))
    shutil.copy(first, tmp_path / "y.gguf")
    assert "has 2 GGUF files; name one: x.gguf, y.gguf" in refused(tmp_path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert "found nothing there; expected a model's folder, a GGUF" in refused(tmp_path / "x.gguf")
    assert "found nothing there" in refused("nothing.gguf")


def test_the_missing_package_is_named(
    llama: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, llama)
    monkeypatch.setattr("flashback.readers.gguf.is_gguf_available", lambda _: False)
    assert "pip install '.[gguf]'" in refused(file)


def test_an_encoder_decoder_is_refused(llama: PreTrainedModel, tmp_path: Path) -> None:
    words = {"general.architecture": "t5", "t5.block_count": 2, "t5.attention.head_count": 4}
    with pytest.raises(UnsupportedReader, match="encoder-decoder"):
        load_reader(written(tmp_path, llama, words=words))


def test_an_adapter_trained_on_a_file_finds_it_again(twins: Twins) -> None:
    """Its card names the file as it was given, and its base is known by its weights."""
    from flashback.readers.fingerprint import base_of

    base = base_of(twins.found)
    assert base.fingerprint == base_of(twins.wanted).fingerprint
    assert fingerprint(load_reader(base.name).model) == base.fingerprint
    assert json.dumps(twins.found.model.config.to_dict())
