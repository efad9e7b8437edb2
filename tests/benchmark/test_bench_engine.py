"""`flashback bench engine`: its arms, what it counts, its command."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from command_line import refused, run
from flashback.benchmark.bench_settings import EngineBenchSettings
from flashback.benchmark.engine import (
    RATIOS,
    ArmPasses,
    EngineArm,
    EngineSeries,
    MeasuredStride,
    arms_on,
    prepare,
)
from flashback.benchmark.harness import Comparison
from flashback.engines.kernels.linear import LaidOutLinear, is_quantized
from flashback.readers.weight_settings import Weights

ARMS = ["dynamic float32", "ours float32", "dynamic bfloat16", "ours bfloat16", "ours int8"]


def small(model: Path) -> EngineBenchSettings:
    return EngineBenchSettings(
        shape=str(model), lengths="20:60", stride=5, passage_tokens=12, repeats=2, device="cpu"
    )


def test_arms_differ_in_cache_layers_and_dtype(model_folder: Path) -> None:
    machine = prepare(small(model_folder))
    assert [str(arm) for arm in machine.readers] == ARMS
    for arm, reader in machine.readers.items():
        kinds = {type(layer) for layer in reader.model.modules()}
        can_pack = arm.dtype == "float32" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
        assert (LaidOutLinear in kinds) == (arm.engine == "ours" and can_pack)
        assert is_quantized(reader.model) == (arm.weights is Weights.INT8)
        assert reader.placement.dtype_name == arm.dtype
        cache = ArmPasses(reader, dynamic=arm.dynamic).new_sequence().cache
        assert isinstance(cache, DynamicCache)
        assert (type(cache.layers[0]).__name__ == "DynamicLayer") == arm.dynamic


def test_every_arm_writes_every_stride_and_the_model_takes_a_part_of_it(model_folder: Path) -> None:
    machine = prepare(small(model_folder))
    strides: list[int] = []
    results = machine.run(lambda: strides.append(1))
    assert len(strides) == machine.steps == 2 * 6 * len(ARMS)
    assert [row.arm for row in results.rows] == ARMS
    assert all(row.amount == 6 * 5 and 0 < row.other_share < 1 for row in results.rows)
    for arm in machine.readers:
        rows = list(machine.strides(arm, machine.lengths))
        assert len(rows) == len(machine.lengths)
        assert all(0 < row.model_seconds < row.seconds for row in rows)


def test_ratios_and_shares_are_of_all_strides() -> None:
    def rows(*seconds: float) -> list[MeasuredStride]:
        return [MeasuredStride(value, value / 2) for value in seconds]

    ours = EngineSeries.of("ours float32", 5, [rows(1, 2)] * 2)
    results = Comparison((EngineSeries.of("dynamic float32", 5, [rows(2, 4)] * 2), ours), RATIOS)
    assert ours.per_second == pytest.approx(10 / 3)
    assert ours.other_share == pytest.approx(0.5)
    assert ours.spread == 0
    assert results.ratios == {"ours float32/dynamic float32": pytest.approx(2)}


def test_the_command_prints_figures(model_folder: Path) -> None:
    words = ("bench", "engine", "--shape", model_folder, "--lengths", "20:60", "--stride", "5")
    more = ("--passage-tokens", "12", "--repeats", "1", "--device", "cpu")
    record = run(*words, *more, "--json").record
    assert [row["arm"] for row in record["rows"]] == ARMS
    assert all(0 < row["other_share"] < 1 for row in record["rows"])
    assert "ours int8/ours float32" in record["ratios"]
    assert "ours float32/dynamic float32: " in run(*words, *more).out


def test_what_it_cannot_measure_is_refused(model_folder: Path) -> None:
    call = ("bench", "engine", "--shape", model_folder)
    assert "transformers' cache has none" in refused(*call, "--pattern", "slot")
    assert "--lengths 9999:99999: needs" in refused(*call, "--lengths", "9999:99999")


def test_some_precisions_may_be_measured_alone(model_folder: Path) -> None:
    few = replace(small(model_folder), precisions=("int8",))
    assert [str(arm) for arm in arms_on(few)] == ["dynamic float32", "ours int8"]
    message = refused("bench", "engine", "--shape", model_folder, "--precision", "int4")
    assert "--precision int4: expected one of float32, bfloat16, int8" in message


def test_the_bound_is_what_memory_gave_meanwhile() -> None:
    strides = [MeasuredStride(2, 1, 0.8, 0.2), MeasuredStride(3, 1, 1.2, 0.8)]
    series = EngineSeries.of("ours float32", 5, [strides])
    assert series.bound_share == pytest.approx(0.5)
    assert series.step_seconds == pytest.approx(0.25)


def test_an_arm_has_a_name() -> None:
    assert str(EngineArm("ours", "int8")) == "ours int8"
    assert EngineArm("ours", "int8").dtype == "float32"
