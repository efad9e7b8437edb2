"""What all benchmarks share: turns, times, ratios, reports."""

import json
from collections.abc import Iterator
from functools import partial

import pytest

from flashback.benchmark.arms import RuntimeArm, all_arms, arm_named
from flashback.benchmark.bench_settings import RuntimeSettings
from flashback.benchmark.harness import (
    Comparison,
    Series,
    by_arm,
    ratio_ranges,
    ratios,
    spread,
    take_turns,
    timed,
)
from flashback.benchmark.report import Report, ratio_lines
from flashback.cli.bench_options import print_report
from flashback.errors import SettingsError
from flashback.patterns.append import Append
from flashback.patterns.registry import PATTERNS
from flashback.patterns.slot import Slot

PAIRS = (("fast", "slow"), ("fast", "absent"))


def test_all_arms_do_a_turn_before_any_does_the_next() -> None:
    done: list[str] = []
    turns = take_turns("ab", [1, 2], lambda arm, turn: f"{arm}{turn}", lambda: done.append("step"))
    measured = []
    for arm, one in turns:
        done.append(one)
        measured.append((arm, one))
    assert done == ["a1", "step", "b1", "step", "a2", "step", "b2", "step"]
    assert by_arm(measured) == {"a": ["a1", "a2"], "b": ["b1", "b2"]}


def test_work_is_timed_between_two_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0

    def wait(seconds: float) -> None:
        nonlocal clock
        clock += seconds

    monkeypatch.setattr("time.perf_counter", lambda: clock)
    seconds, _ = timed(partial(wait, 2.0), partial(wait, 10.0))
    assert seconds == 12.0  # the wait before does not count


def test_ratios_are_of_pairs_that_were_both_measured() -> None:
    assert ratios(PAIRS, {"fast": 6.0, "slow": 2.0}) == {"fast/slow": 3.0}
    runs = [{"fast": 6.0, "slow": 2.0}, {"fast": 4.0, "slow": 4.0}]
    assert ratio_ranges(PAIRS, runs) == {"fast/slow": (1.0, 3.0)}
    assert spread([1.0, 2.0, 4.0]) == 1.5
    assert spread([1.0, 2.0, 4.0], middle=3.0) == 1.0


def test_a_comparison_reports_rows_ratios_and_their_ranges() -> None:
    rows = (Series("fast", 12, (1.0, 2.0, 3.0)), Series("slow", 12, (4.0, 4.0, 4.0)))
    report = Comparison(rows, PAIRS).report("title", {"shape": "opt"})
    assert report.headings == ("arm", "tokens/s", "seconds", "spread")
    assert report.rows == (("fast", "6.0", "2.00", "100%"), ("slow", "3.0", "4.00", "0%"))
    assert report.notes == ("fast/slow: 2.00 (1.33 to 4.00)",)
    assert report.record["shape"] == "opt"
    assert report.record["ratios"] == {"fast/slow": 2.0}
    assert report.record["rows"][0] == {
        "arm": "fast",
        "tokens": 12,
        "runs": (1.0, 2.0, 3.0),
        "seconds": 2.0,
        "tokens_per_second": 6.0,
        "spread": 1.0,
    }


def test_a_ratio_without_a_range_is_a_number() -> None:
    assert list(ratio_lines({"a/b": 2.0}, {"a/b": (2.0, 2.0)})) == ["a/b: 2.00"]


def test_a_report_is_a_table_with_notes_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report({"x": 1}, "title", ("arm", "seconds"), (("fast", "2.00"),), ("a note",))
    print_report(report, as_json=False)
    out = capsys.readouterr().out
    assert all(text in out for text in ("title", "arm", "fast", "2.00", "a note"))
    print_report(report, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"x": 1}
    print_report(Report({}, notes=("a note alone",)), as_json=False)
    assert capsys.readouterr().out == "a note alone\n"


def test_arms_are_named_as_on_the_command_line() -> None:
    assert list(all_arms()) == [
        "none",
        "prepend",
        "append",
        "slot_cached",
        "slot",
        "authors_prepend",
    ]
    for name, arm in all_arms().items():
        assert str(arm) == name
        assert arm_named(name) == arm
    assert arm_named("slot_cached") == RuntimeArm("slot", cached=True)
    assert arm_named("authors_prepend").title == "prepend, logits everywhere"
    with pytest.raises(SettingsError, match="pattern='sideways': expected one of none"):
        arm_named("sideways")


@pytest.fixture
def registered() -> Iterator[None]:
    """Two more patterns for one test."""
    PATTERNS.register("behind", Append())
    PATTERNS.register("apart", Slot())
    yield
    del PATTERNS["behind"]
    del PATTERNS["apart"]


@pytest.mark.usefixtures("registered")
def test_a_pattern_that_is_registered_is_an_arm() -> None:
    assert {"behind", "apart", "apart_cached"} <= set(all_arms())
    assert RuntimeSettings(arms=("behind", "apart_cached")).arms == ("behind", "apart_cached")
