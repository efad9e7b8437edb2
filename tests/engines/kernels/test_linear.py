"""Packed and 8-bit layers: the same model, as far as each of them promises."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from command_line import refused, run
from families import FAMILIES, tiny_model
from flashback.engines.kernels.choice import Choice, Choose, always
from flashback.engines.kernels.linear import (
    LaidOutLinear,
    is_quantized,
    lay_out,
    named_weights,
    quantize_weights,
)
from flashback.engines.kernels.products import (
    INT8,
    PACKED,
    PLAIN,
    Int8Product,
    input_levels,
)
from flashback.engines.local import LocalEngine
from flashback.errors import SettingsError
from flashback.loading import load
from flashback.readers.fingerprint import fingerprint
from flashback.readers.inference import for_inference
from flashback.readers.reader import Reader
from flashback.readers.weight_settings import Weights
from flashback.settings import RetrievalSettings, Settings, StoppingSettings
from flashback.writing.generator import Generator
from recompute import TOLERANCE, check_greedy, largest_error
from recorded import generate_and_record
from tiny_readers import MadeUpRetriever, tiny_reader


def forced(way: str) -> Choose:
    """One product for all rows, or `single/few/many`."""
    names = way.split("/")
    return always(way) if len(names) == 1 else lambda *_: Choice(*names)


def linear_layers(model: nn.Module) -> list[nn.Module]:
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear | Conv1D)]


@pytest.mark.parametrize("way", [PLAIN, PACKED, "plain/packed/plain"])
@pytest.mark.parametrize("pattern", ["append", "prepend"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_way_generates_what_the_plain_model_does(family: str, pattern: str, way: str) -> None:
    reader, plain = for_inference(tiny_reader(family), choose=forced(way)), tiny_model(family)
    assert not linear_layers(reader.model)
    writer = Generator(reader, LocalEngine(reader.model, window=120), MadeUpRetriever(3))
    settings = Settings(
        RetrievalSettings(pattern, stride=5, passage_tokens=20),
        stopping=StoppingSettings(max_new_tokens=64, ignore_eos=True),
    )
    generation, seen = generate_and_record(writer, [0, *range(10, 40)], settings)
    assert generation.jumps
    assert largest_error(plain, generation, seen) <= TOLERANCE
    check_greedy(plain, generation, reader.forbidden)


@pytest.mark.parametrize("family", FAMILIES)
def test_laying_out_keeps_the_weights_and_the_models_identity(family: str) -> None:
    plain, packed = tiny_model(family), tiny_model(family)
    count = len(linear_layers(plain))
    assert lay_out(packed, always(PACKED)) == count > 0
    expected, found = dict(plain.named_parameters()), dict(named_weights(packed))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert fingerprint(packed) == fingerprint(plain)


def test_plain_weights_are_freed_and_a_tied_embedding_is_not() -> None:
    model = tiny_model("opt")
    embedding: Any = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is embedding
    lay_out(model, always(PACKED))
    assert model.get_input_embeddings().weight is embedding
    assert isinstance(model.get_output_embeddings(), LaidOutLinear)
    head: Any = model.get_output_embeddings()
    assert torch.equal(head.weight, model.get_input_embeddings().state_dict()["weight"])
    matrices = [name for name, weight in model.named_parameters() if weight.ndim == 2]
    assert all("embed" in name for name in matrices)
    assert next(model.parameters()).device.type == model.device.type == "cpu"


def test_the_transposed_weights_of_gpt2_look_as_before() -> None:
    plain, packed = tiny_model("gpt2"), tiny_model("gpt2")
    lay_out(packed, always(PACKED))
    name = "transformer.h.0.mlp.c_fc"
    found: Any = packed.get_submodule(name)
    expected: Any = plain.get_submodule(name)
    assert torch.equal(found.weight, expected.weight)


def test_layers_stay_where_the_operator_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise AttributeError("no such operator")

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", missing)
    model = tiny_model("opt")
    assert lay_out(model, always(PACKED)) == 0
    assert len(linear_layers(model)) == len(linear_layers(tiny_model("opt")))


def test_layers_stay_where_the_operator_computes_something_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = torch.ops.mkldnn._linear_pointwise
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", lambda *all: 1.01 * right(*all))
    assert lay_out(tiny_model("opt"), always(PACKED)) == 0


def test_bfloat16_weights_are_packed_where_the_processor_has_it() -> None:
    plain, packed = tiny_model("opt").bfloat16(), tiny_model("opt").bfloat16()
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor has no bfloat16")
    assert lay_out(packed, always(PACKED)) == len(linear_layers(plain))
    ids = torch.arange(2, 40)[None]
    with torch.inference_mode():
        expected, found = plain(ids).logits, packed(ids).logits
    assert found.dtype is torch.bfloat16
    assert float((found - expected).abs().max()) <= 5e-2 * float(expected.abs().max())
    LocalEngine(packed, window=120)  # the self-check passes


@pytest.mark.parametrize("family", FAMILIES)
def test_rounded_models_stay_near_and_pass_the_self_check(family: str) -> None:
    plain, rounded = tiny_model(family), tiny_model(family)
    assert quantize_weights(rounded, always(INT8)) == len(linear_layers(plain))
    assert is_quantized(rounded)
    assert not is_quantized(plain)
    ids = torch.arange(2, 60)[None]
    with torch.inference_mode():
        expected, found = plain(ids).logits, rounded(ids).logits
    error = (found - expected).norm() / expected.norm()
    assert 1e-4 < float(error) < 0.1
    assert fingerprint(rounded) != fingerprint(plain)
    LocalEngine(rounded, window=120)


@pytest.mark.parametrize("bias", [True, False])
def test_a_rounded_product_is_that_of_its_weights_row_by_row(bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(64, 48, bias=bias)
    with torch.inference_mode():
        layer = Int8Product(plain.weight.detach(), plain.bias)
        x = torch.randn(1, 9, 64) * torch.logspace(-3, 3, 9)[None, :, None]
        x[0, 4] = 0
        together = layer(x)
        alone = torch.cat([layer(row[None, None]) for row in x[0]], 1)
        half_steps = 2 * input_levels()
        rounding = x.abs().amax(-1, keepdim=True) / half_steps  # half a step of every input
        exact = nn.functional.linear(x, layer.unpacked(), plain.bias)
        most = rounding * layer.unpacked().abs().sum(1)
    assert torch.allclose(together, alone, atol=0, rtol=1e-6)
    assert ((together - exact).abs() <= 1.001 * most + 1e-6).all()
    step = plain.weight.abs().amax(1, keepdim=True) / 127
    assert ((layer.unpacked() - plain.weight).abs() <= 0.501 * step).all()


def test_rounding_that_there_is_not_is_refused(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for more, message in (
        ({"dtype": "bfloat16"}, "weights='int8': .* leave out dtype"),
        ({"weights": "int4"}, "weights='int4': expected one of full, numba, int8"),
    ):
        with pytest.raises(SettingsError, match=message):
            load(str(model_folder), **{"device": "cpu", "weights": "int8"} | more)  # type: ignore[arg-type]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SettingsError, match="for CPUs only, found cuda; use device='cpu'"):
        load(str(model_folder), device="cuda", dtype="float32", weights="int8")


def test_a_processor_without_8_bit_layers_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise AttributeError("no such operator")

    monkeypatch.setattr(torch.ops.onednn, "qlinear_prepack", missing)
    with pytest.raises(SettingsError, match="no 8-bit linear layers"):
        for_inference(tiny_reader(), Weights.INT8)


def test_a_loaded_writer_is_packed_or_rounded(model_folder: Path) -> None:
    writer = load(str(model_folder), device="cpu")
    assert isinstance(writer.reader, Reader)
    assert not linear_layers(writer.reader.model)
    assert not is_quantized(writer.reader.model)
    writer = load(str(model_folder), device="cpu", weights="int8")
    assert isinstance(writer.reader, Reader)
    assert is_quantized(writer.reader.model)
    assert str(writer.reader.placement).endswith(", int8 weights")


def test_generate_says_that_weights_are_rounded(model_folder: Path) -> None:
    arguments = (
        *("--pattern", "none", "--passage-tokens", "8", "--model", model_folder),
        *("--device", "cpu", "--json", "abc"),
    )
    assert run("generate", *arguments).record["settings"]["weights"] == "full"
    record = run("generate", "--weights", "int8", *arguments).record
    assert record["settings"]["weights"] == "int8"


def test_training_knows_no_rounded_weights() -> None:
    for command in ("train", "export", "reproduce"):
        assert "--weights" in refused(command, "--weights", "int8", code=2)


def test_eval_shows_what_rounding_costs(notes: Path, model_folder: Path) -> None:
    arguments = ("eval", notes, "--model", model_folder, "--pattern", "none", "--json")
    short = ("--device", "cpu", "--window-tokens", "32", "--first-boundary", "8")
    exact = run(*arguments, *short).record
    rounded = run(*arguments, *short, "--weights", "int8").record
    assert (exact["settings"]["weights"], rounded["settings"]["weights"]) == ("full", "int8")
    ratio = rounded["rows"][0]["perplexity"] / exact["rows"][0]["perplexity"]
    assert ratio != 1
    assert ratio == pytest.approx(1, abs=0.02)
