"""numba's products of one row: exact, for single rows only, refused where there are none."""

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from command_line import refused, run
from families import FAMILIES, tiny_model
from flashback.engines.kernels.choice import always
from flashback.engines.kernels.linear import JoinedLinear, LaidOutLinear, lay_out
from flashback.engines.kernels.products import COMPILED, Kept, Product
from flashback.engines.local import LocalEngine
from flashback.errors import FlashBackError, SettingsError
from flashback.loading import load
from flashback.patterns.registry import PATTERNS
from flashback.readers.inference import for_inference
from flashback.readers.load import MINI, load_reader
from flashback.readers.reader import Reader
from flashback.readers.weight_settings import Weights
from flashback.settings import RetrievalSettings, Settings, StoppingSettings
from flashback.writing.generator import Generation, Generator
from recompute import TOLERANCE, check_greedy, largest_error
from recorded import generate_and_record
from tiny_readers import MadeUpRetriever, tiny_reader

SHAPES = [(192, 64), (768, 768), (768, 3072), (3072, 768), (1000, 256)]
"""Outputs and inputs that oneDNN lays out in blocks, the last with an unfinished one."""
NUMBERS = ["float32", "bfloat16"]


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where loops are kept: what one test compiles, others and their processes load."""
    folder = tmp_path_factory.mktemp("numba")
    with pytest.MonkeyPatch.context() as patch:
        if find_spec("numba") is not None:
            import numba

            patch.setattr(numba.config, "CACHE_DIR", str(folder))
            patch.setattr(numba, "njit", partial(numba.njit, cache=True))
        yield folder


@pytest.fixture
def one_row() -> Any:
    """The module. On processors that are known to lay weights out as it reads them, it must."""
    module = pytest.importorskip(
        "flashback.engines.kernels.one_row",
        reason="numba is not installed: make extras",
        exc_type=ImportError,
    )
    known = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    if not known and not module.reads(torch.float32):
        pytest.skip("this processor has another layout")
    return module


def dtype_of(number: str, one_row: Any) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, number)
    supported = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    has_bfloat16 = supported and torch.cpu._is_avx512_bf16_supported()
    if dtype is torch.bfloat16 and not has_bfloat16 and not one_row.reads(dtype):
        pytest.skip("this processor has no bfloat16")
    return dtype


def pack(weight: torch.Tensor) -> torch.Tensor:
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, 16)
    return packed


def laid_out(model: nn.Module) -> list[LaidOutLinear]:
    """Every layer once, those of the same input together."""
    wholes = (
        layer.joint.whole if isinstance(layer, JoinedLinear) else layer
        for layer in model.modules()
        if isinstance(layer, JoinedLinear | LaidOutLinear)
    )
    return list({id(whole): whole for whole in wholes}.values())


def with_numba(reader: Reader) -> Reader:
    return for_inference(reader, Weights.NUMBA)


def mini() -> Reader:
    return load_reader(MINI, device="cpu", dtype="float32")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_product_is_that_of_the_weight(
    one_row: Any, shape: tuple[int, int], number: str, bias: bool
) -> None:
    dtype = dtype_of(number, one_row)
    torch.manual_seed(0)
    layer = nn.Linear(shape[1], shape[0], bias=bias).to(dtype)
    product = one_row.row_product(pack(layer.weight.detach()), layer.weight.detach(), layer.bias)
    assert product is not None
    for x in (torch.randn(1, 1, shape[1]).to(dtype), torch.ones(shape[1], dtype=dtype)):
        with torch.inference_mode():
            found = product(x)
        exact = nn.functional.linear(
            x.double(), layer.weight.double(), layer.bias.double() if bias else None
        )
        assert (found.shape, found.dtype) == (exact.shape, dtype)
        # Half a step of what the dtype can tell apart.
        rounding = 1e-6 if dtype is torch.float32 else 2**-8
        assert torch.allclose(found.double(), exact, rtol=rounding, atol=1e-5)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_weight_that_lies_otherwise_is_left_to_onednn(one_row: Any, number: str) -> None:
    dtype = dtype_of(number, one_row)
    torch.manual_seed(0)
    weight = torch.randn(192, 64).to(dtype)
    unlike = weight.clone()
    unlike[100, 10] += 1
    assert one_row.row_product(pack(weight), weight, None) is not None
    assert one_row.row_product(pack(weight), unlike, None) is None
    small = torch.randn(7, 5).to(dtype)
    assert one_row.row_product(pack(small), small, None) is None


@pytest.mark.parametrize("number", NUMBERS)
def test_equal_weights_lie_in_blocks_too(one_row: Any, number: str) -> None:
    dtype = dtype_of(number, one_row)
    for weight in (torch.zeros(192, 64), torch.ones(192, 64), torch.eye(192)[:, :64]):
        product = one_row.row_product(pack(weight.to(dtype)), weight.to(dtype), None)
        x = torch.arange(64).to(dtype)
        assert torch.equal(product(x), (weight @ x.float()).to(dtype))


@pytest.mark.parametrize("number", NUMBERS)
def test_a_row_may_lie_anywhere_and_must_fit(one_row: Any, number: str) -> None:
    dtype = dtype_of(number, one_row)
    torch.manual_seed(0)
    weight = torch.randn(192, 64).to(dtype)
    product = one_row.row_product(pack(weight), weight, None)
    long = torch.randn(129).to(dtype)
    for x in (long[1:65], long[:128:2], long[:1].expand(64), long[None, :64]):
        assert torch.equal(product(x), product(x.clone()))
    for wrong in (long[:32], long[:128], long[:64].double(), long[:64].half()):
        with pytest.raises(RuntimeError, match="expected 64 numbers of"):
            product(wrong)


def test_pytorch_keeps_its_threads_and_numba_takes_as_many(one_row: Any, compiled: Path) -> None:
    """In a process whose first use of numba this is: there it starts OpenMP."""
    script = """
import numba, torch
from functools import partial
numba.njit = partial(numba.njit, cache=True)
before = torch.get_num_threads()
from flashback.engines.kernels.one_row import row_product
weight = torch.randn(192, 64)
product = row_product(torch.ops.mkldnn._reorder_linear_weight(weight, 16), weight, None)
one = torch.get_num_threads()
product(torch.ones(64))
same = numba.get_num_threads()
torch.set_num_threads(2)
product(torch.ones(64))
print(before, one, same, torch.get_num_threads(), numba.get_num_threads())
"""
    threads = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "2"}
    environment = os.environ | threads | {"NUMBA_CACHE_DIR": str(compiled)}
    found = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, check=True
    )
    assert found.stdout.split() == [b"1", b"1", b"1", b"2", b"2"]


def write(reader: Reader, pattern: str) -> tuple[Generation, list[torch.Tensor]]:
    writer = Generator(reader, LocalEngine(reader.model, window=120), MadeUpRetriever(3))
    settings = Settings(
        RetrievalSettings(pattern, stride=5, passage_tokens=20),
        stopping=StoppingSettings(max_new_tokens=40, ignore_eos=True),
    )
    return generate_and_record(writer, [0, *range(10, 40)], settings)


@pytest.mark.parametrize(
    ("family", "pattern"),
    [
        *((family, "append") for family in (*FAMILIES, MINI)),
        # The products are the same ones in every pattern.
        *((family, pattern) for family in ("opt", MINI) for pattern in ("prepend", "slot")),
    ],
)
def test_generation_equals_recomputation_by_the_plain_model(
    one_row: Any, family: str, pattern: str
) -> None:
    def make() -> Reader:
        return mini() if family == MINI else tiny_reader(family)

    reader, plain = with_numba(make()), make()
    if not reader.can_have(PATTERNS[pattern]):
        return
    layers = laid_out(reader.model)
    assert layers
    assert all(isinstance(layer.products[0], one_row.RowProduct) for layer in layers)
    generation, seen = write(reader, pattern)
    if pattern == "slot":  # which test_slot.py compares with recomputation
        expected, logits = write(plain, pattern)
        assert generation.tokens == expected.tokens
        assert float((torch.stack(seen) - torch.stack(logits)).abs().max()) <= TOLERANCE
        return
    assert largest_error(plain.model, generation, seen) <= TOLERANCE
    check_greedy(plain.model, generation, reader.forbidden)


def test_single_tokens_take_it_and_others_do_not(
    one_row: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = with_numba(mini())
    rows: list[torch.Tensor] = []

    def counted(product: Product, x: torch.Tensor) -> torch.Tensor:
        rows.append(x)
        return product(x)

    layers = laid_out(reader.model)
    for layer in layers:
        single, *others = layer.products
        monkeypatch.setattr(layer, "products", (partial(counted, single), *others))
    ids = torch.arange(40, 80)[None]
    with torch.inference_mode():
        reader.model(ids, logits_to_keep=2)
        assert not rows
        reader.model(ids[:, :1])
        assert len(rows) == len(layers)
        layer, width = layers[0], layers[0].weight.shape[1]
        for shape in ((width,), (1, width), (1, 1, width)):
            assert layer(torch.ones(shape)).shape == (*shape[:-1], len(layer.weight))
        assert len(rows) == len(layers) + 3
        layer(torch.ones(2, width))
        assert len(rows) == len(layers) + 3


@pytest.mark.parametrize("wrong", [torch.nan, 1.0])
def test_a_product_that_does_not_agree_is_not_taken(wrong: float) -> None:
    model, made = tiny_model("gpt2"), []

    def make(name: str, beside: Kept, weight: Tensor, bias: Tensor | None) -> Product:
        made.append(name)
        more = wrong if len(made) > 3 else 0
        return lambda x: nn.functional.linear(x, weight, bias) + more

    count = lay_out(model, always(COMPILED), make)
    layers = laid_out(model)
    assert made == [COMPILED] * len(layers) == [COMPILED] * count
    singles = [layer.products[0] is not layer.products[1] for layer in layers]
    assert singles == [True] * 3 + [False] * (count - 3)


def test_the_same_text_is_written(one_row: Any, index: Path) -> None:
    arguments = ("--index", index, "--device", "cpu", "--dtype", "float32", "--json")
    more = ("--max-new-tokens", "24", "--ignore-eos", "The tides of the ocean")
    expected = run("generate", *arguments, *more).record
    found = run("generate", "--weights", "numba", *arguments, *more).record
    assert found["tokens"] == expected["tokens"]
    assert expected["settings"]["weights"] == "full"
    assert found["settings"]["weights"] == "numba"
    assert found["settings"]["placement"].endswith(", numba weights")
    assert "numba" in found["versions"]


@pytest.mark.usefixtures("small_ceilings")
def test_benchmarks_measure_it(one_row: Any) -> None:
    arguments = ("--shape", MINI, "--lengths", "40:64", "--stride", "5", "--passage-tokens", "12")
    more = ("--device", "cpu", "--weights", "numba", "--json")
    record = run("bench", "engine", *arguments, *more, "--repeats", "1").record
    numbers = [number for number in NUMBERS if one_row.reads(getattr(torch, number))]
    assert [row["arm"] for row in record["rows"] if "numba" in row["arm"]] == [
        f"numba {number}" for number in numbers
    ]
    assert "numba float32/ours float32" in record["ratios"]
    record = run("bench", "runtime", *arguments, *more, "--pattern", "none").record
    assert record["settings"]["weights"] == "numba"
    assert "numba" in record["versions"]


def test_what_it_is_not_for_is_refused(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="weights='cuda': expected one of full, numba, int8"):
        load(str(model_folder), device="cpu", weights="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SettingsError, match="for CPUs only, found cuda; use device='cpu'"):
        load(str(model_folder), device="cuda", dtype="float32", weights="numba")


def test_without_numba_one_line_says_what_to_install(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    for name in ("loops", "one_row"):
        monkeypatch.delitem(sys.modules, f"flashback.engines.kernels.{name}", raising=False)
    call = ("--weights", "numba", "--device", "cpu")
    said = refused("generate", *call, "--model", model_folder, "--pattern", "none", "abc", code=1)
    assert "--weights numba needs numba; install FlashBack with the extra numba" in said
    assert "needs numba" in refused("bench", "engine", *call, code=1)
    assert "needs numba" in refused("bench", "runtime", *call, code=1)


def test_an_unknown_layout_is_an_error(one_row: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(one_row, "row_product", lambda *_: None)
        with pytest.raises(SettingsError, match="read none of the weights of opt as PyTorch packs"):
            with_numba(tiny_reader("opt"))
    monkeypatch.setattr(one_row, "reads", lambda _: False)
    with pytest.raises(SettingsError, match=r"packs no weights of torch\.float32 as numba's loops"):
        with_numba(tiny_reader())


def test_threads_that_are_not_pytorchs_are_refused(
    one_row: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numba

    from flashback.engines.kernels import loops

    monkeypatch.setattr(numba, "threading_layer", lambda: "workqueue")
    with pytest.raises(FlashBackError, match="numba's threads are workqueue; expected omp"):
        loops.product_loop.__wrapped__(torch.float32)

    def none() -> None:
        raise ValueError("No threading layer could be loaded.\nHINT:\nmore")

    monkeypatch.setattr(numba, "threading_layer", none)
    with pytest.raises(FlashBackError, match=r"numba's threads are none \(No .* loaded\.\);"):
        loops.product_loop.__wrapped__(torch.float32)
