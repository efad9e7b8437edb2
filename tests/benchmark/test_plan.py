"""Plans: computed from the cost functions, and checked against the sweeps in docs/results."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from command_line import refused, run
from flashback.benchmark.devices import DEVICES, parse_efficiency
from flashback.benchmark.flops import Shape, cache_bytes, pass_bytes
from flashback.benchmark.measured_sweep import CheckedArm, read_sweep
from flashback.benchmark.model_size import model_size
from flashback.benchmark.plan import make_plan
from flashback.benchmark.plan_settings import PlanSettings
from flashback.benchmark.roofline import Rates, fit
from flashback.errors import ReaderError, SettingsError
from flashback.patterns.cost import Pass
from flashback.patterns.registry import PATTERNS
from flashback.readers.load import load_reader

RESULTS = Path(__file__).parents[2] / "docs" / "results"
SCALING = RESULTS.parent / "scaling.md"
CPU = "runtime-opt-125m"
GPU = "gpu/runtime-llama-2-7b"
QUIET = f"{CPU}-avx512.csv"
CHECKS = {
    (f"{CPU}-avx512-second.csv", QUIET): set[str](),
    (f"{CPU}-avx512-products.csv", QUIET): set[str](),
    (f"{CPU}-avx512-numba.csv", QUIET): set[str](),
    (f"{CPU}-avx512-busy.csv", QUIET): set[str](),
    (f"{CPU}-avx512-busiest.csv", QUIET): set[str](),
    (f"{CPU}.csv", f"{CPU}-earlier.csv"): set[str](),
    (f"{GPU}-16k-bfloat16.csv", f"{GPU}-bfloat16.csv"): set[str](),
    (f"{GPU}-bfloat16.csv", f"{GPU}-16k-bfloat16.csv"): {"prepend"},
    (QUIET, None): set[str](),
    (f"{GPU}-float32.csv", None): set[str](),
    (f"{GPU}-bfloat16.csv", None): {"prepend"},
    (f"{GPU}-16k-bfloat16.csv", None): set[str](),
}
"""Sweeps, what each is predicted from (None: the defaults), and the arms that are off by over 25 %.

None was fitted to the sweep that it predicts but for the defaults, which are of the H100 and of the
quiet hour of the CPU.
"""


def checked(sweep: str, calibration: str | None) -> list[CheckedArm]:
    measured = read_sweep(RESULTS / sweep, "--check")
    gpu = "h100" if measured.device == "cuda" else "cpu"
    settings = PlanSettings(model=measured.shape, gpu=gpu, dtype=measured.dtype)
    own = None if calibration is None else read_sweep(RESULTS / calibration, "--calibrate")
    made = make_plan(settings, own)
    return measured.checked(made.model.shape, made.rates)


@pytest.mark.parametrize(("sweep", "calibration"), CHECKS)
def test_measured_seconds_per_stride_are_predicted_within_a_quarter(
    sweep: str, calibration: str | None
) -> None:
    arms = checked(sweep, calibration)
    assert {arm.arm for arm in arms if not arm.holds} == CHECKS[sweep, calibration]
    ratios = [f"{arm.ratio:.2f}" for arm in sorted(arms, key=lambda arm: arm.ratio)]
    kind = "defaults" if calibration is None else Path(calibration).stem
    line = f"| {Path(sweep).stem} | {kind} | {ratios[0]} to {ratios[-1]} |"
    assert line in SCALING.read_text("utf-8"), line


def test_arms_that_calibrated_nothing_are_predicted() -> None:
    measured = read_sweep(RESULTS / f"{GPU}-float32.csv", "--check")
    shape = model_size(measured.shape, measured.dtype).shape
    known = tuple(one for one in measured.strides if one.arm in ("none", "prepend"))
    rates = type(measured)(**{**vars(measured), "strides": known}).rates(shape)
    assert all(arm.holds for arm in measured.checked(shape, rates))


SHAPE = Shape(
    layers=4,
    hidden=64,
    vocabulary=1000,
    layer_weights=200_000,
    attention_width=64,
    cache_width=32,
    bytes_per_value=2,
)
_RATE = st.floats(1.0, 1e6)


@given(_RATE, _RATE, _RATE, st.lists(st.tuples(_RATE, _RATE, _RATE), min_size=4, max_size=9))
def test_exact_seconds_are_explained_exactly(
    weights: float, cache: float, operations: float, work: list[tuple[float, float, float]]
) -> None:
    true = (weights, cache, operations)
    seconds = [sum(done / rate for done, rate in zip(row, true, strict=True)) for row in work]
    found = fit(work, seconds)
    rates = (found.weight_bytes, found.cache_bytes, found.operations)
    assert all(rate > 0 for rate in rates)
    again = [sum(done / rate for done, rate in zip(row, rates, strict=True)) for row in work]
    assert again == pytest.approx(seconds, rel=1e-3)


@given(st.integers(1, 300), st.integers(0, 3000), st.integers(1, 64))
def test_rows_share_the_weights_and_nothing_else(new: int, cached: int, rows: int) -> None:
    one, many = Pass(new, cached), Pass(new, cached, batch=rows)
    assert cache_bytes(SHAPE, many) == rows * cache_bytes(SHAPE, one)
    weights = pass_bytes(SHAPE, one) - cache_bytes(SHAPE, one)
    assert pass_bytes(SHAPE, many) - cache_bytes(SHAPE, many) == pytest.approx(weights)
    rates = Rates(1e9, 1e9, 1e12)
    assert rates.seconds(SHAPE, [one]) <= rates.seconds(SHAPE, [many])
    assert rates.times(2).seconds(SHAPE, [many]) == pytest.approx(rates.seconds(SHAPE, [many]) / 2)


def test_the_sizes_of_a_model_are_those_of_the_loaded_one() -> None:
    size = model_size("flashback-mini", "float32")
    model = load_reader("flashback-mini", device="cpu", dtype="float32").model
    assert size.shape == Shape.of(model)
    assert size.weight_bytes == sum(4 * one.numel() for one in model.parameters())


def test_more_users_take_more_devices_and_wider_caches_more_memory() -> None:
    few, many = (make_plan(PlanSettings(users=users)).patterns() for users in (100, 10_000))
    assert [one.pattern for one in few] == list(PATTERNS)
    for one, other in zip(few, many, strict=True):
        assert one.devices < other.devices
        assert one.dollars_per_million == other.dollars_per_million
        assert other.devices * one.users_per_copy >= 10_000
        assert one.user_tokens_per_second >= 10
    plain, prepend, append, slot = few
    assert plain.user_bytes < prepend.user_bytes == append.user_bytes == slot.user_bytes
    assert prepend.dollars_per_million > append.dollars_per_million > plain.dollars_per_million
    assert prepend.stride_seconds > slot.stride_seconds > plain.stride_seconds


def test_a_model_too_large_for_a_device_is_shared_by_several() -> None:
    settings = PlanSettings(model="llama-2-7b", gpu="cpu", dtype="float32", context=512)
    plan = make_plan(settings)
    assert plan.devices_per_copy == 4
    assert all(one.devices % 4 == 0 for one in plan.patterns())


def test_passages_that_stay_cost_as_much_as_none_when_prepended() -> None:
    stays = make_plan(PlanSettings(unchanged=1.0, patterns=("prepend",))).patterns()[0]
    plain = make_plan(PlanSettings(patterns=("none",))).patterns()[0]
    assert stays.stride_seconds == pytest.approx(plain.stride_seconds, rel=0.05)


def test_a_record_is_read_like_its_table(tmp_path: Path) -> None:
    table = read_sweep(RESULTS / f"{GPU}-float32.csv", "--check")
    rows = [
        {
            "length": one.context,
            "pattern": one.arm,
            "encode_seconds": one.boundary_seconds,
            "stride_seconds": one.stride_seconds,
        }
        for one in table.strides
    ]
    cold = {**rows[0], "length": 1}
    plain = {name: value for name, value in vars(table).items() if name != "strides"}
    record = plain | {"text": "random tokens", "rows": [cold, *rows]}
    record["settings"] = {"device": "auto", "stride": 16, "passage_tokens": 128}
    path = tmp_path / "sweep.json"
    path.write_text(json.dumps(record))
    assert read_sweep(path, "--check") == table


def test_the_command_prints_a_plan() -> None:
    asked = ("plan", "--model", "opt-125m", "--gpu", "cpu", "--dtype", "float32", "--context", 512)
    record = run(*map(str, asked), "--json", "--calibrate", RESULTS / QUIET).record
    assert [one["pattern"] for one in record["patterns"]] == list(PATTERNS)
    assert record["rates"]["weight_bytes"] == pytest.approx(21.4e9, rel=0.01)
    shown = run(*map(str, asked), "--pattern", "slot", "--price", "2").out
    assert "slot" in shown
    assert "2 $ per hour" in shown
    check = run("plan", "--gpu", "cpu", "--dtype", "float32", "--check", RESULTS / QUIET)
    assert "all within 25 %" in check.out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--gpu", "h900"], "'h900' is not one of"),
        (["--pattern", "middle"], "--pattern middle: expected one of"),
        (["--efficiency", "1,2"], "--efficiency 1,2: expected three shares above 0"),
        (["--context", "9999"], "--context 9999: needs 10143 positions"),
        (["--calibrate", "absent.csv"], "--calibrate absent.csv: No such file"),
        (["--calibrate", str(RESULTS / "slot.csv")], "without 'arms'; expected a record of"),
        (
            ["--check", str(RESULTS / f"{CPU}-text.csv")],
            "no sweep (text python-docs/accelerate.big_modeling, whose passages may stay",
        ),
        (["--calibrate", str(RESULTS / QUIET)], "--dtype bfloat16: the sweep to calibrate with"),
    ],
)
def test_what_cannot_be_planned_is_one_line(arguments: list[str], line: str) -> None:
    assert line in refused("plan", *arguments)


def test_other_models_and_devices_are_refused() -> None:
    with pytest.raises(ReaderError, match="found nothing there"):
        make_plan(PlanSettings(model="no/such/model/here"))
    with pytest.raises(SettingsError, match="do not fit into 64 of 8 GiB"):
        make_plan(PlanSettings(gpu="cpu", memory_share=0.01)).patterns()
    assert parse_efficiency("1,0.5,0.25").matrices == 0.25
    for device in DEVICES.values():
        assert set(device.efficiencies) == set(device.operations_per_second)
