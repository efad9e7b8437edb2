"""numba's products of one row: exact, for single rows only, refused where there are none."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from command_line import refused, run
from families import FAMILIES, tiny_model
from flashback import loading
from flashback.engines.local import LocalEngine
from flashback.engines.packed import OneRow, PackedLinear, packs
from flashback.errors import SettingsError
from flashback.generation import Generation, Generator
from flashback.loading import for_inference, load
from flashback.reader import MINI, Reader, load_reader
from flashback.settings import (
    DecodeKernel,
    Pattern,
    RetrievalSettings,
    Settings,
    StoppingSettings,
)
from readers import MadeUpRetriever, tiny_reader
from recompute import TOLERANCE, check_greedy, largest_error
from test_parity import generate_and_record

REASON = "numba is not installed: make extras"
WIDE = (192, 64)
"""A weight that oneDNN lays out in blocks."""


@pytest.fixture
def one_row() -> Any:
    """The module, on a processor whose layout it knows."""
    module = pytest.importorskip("flashback.engines.one_row", reason=REASON, exc_type=ImportError)
    if packed(torch.rand(WIDE), module) is None:
        pytest.skip("oneDNN's layout for this processor is another")
    return module


def packed(weight: torch.Tensor, module: Any, bias: nn.Parameter | None = None) -> Any:
    return module.one_row(torch.ops.mkldnn._reorder_linear_weight(weight, 16), weight, bias)


def with_numba(family: str) -> Reader:
    return for_inference(tiny_reader(family), decode_kernel=DecodeKernel.NUMBA)


@settings(max_examples=40, deadline=None)
@given(
    blocks=st.integers(1, 4),
    rest=st.integers(0, 63),
    inputs=st.integers(1, 70),
    number=st.sampled_from(["float32", "bfloat16"]),
    bias=st.booleans(),
    seed=st.integers(0, 9),
)
def test_a_product_is_that_of_the_weight_or_left_to_onednn(
    blocks: int, rest: int, inputs: int, number: str, bias: bool, seed: int
) -> None:
    module = pytest.importorskip("flashback.engines.one_row", reason=REASON, exc_type=ImportError)
    if not packs(number):
        return
    dtype = getattr(torch, number)
    torch.manual_seed(seed)
    layer = nn.Linear(inputs, 64 * blocks + rest, bias=bias).to(dtype)
    product = packed(layer.weight.detach(), module, layer.bias)
    if product is None:
        return
    x = torch.randn(1, 1, inputs).to(dtype)
    found = product(x)
    exact = nn.functional.linear(
        x.double(), layer.weight.double(), layer.bias.double() if bias else None
    )
    assert (found.shape, found.dtype) == (exact.shape, dtype)
    # Half a step of what the dtype can tell apart.
    rounding = 1e-6 if dtype is torch.float32 else 2**-8
    assert torch.allclose(found.double(), exact, rtol=rounding, atol=1e-5)


@pytest.mark.parametrize("number", ["float32", "bfloat16"])
def test_weights_in_blocks_are_read_where_they_lie(one_row: Any, number: str) -> None:
    if not packs(number):
        pytest.skip(f"PyTorch packs no {number} on this processor")
    torch.manual_seed(0)
    weight = torch.randn(WIDE).to(getattr(torch, number))
    product = packed(weight, one_row)
    assert product is not None
    x = torch.randn(64).to(weight.dtype)
    x[10] = 0
    unlike = weight.clone()
    unlike[100, 10] = 1e4  # of another weight, nobody would see it in this product
    assert torch.allclose(product(x), unlike @ x, atol=0.05)
    there = torch.ops.mkldnn._reorder_linear_weight(weight, 16)
    assert one_row.one_row(there, unlike, None) is None


def test_it_takes_as_many_threads_as_pytorch(one_row: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import numba

    weight = torch.rand(WIDE)
    product = packed(weight, one_row)
    for threads in (1, min(2, numba.config.NUMBA_NUM_THREADS)):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=threads: count)
        assert torch.allclose(product(torch.ones(64)), weight.sum(1))
        assert numba.get_num_threads() == threads


@pytest.mark.parametrize("pattern", [Pattern.APPEND, Pattern.PREPEND, Pattern.SLOT])
@pytest.mark.parametrize("family", FAMILIES)
def test_generation_equals_recomputation_by_the_plain_model(
    one_row: Any, family: str, pattern: Pattern
) -> None:
    reader, plain = with_numba(family), tiny_model(family)
    if pattern is Pattern.SLOT and not reader.can_have_slot:
        return
    wanted = Settings(
        RetrievalSettings(pattern, stride=5, passage_tokens=20),
        stopping=StoppingSettings(max_new_tokens=100, ignore_eos=True),
    )

    def write(reader: Reader) -> tuple[Generation, list[torch.Tensor]]:
        writer = Generator(reader, LocalEngine(reader.model, window=120), MadeUpRetriever(3))
        return generate_and_record(writer, [0, *range(10, 40)], wanted)

    generation, seen = write(reader)
    if pattern is Pattern.SLOT:  # which test_slot.py compares with recomputation
        expected, logits = write(tiny_reader(family))
        assert generation.tokens == expected.tokens
        assert float((torch.stack(seen) - torch.stack(logits)).abs().max()) <= TOLERANCE
        return
    assert largest_error(plain, generation, seen) <= TOLERANCE
    check_greedy(plain, generation, reader.forbidden)


def test_every_layer_of_the_shipped_reader_takes_single_tokens(
    one_row: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = load_reader(MINI, device="cpu", dtype="float32").model
    reader = for_inference(
        load_reader(MINI, device="cpu", dtype="float32"), decode_kernel=DecodeKernel.NUMBA
    )
    layers = [layer for layer in reader.model.modules() if isinstance(layer, PackedLinear)]
    rows: list[torch.Tensor] = []

    def counted(product: OneRow, x: torch.Tensor) -> torch.Tensor:
        rows.append(x)
        return product(x)

    for layer in layers:
        assert layer.one_row is not None
        monkeypatch.setattr(layer, "one_row", partial(counted, layer.one_row))
    ids = torch.arange(40, 80)[None]
    with torch.inference_mode():
        several = reader.model(ids, logits_to_keep=2).logits
        assert not rows
        one = reader.model(ids[:, :1]).logits
        assert len(rows) == len(layers)
        assert torch.allclose(several, plain(ids).logits[:, -2:], atol=TOLERANCE)
        assert torch.allclose(one, plain(ids[:, :1]).logits, atol=TOLERANCE)


def test_the_same_text_is_written(one_row: Any, index: Path) -> None:
    arguments = ("--index", index, "--device", "cpu", "--dtype", "float32", "--json")
    more = ("--max-new-tokens", "24", "--ignore-eos", "The tides of the ocean")
    expected = run("generate", *arguments, *more).record
    found = run("generate", "--decode-kernel", "numba", *arguments, *more).record
    assert found["tokens"] == expected["tokens"]
    assert expected["settings"]["decode_kernel"] == "pytorch"
    assert found["settings"]["decode_kernel"] == "numba"
    assert found["settings"]["placement"].endswith(", decoding by numba")
    assert "numba" in found["versions"]


def test_benchmarks_measure_it(one_row: Any) -> None:
    arguments = ("--shape", MINI, "--lengths", "40:90", "--stride", "5", "--passage-tokens", "12")
    more = ("--device", "cpu", "--decode-kernel", "numba", "--json")
    record = run("bench", "engine", *arguments, *more, "--repeats", "1").record
    numbers = [number for number in ("float32", "bfloat16") if packs(number)]
    assert [row["arm"] for row in record["rows"] if "numba" in row["arm"]] == [
        f"numba {number}" for number in numbers
    ]
    assert "numba float32/ours float32" in record["ratios"]
    record = run("bench", "runtime", *arguments, *more, "--pattern", "none").record
    assert record["settings"]["decode_kernel"] == "numba"
    assert "numba" in record["versions"]


def test_what_it_is_not_for_is_refused(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for more, message in (
        ({"quantize": "int8"}, "--decode-kernel numba: for whole weights, found --quantize int8"),
        ({"decode_kernel": "cuda"}, "--decode-kernel cuda: expected pytorch or numba"),
    ):
        with pytest.raises(SettingsError, match=message):
            load(str(model_folder), **{"device": "cpu", "decode_kernel": "numba"} | more)  # type: ignore[arg-type]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SettingsError, match="for CPUs only, found cuda; use --device cpu"):
        load(str(model_folder), device="cuda", dtype="float32", decode_kernel="numba")


def test_without_numba_one_line_says_what_to_install(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "flashback.engines.one_row", raising=False)
    call = ("--decode-kernel", "numba", "--device", "cpu")
    said = refused("generate", *call, "--model", model_folder, "--pattern", "none", "abc")
    assert "--decode-kernel numba needs numba; install FlashBack with the extra numba" in said
    assert "needs numba" in refused("bench", "engine", *call)
    assert "needs numba" in refused("bench", "runtime", *call)


def test_a_layout_that_is_not_known_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_numba_rows", lambda _: lambda *_: None)
    with pytest.raises(SettingsError, match="keeps no weight of opt as numba's loops read them"):
        with_numba("opt")


def test_threads_that_are_not_pytorchs_are_refused(
    one_row: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numba

    monkeypatch.setattr(numba, "threading_layer", lambda: "workqueue")
    with pytest.raises(SettingsError, match="numba's threads are workqueue; expected omp"):
        one_row.kernel.__wrapped__(torch.float32)

    def none(*_: object, **__: object) -> None:
        raise ValueError("No threading layer could be loaded.\nHINT:\nmore")

    monkeypatch.setattr(numba, "njit", none)
    with pytest.raises(SettingsError, match=r"numba's threads are none \(No .* loaded\.\);"):
        one_row.kernel.__wrapped__(torch.float32)
