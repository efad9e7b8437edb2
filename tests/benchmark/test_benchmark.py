"""The run-time benchmark: what it measures and reports, at a tiny shape and in no fixed time."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from command_line import index_notes, refused, run, write_notes
from flashback.benchmark import plot as plot_module
from flashback.benchmark.arms import RuntimeArm, all_arms, arm_named
from flashback.benchmark.bench_settings import SHAPES, RuntimeSettings
from flashback.benchmark.calibration import calibrate
from flashback.benchmark.ceilings import Ceilings, bound_seconds, measure_ceilings
from flashback.benchmark.flops import Shape, pass_bytes, pass_operations
from flashback.benchmark.machine import device_name
from flashback.benchmark.material import random_material, real_material
from flashback.benchmark.plot import plot_runtime
from flashback.benchmark.results import RATIOS, Measured, Results
from flashback.benchmark.runtime import RealText, Runtime, chosen_arms, prepare
from flashback.benchmark.shapes import config_of, shaped_reader
from flashback.benchmark.sweep import grid, parse_lengths
from flashback.benchmark.timed import TimedPasses
from flashback.corpus.documents import Document
from flashback.errors import CorpusError, ReaderError, SettingsError
from flashback.patterns.append import Append
from flashback.patterns.cost import Pass
from flashback.patterns.registry import PATTERNS
from flashback.readers.load import MINI, window_of
from flashback.readers.placement import Placement
from flashback.retrieval.protocol import Hit, Retriever
from flashback.settings import RetrievalSettings, SearchOptions
from tiny_readers import MadeUpRetriever, byte_tokenizer, deaf_reader, tiny_reader

pytestmark = pytest.mark.usefixtures("small_ceilings")
ARMS = tuple(all_arms())
SMALL = RuntimeSettings(lengths="40:120", stride=8, passage_tokens=20)
CEILINGS = Ceilings(bytes_per_second=1e9, operations_per_second=1e9)
DOCUMENTS = [
    Document("short", "Short", "Too short."),
    Document("long", "Long", "The moon "),
    Document("long", "Long", "pulls the tides. " * 20),
]


def small_runtime(settings: RuntimeSettings = SMALL, *, family: str = "llama") -> Runtime:
    """Random tokens; nothing is calibrated."""
    reader = tiny_reader(family)
    lengths = parse_lengths(settings)
    material = random_material(reader, lengths[-1] + settings.stride, settings.passage_tokens)
    shape = Shape.of(reader.model)
    arms = tuple(all_arms().values())
    return Runtime(reader, settings, arms, lengths, material, shape, CEILINGS, CEILINGS)


def real_runtime(retriever: Retriever) -> Runtime:
    """The long document, with made-up passages that repeat and are sometimes none."""
    runtime = small_runtime()
    size = runtime.lengths[-1] + runtime.settings.stride
    return replace(runtime, material=real_material(runtime.reader, DOCUMENTS, retriever, size))


def measured(arm: str, length: int, seconds: float, *, unchanged: bool = False) -> Measured:
    half = seconds / 2
    return Measured(arm, length, half, half, half, half / 2, seconds, unchanged=unchanged)


@pytest.mark.parametrize("sampled", [False, True])
def test_every_arm_is_measured_at_every_length(sampled: bool) -> None:
    runtime = small_runtime(replace(SMALL, sampled=sampled, repeats=2))
    counted = []
    results = runtime.run(lambda: counted.append(1))
    later = grid(runtime.lengths[1:]) if sampled else list(runtime.lengths[1:])
    lengths = [runtime.lengths[0], *later]
    expected = [(n, arm) for n in lengths for arm in ARMS]
    assert [(row.length, row.arm) for row in results.rows] == expected
    assert len(counted) == runtime.steps == 2 * len(expected)
    assert all(row.prefill_seconds > 0 and row.decode_seconds > 0 for row in results.rows)


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("arm", ARMS)
def test_measured_strides_make_the_passes_that_the_cost_model_counts(arm: str, real: bool) -> None:
    runtime = real_runtime(MadeUpRetriever(longest=60, same=0.4)) if real else small_runtime()
    for number, written in enumerate(runtime.strides(arm_named(arm), 40, 7)):
        passes = list(arm_named(arm).context_pattern.passes(written.shape))
        stride = written.stride
        boundary = passes[: len(passes) - 7]  # 7 decoded tokens follow it
        assert written.shape.context == 40 + 8 * number
        assert written.shape.first == (number == 0)
        assert stride.usage.decoded == 7
        # A passage may begin like what stood there before.
        assert 0 <= sum(one.tokens for one in boundary) - stride.usage.prefilled <= 3
        assert len(stride.arranged) == boundary[-1].cached + boundary[-1].new


def test_a_pattern_that_is_registered_is_measured_and_set_against_none() -> None:
    PATTERNS.register("behind", Append())
    try:
        arms = (arm_named("none"), arm_named("behind"))
        runtime = replace(small_runtime(replace(SMALL, sampled=True)), arms=arms)
        results = runtime.run()
        report = runtime.report(results)
    finally:
        del PATTERNS["behind"]
    assert list(results.ratios()) == ["behind/none"]
    assert [row[0] for row in report.rows] == ["none", "behind"]
    assert report.notes[0].startswith("behind/none: ")


def test_all_arms_read_the_same_text_and_passages() -> None:
    runtime = real_runtime(Remembering(MadeUpRetriever(seed=3)))
    text = runtime.material.text
    found = set()
    for arm in ARMS:
        strides = [one.stride for one in runtime.strides(arm_named(arm), 40, 7)]
        assert tuple(token for one in strides for token in one.tokens) == text[40 : 40 + 7 * 8]
        if arm != "none":
            found.add(tuple(hit.text for one in strides for hit in one.passages))
    assert len(found) == 1


def test_real_text_is_the_first_long_document_and_never_finds_itself() -> None:
    reader = tiny_reader()
    retriever = MadeUpRetriever()
    material = real_material(reader, DOCUMENTS, retriever, 100)
    assert material.name == "long"
    assert reader.decode(material.text) == DOCUMENTS[1].text + DOCUMENTS[2].text[: 99 - 9]
    settings = material.forbidding(RetrievalSettings())
    assert settings.search_options == SearchOptions(1, 0.0, ("Long",), ("long",))
    with pytest.raises(CorpusError, match=r"no document is long enough: 5000 .* longest has 350"):
        real_material(reader, DOCUMENTS, retriever, 5000)


def test_an_index_that_finds_nothing_ends_the_test_after_one_repeat() -> None:
    runtime = real_runtime(MadeUpRetriever(empty=1))
    runtime = replace(runtime, settings=replace(SMALL, repeats=2))
    steps: list[int] = []
    with pytest.raises(CorpusError, match="no passage was found for any of 8 boundaries of long"):
        runtime.run(lambda: steps.append(1))
    assert 2 * len(steps) == runtime.steps


@pytest.mark.parametrize("name", ["prepend", "append", "slot", "slot_cached", "authors_prepend"])
def test_every_row_of_random_text_has_a_passage(name: str) -> None:
    runtime = replace(small_runtime(replace(SMALL, repeats=1)), arms=(arm_named(name),))
    half = replace(runtime.material, retriever=MadeUpRetriever(seed=3, empty=0.5))
    with pytest.raises(CorpusError, match=rf"no passage was found for \d of 8 .* by {name}"):
        replace(runtime, material=half).run()
    deaf = replace(runtime.material, retriever=Blank())
    with pytest.raises(CorpusError, match=rf"no passage was found for any of 8 .* by {name}"):
        replace(runtime, material=deaf).run()


class Blank:
    """Finds passages that have no token."""

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        return [[Hit("1", "1", "", "", 1.0)] for _ in queries]


def test_a_reader_without_tokens_for_random_words_is_refused() -> None:
    with pytest.raises(ReaderError, match="no tokens for a passage of random words"):
        random_material(deaf_reader("w0-9"), 100, 10)


def test_kept_passages_are_not_encoded_again() -> None:
    runtime = small_runtime()
    assert not any(one.cache_hit for one in runtime.strides(arm_named("slot"), 40, 4))
    assert all(one.cache_hit for one in runtime.strides(arm_named("slot_cached"), 40, 4))


def test_a_passage_that_comes_back_is_kept_while_there_is_room() -> None:
    runtime = real_runtime(Alternating())
    kept = [one.cache_hit for one in runtime.strides(arm_named("slot"), 40, 4)]
    assert kept == [False, False, True, True]
    nothing = replace(runtime, settings=replace(SMALL, passage_megabytes=0))
    assert not any(one.cache_hit for one in nothing.strides(arm_named("slot"), 40, 4))
    same = real_runtime(MadeUpRetriever(empty=0, same=1))
    assert [one.unchanged for one in same.strides(arm_named("slot"), 40, 3)] == [False, True, True]
    assert not any(one.cache_hit for one in same.strides(arm_named("slot"), 40, 3))


class Remembering:
    """Finds the same for the same query, as an index does."""

    def __init__(self, retriever: Retriever) -> None:
        self._retriever = retriever
        self._found: dict[str, list[Hit]] = {}

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        for query in queries:
            if query not in self._found:
                self._found[query] = self._retriever.search([query], options)[0]
        return [self._found[query] for query in queries]


class Alternating:
    """Two passages in turn."""

    def __init__(self) -> None:
        self._searches = 0

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        self._searches += 1
        return [[Hit("p", "d", "t", f"passage {self._searches % 2}", 1.0)] for _ in queries]


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
@pytest.mark.parametrize("arm", ["append", "slot"])
def test_rows_of_a_batch_are_what_each_would_be_alone(family: str, arm: str) -> None:
    runtime = small_runtime(replace(SMALL, batch_size=3), family=family)
    logits: dict[int, list[Tensor]] = {}
    for rows in (1, 3):
        one = replace(runtime, settings=replace(SMALL, batch_size=rows))
        logits[rows] = last_logits(one, arm)
    for alone, together in zip(logits[1], logits[3], strict=True):
        torch.testing.assert_close(alone, together, atol=1e-4, rtol=1e-4)


def last_logits(runtime: Runtime, arm: str) -> list[Tensor]:
    """Row 0's logits of every pass of two strides, of which the first tokens' boundary is one."""
    seen: list[Tensor] = []
    plain = TimedPasses.run

    def watched(passes: TimedPasses, *arguments: Any, **more: Any) -> Tensor:
        logits = plain(passes, *arguments, **more)
        seen.append(logits[0, -1].clone())
        return logits

    strides = runtime.strides(arm_named(arm), 40, 3)
    first = next(strides)  # the engine is ready now
    with patch.object(TimedPasses, "run", watched):
        list(strides)
    assert len(seen) == 2 * runtime.settings.stride == 2 * len(first.stride.tokens)
    return seen


def test_rows_of_a_batch_differ() -> None:
    runtime = small_runtime(replace(SMALL, batch_size=3))
    vars(runtime)["_step"] = None  # the model computes every token itself
    read: list[Tensor] = []
    plain = runtime.reader.model.forward

    def watched(**inputs: Any) -> Any:
        read.append(inputs["input_ids"])
        return plain(**inputs)

    watched.__signature__ = inspect.signature(plain)  # type: ignore[attr-defined]
    with patch.object(runtime.reader.model, "forward", watched):
        list(runtime.strides(arm_named("append"), 40, 2))
    assert len(read) == 16
    for ids in read:
        assert ids.shape[0] == 3
        assert all(len(set(column)) == 3 for column in ids.T.tolist())


def test_totals_are_the_first_stride_and_interpolated_later_ones() -> None:
    lengths = range(10, 51, 10)
    rows = [measured("append", n, float(n)) for n in (20, 50)]
    rows = [measured("append", 10, 100.0), *rows]
    doubled = [
        replace(row, prefill_seconds=2 * row.prefill_seconds + row.decode_seconds) for row in rows
    ]
    other = [replace(row, arm="prepend") for row in doubled]
    results = Results(lengths, ((*rows, *other),))
    assert results.seconds("append") == pytest.approx(100 + 20 + 30 + 40 + 50)
    assert results.ratios() == {"prepend/append": pytest.approx(2.0)}
    assert results.bound_share("append") == pytest.approx(0.5)
    assert results.decode_bound_share("append") == pytest.approx(0.5)
    assert results.prefill_seconds("append") == pytest.approx(120)
    assert results.predicted_share("append") == pytest.approx(1.0)
    assert results.predicted_share("prepend") == pytest.approx(0.5)
    assert results.growth("append") == pytest.approx(2.5)


def test_repeats_give_medians_and_spread() -> None:
    runs = tuple(
        tuple(measured("none", n, factor * n) for n in (10, 20, 30)) for factor in (1.0, 4.0, 2.0)
    )
    results = Results(range(10, 31, 10), runs)
    assert [row.stride_seconds for row in results.rows] == [20, 40, 60]
    assert [row.spread for row in results.rows] == [1.5] * 3
    assert results.spread("none") == pytest.approx(1.5)


def test_boundaries_with_an_unchanged_passage_are_no_growth() -> None:
    rows = [measured("append", 10, 9.0), measured("append", 20, 1.0, unchanged=True)]
    rows += [measured("append", 30, 2.0), measured("append", 40, 3.0)]
    results = Results(range(10, 41, 10), (tuple(rows),))
    assert results.growth("append") == pytest.approx(1.5)
    assert results.unchanged_share("append") == pytest.approx(1 / 3)


def test_calibration_gives_back_what_a_reader_reaches() -> None:
    """A model of known speed: its ceilings are found, so its passes are predicted."""
    reader = tiny_reader()
    shape = Shape.of(reader.model)
    clock = 0.0
    plain = TimedPasses.run

    def timed(passes: TimedPasses, ids: Tensor, *arguments: Any, **more: Any) -> Tensor:
        nonlocal clock
        clock += {64: 3.0, 1: 0.5}[ids.shape[1]]
        return plain(passes, ids, *arguments, **more)

    with patch.object(TimedPasses, "run", timed), patch("time.perf_counter", lambda: clock):
        found = calibrate(reader, shape, 64)
    assert pass_operations(shape, Pass(64, 0)) / found.operations_per_second == pytest.approx(3.0)
    assert pass_bytes(shape, Pass(1, 64)) / found.bytes_per_second == pytest.approx(0.5)


@pytest.mark.parametrize(("rate", "largest"), [(1e6, 64), (1e9, 256), (1e12, 1024)])
def test_a_slow_processor_multiplies_smaller_matrices(
    rate: float, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bfloat16 without instructions for it would take minutes."""
    monkeypatch.setattr("flashback.benchmark.ceilings._MATRICES", (64, 128, 256, 512, 1024))
    sizes: list[int] = []

    def seconds(work: Callable[[], object], _wait: object) -> tuple[float, None]:
        if not isinstance(work, partial):
            return 0.5, None  # reading memory
        sizes.append(len(work.args[-1]))
        return 2 * sizes[-1] ** 3 / rate, None

    placement = Placement(torch.device("cpu"), torch.float32, "")
    with patch("flashback.benchmark.ceilings.timed", seconds):
        found = measure_ceilings(placement)
    assert max(sizes) == largest
    assert found.operations_per_second == pytest.approx(rate)


def test_a_busy_moment_lowers_no_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = iter([Ceilings(1.0, 5.0), Ceilings(3.0, 2.0)])
    monkeypatch.setattr("flashback.benchmark.runtime.measure_ceilings", lambda _: next(measured))
    monkeypatch.setattr("flashback.benchmark.runtime.calibrate", lambda *_: CEILINGS)
    runtime = prepare(RuntimeSettings(MINI, lengths="512:768", arms=("none",), device="cpu"))
    assert runtime.ceilings == Ceilings(3.0, 5.0)


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
    assert parse_lengths(RuntimeSettings(), frame=1) == range(512, 880, 16)
    points = grid(range(512, 896, 16))
    assert (points[0], points[-1], len(points)) == (512, 880, 3)
    assert grid(range(528, 1920, 16)) == [528, 880, 1216, 1552, 1904]
    assert grid(range(512, 544, 16)) == [512, 528]
    assert grid(range(512, 528, 16)) == [512]


@pytest.mark.parametrize("arm", ["slot", "append"])
def test_the_last_stride_of_a_real_text_does_not_jump(
    arm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for measuring in ("measure_ceilings", "calibrate"):
        monkeypatch.setattr(f"flashback.benchmark.runtime.{measuring}", lambda *_: CEILINGS)
    text = Document("long", "Long", "The moon pulls the tides. " * 500)
    real = RealText([text], MadeUpRetriever(empty=0, longest=60))
    settings = RuntimeSettings(
        MINI, lengths="1932:2048", arms=(arm,), stride=8, passage_tokens=20, device="cpu"
    )
    runtime = prepare(settings, real)
    assert runtime.reader.window == 2048
    assert runtime.lengths[-1] == 2020
    written = runtime.later_stride(arm_named(arm), runtime.lengths[-1])
    assert len(written.stride.arranged) > runtime.lengths[-1]


@pytest.mark.parametrize("lengths", ["512", "a:b", "512:600", "1024:512", "0:512", "-5:10", ":"])
def test_lengths_of_no_use_are_refused(lengths: str) -> None:
    with pytest.raises(SettingsError, match=f"lengths={lengths!r}"):
        parse_lengths(RuntimeSettings(lengths=lengths))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"arms": ("sideways",)}, "pattern='sideways': expected one of none"),
        ({"shape": "gpt-17"}, "shape='gpt-17': expected a model's folder or one of gpt2"),
        ({"shape": MINI, "lengths": "512:4096", "device": "cpu"}, "needs .* positions"),
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
        "smollm2-135m": 8192,
        "llama-3.2-1b": 131072,
        "qwen3-0.6b": 40960,
    }
    assert window_of(config_of(name), byte_tokenizer())[0] == windows[name]


def test_a_folder_is_a_shape(model_folder: Path) -> None:
    assert shaped_reader(str(model_folder), device="cpu").window == 192


def test_the_figure_is_written_and_its_suffix_checked(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    rows = tuple(measured(arm, n, 0.1) for arm in ARMS for n in (10, 20, 30))
    results = Results(range(10, 31, 10), (rows,))
    plot_runtime(results, "title", tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SettingsError, match="plot="):
        plot_runtime(results, "title", tmp_path / "speed.nothing")


@pytest.mark.parametrize(
    ("arms", "base"),
    [(ARMS, "append (FlashBack)"), (("none", "slot_cached", "slot"), "no retrieval")],
)
def test_every_arm_is_set_against_append_or_the_first(
    arms: tuple[str, ...], base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    drawn: list[Any] = []
    monkeypatch.setattr(plot_module, "save_figure", lambda figure, *_, **__: drawn.append(figure))
    seconds = {arm: 0.1 * (at + 1) for at, arm in enumerate(arms)}
    rows = tuple(measured(arm, n, seconds[arm]) for arm in arms for n in (10, 20, 30))
    plot_runtime(Results(range(10, 31, 10), (rows,)), "title", tmp_path / "speed.png")
    speedup = drawn[0].axes[1]
    assert speedup.get_ylabel() == f"times the seconds of {base}"
    below = seconds["append"] if "append" in arms else seconds[arms[0]]
    found = [line.get_ydata()[0] for line in speedup.lines if line.get_linestyle() == "-"]
    assert found == pytest.approx([seconds[arm] / below for arm in arms])


def test_the_command_prints_json(model_folder: Path) -> None:
    arguments = ("--lengths", "40:100", "--stride", "8", "--passage-tokens", "20", "--json")
    record = run("bench", "runtime", "--shape", model_folder, *arguments).record
    assert (record["device"], record["dtype"], record["batch"]) == ("cpu", "float32", 1)
    assert record["device_name"] == device_name(torch.device("cpu"))
    assert torch.backends.cpu.get_cpu_capability() in record["device_name"]
    assert set(record["ratios"]) == {f"{above}/{below}" for above, below in RATIOS}
    for name, ratio in record["ratios"].items():
        above, below = name.split("/")
        assert ratio == pytest.approx(record["seconds"][above] / record["seconds"][below])
    keys = {"pattern", "length", "stride_seconds", "encode_seconds", "decode_seconds"}
    assert set(record["rows"][0]) > keys | {"bound_share", "predicted_seconds", "spread"}
    assert record["boundary_growth"].keys() == {"from", "to", *ARMS}
    assert record["calibrated"].keys() == record["ceilings"].keys()
    assert "retrieval" not in record


def test_real_text_and_its_passages_are_measured(model_folder: Path, tmp_path: Path) -> None:
    """A live index: what it costs is apart, and what stays the same is counted."""
    index = index_notes(tmp_path)
    (tmp_path / "sea.txt").write_text("The moon pulls the water of the ocean. " * 5, "utf-8")
    arguments = (
        *("--shape", model_folder, "--lengths", "40:100", "--stride", "8", "--threads", "1"),
        *("--passage-tokens", "20", "--index", index, "--text", tmp_path / "sea.txt"),
    )
    record = run("bench", "runtime", *arguments, "--json").record
    assert (record["text"], record["threads"]) == (str(tmp_path / "sea.txt"), 1)
    rows = [row for row in record["rows"] if row["pattern"] == "append"]
    assert all(row["retrieve_seconds"] > 0 for row in rows)
    found = record["retrieval"]
    assert 0 < found["p50_seconds"] <= found["p95_seconds"]
    unchanged = sum(row["passage_unchanged"] for row in rows)
    assert unchanged > 0  # the text repeats itself
    assert found["unchanged_share"] == pytest.approx(unchanged / (len(rows) - 1))
    counts = record["passage_cache"]
    assert counts["slot"]["encoded"] == 1
    assert counts["slot_cached"]["encoded"] == 0
    assert all(sum(count.values()) == len(rows) for count in counts.values())
    out = run("bench", "runtime", *arguments, "--pattern", "slot", "--pattern", "none").out
    assert "not counted above; passages of 20 tokens" in out
    assert "slot/none:" in out


def test_lengths_and_threads_beyond_all_machines_are_refused() -> None:
    long = f"512:{10**24}"
    assert f"--lengths {long}: expected FIRST:LAST" in refused(
        "bench", "runtime", "--lengths", long
    )
    assert "--threads" in refused("bench", "runtime", "--threads", "100000")


@pytest.mark.filterwarnings("default::flashback.errors.FlashBackWarning")
@pytest.mark.parametrize("old", ["pytorch", "numba"])
def test_the_old_name_of_weights_is_deprecated(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[RuntimeSettings] = []

    def remember(settings: RuntimeSettings, _real: object) -> Runtime:
        asked.append(settings)
        raise SettingsError("enough")

    monkeypatch.setattr("flashback.benchmark.runtime.prepare", remember)
    new = "numba" if old == "numba" else "full"
    err = run("bench", "runtime", "--decode-kernel", old, code=2).err
    assert f"--decode-kernel is deprecated; use --weights {new}" in err
    assert asked[0].weights == new


def test_an_arm_that_is_named_twice_is_measured_once() -> None:
    reader = tiny_reader()
    for arms in (("append", "none", "append"), ("append", "none")):
        chosen = chosen_arms(RuntimeSettings(arms=arms), reader)
        assert chosen == (RuntimeArm("append"), RuntimeArm("none"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--text", "x.txt"), "give --index, too"),
        (("--index", "IDX", "--sampled"), "leave out --sampled"),
        (("--index", "nowhere"), "nowhere"),
    ],
)
def test_real_text_that_cannot_be_measured_is_refused(
    arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    index = index_notes(tmp_path)
    named = [str(index) if word == "IDX" else word for word in arguments]
    outcome = refused("bench", "runtime", *named, code=1 if "nowhere" in arguments else 2)
    assert message in outcome


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
