"""The run-time benchmark: what it measures and reports, at a tiny shape and in no fixed time."""

from pathlib import Path

import pytest

from command_line import refused, run, write_notes
from flashback.benchmark.ceilings import Ceilings, bound_seconds
from flashback.benchmark.flops import Pass, Shape, stride_passes
from flashback.benchmark.plot import plot_runtime
from flashback.benchmark.runtime import (
    Measured,
    Runtime,
    grid,
    parse_lengths,
    prepare,
    ratios,
    total_seconds,
)
from flashback.benchmark.settings import ARMS, RuntimeSettings
from flashback.benchmark.shapes import SHAPES, shaped_reader
from flashback.errors import SettingsError
from flashback.generation import Stride
from flashback.reader import window_of
from flashback.settings import Pattern
from readers import byte_tokenizer, tiny_reader

SMALL = RuntimeSettings(lengths="40:120", stride=8, passage_tokens=20)
CEILINGS = Ceilings(bytes_per_second=1e9, operations_per_second=1e9)


def small_runtime(settings: RuntimeSettings = SMALL) -> Runtime:
    reader = tiny_reader()
    return Runtime(reader, settings, parse_lengths(settings), Shape.of(reader.model), CEILINGS)


@pytest.mark.parametrize("sampled", [False, True])
def test_every_arm_is_measured_at_every_length(sampled: bool) -> None:
    runtime = small_runtime(
        RuntimeSettings(lengths="40:120", stride=8, passage_tokens=20, sampled=sampled, repeats=2)
    )
    counted = []
    rows = runtime.run(lambda: counted.append(1))
    lengths = grid(runtime.lengths) if sampled else list(runtime.lengths)
    assert [(row.length, row.arm) for row in rows] == [(n, arm) for n in lengths for arm in ARMS]
    assert len(counted) == runtime.strides_to_measure == 2 * len(rows)
    assert all(row.encode_seconds > 0 and row.decode_seconds > 0 for row in rows)


@pytest.mark.parametrize("arm", ARMS)
def test_measured_strides_make_the_passes_that_the_cost_model_counts(arm: str) -> None:
    runtime = small_runtime()
    strides: list[Stride] = list(runtime.strides(arm, 40, 3))
    pattern = Pattern(arm.removeprefix("authors_"))
    for number, stride in enumerate(strides[1:], 1):
        passes = list(stride_passes(pattern, 40 + 8 * number, 8, 20))
        boundary = passes[: len(passes) - 7]  # 7 decoded tokens follow it
        assert stride.usage.decoded == 7
        # A random passage may share its first token with what stood there before.
        assert 0 <= sum(one.new for one in boundary) - stride.usage.encoded <= 2
        assert len(stride.arranged) == boundary[-1].cached + boundary[-1].new


def test_totals_are_interpolated_sums() -> None:
    rows = [Measured("append", n, 0.5 * n, 0.5 * n, 1.0) for n in (10, 30)]
    assert total_seconds(rows, "append", range(10, 31, 10)) == pytest.approx(10 + 20 + 30)
    rows += [Measured("prepend", n, 2.0 * n, 0.0, 1.0) for n in (10, 30)]
    assert ratios(rows, range(10, 31, 10)) == {"prepend/append": pytest.approx(2.0)}


def test_the_bound_is_the_ceiling_that_is_met_first() -> None:
    shape = Shape.of(tiny_reader().model)
    decode, prefill = Pass(1, 50), Pass(1000, 0)
    slow_memory = Ceilings(1.0, 1e30)
    slow_matrices = Ceilings(1e30, 1.0)
    for one in (decode, prefill):
        both = bound_seconds(shape, one, Ceilings(1.0, 1.0))
        parts = [bound_seconds(shape, one, c) for c in (slow_memory, slow_matrices)]
        assert both == max(parts)


def test_lengths_end_where_a_passage_still_fits() -> None:
    assert parse_lengths(RuntimeSettings()) == range(512, 896, 16)
    points = grid(range(512, 896, 16))
    assert (points[0], points[-1], len(points)) == (512, 880, 5)


@pytest.mark.parametrize("lengths", ["512", "a:b", "512:600", "1024:512", "0:512", "-5:10", ":"])
def test_lengths_of_no_use_are_refused(lengths: str) -> None:
    with pytest.raises(SettingsError, match=f"--lengths {lengths}"):
        parse_lengths(RuntimeSettings(lengths=lengths))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"arms": ("sideways",)}, "--pattern sideways: expected one of none"),
        ({"shape": "gpt-17"}, "--shape gpt-17: expected a model's folder or one of gpt2"),
        ({"shape": "gpt2", "lengths": "512:4096", "device": "cpu"}, "needs .* positions"),
    ],
)
def test_what_cannot_be_measured_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        prepare(RuntimeSettings(**settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_have_the_windows_of_their_models(name: str) -> None:
    windows = {
        "gpt2": 1024,
        "gpt2-6x512": 1024,
        "opt-125m": 2048,
        "opt-1.3b": 2048,
        "opt-6.7b": 2048,
        "llama-2-7b": 4096,
        "llama-2-7b-16k": 16896,
        "qwen3-0.6b": 40960,
    }
    assert window_of(SHAPES[name](), byte_tokenizer())[0] == windows[name]


def test_a_folder_is_a_shape(model_folder: Path) -> None:
    assert shaped_reader(str(model_folder), device="cpu").window == 192


def test_the_figure_is_written_and_its_suffix_checked(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    rows = [Measured(arm, n, 0.1, 0.2, 0.05) for arm in ARMS for n in (10, 20)]
    plot_runtime(rows, "title", tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SettingsError, match="--plot"):
        plot_runtime(rows, "title", tmp_path / "speed.nothing")


def test_the_command_prints_json(model_folder: Path) -> None:
    arguments = ("--lengths", "40:100", "--stride", "8", "--passage-tokens", "20", "--json")
    record = run("bench", "runtime", "--shape", model_folder, *arguments).record
    assert (record["device"], record["dtype"], record["batch"]) == ("cpu", "float32", 1)
    pairs = {"prepend/append", "append/none", "authors_prepend/append", "slot/none", "prepend/slot"}
    assert set(record["ratios"]) == pairs
    keys = {"pattern", "length", "stride_seconds", "encode_seconds", "decode_seconds"}
    assert set(record["rows"][0]) == keys | {"bound_share"}


def test_retrieval_is_measured_on_the_given_corpus(tmp_path: Path) -> None:
    notes = write_notes(tmp_path / "notes")
    record = run("bench", "retrieval", notes, "--queries", "10", "--json").record
    assert record["passages"] == 4
    assert [latency["k"] for latency in record["latencies"]] == [1, 10]
    assert all(0 < latency["p50"] <= latency["p95"] for latency in record["latencies"])
    assert "4 passages in" in run("bench", "retrieval", notes, "--queries", "10").out


def test_a_corpus_that_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("One passage.")
    assert "one passage" in refused("bench", "retrieval", tmp_path / "one.txt", code=1)
    assert "read twice" in refused("bench", "retrieval", "-", code=1)


def test_a_figure_that_cannot_be_written_is_refused_before_measuring(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    assert "--plot" in refused("bench", "runtime", "--plot", tmp_path / "x.nothing", code=2)
    assert "no such folder" in refused("bench", "runtime", "--plot", "nowhere/x.png", code=2)
