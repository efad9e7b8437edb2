"""scripts/soak.py: what it counts, and what it calls a failure."""

import asyncio
import os
from typing import Any

import pytest

import soak
from servers import MINUTES, chat_reader, serving
from soak import LENGTHS, Count, failures, kinds, report


def test_kinds_have_every_pattern_and_length() -> None:
    found = kinds("m")
    assert len(set(found)) == len(found)
    assert {kind.tokens for kind in found} == set(LENGTHS)
    assert {kind.pattern for kind in found} == {"none", "append", "prepend", "slot"}


def test_a_small_soak_finds_nothing_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "TOPICS", soak.TOPICS[:2])
    monkeypatch.setattr(soak, "LENGTHS", (4, 10, 24))
    with serving(chat_reader(window=1024)) as served:
        found = asyncio.run(
            soak.soak(served.url, os.getpid(), clients=6, seconds=MINUTES, requests=8)
        )
    wrong = failures(found)
    # Neither can be seen in a few requests.
    assert not set(wrong) - {"memory grew", "someone starved"}, found
    assert found["completed"] > 0
    assert found["different"] == 0
    assert found["dropped"] + found["garbage"] > 0
    strides = found["metrics"]
    assert sum(float(n) for name, n in strides.items() if "strides" in name) > found["completed"]


GOOD: dict[str, Any] = {
    "different": 0,
    "broken": [],
    "statuses": {"200": 9, "400": 1},
    "first_stride_seconds": {"median": 1.0},
}


@pytest.mark.parametrize(
    ("change", "claim"),
    [
        ({"different": 1}, "answers differ from the same requests alone"),
        ({"broken": ["a stream"]}, "requests failed"),
        ({"statuses": {"200": 9, "503": 1}}, "answers of status 5xx"),
        ({"slowest/median": 5.1}, "someone starved"),
        ({"memory_growth": 1.06}, "memory grew"),
        ({"completed": 0}, "nothing was completed"),
        ({"first_stride_seconds": {"median": 0.0}}, "nothing was streamed"),
    ],
)
def test_what_is_not_as_promised_is_a_failure(change: dict[str, Any], claim: str) -> None:
    good = GOOD | {"slowest/median": 2.0, "memory_growth": 1.0, "completed": 9}
    assert failures(good) == []
    assert failures(good | change) == [claim]


def test_a_soak_without_streams_is_reported() -> None:
    found = report(Count(completed=1), [10.0], "")
    assert failures(found) == ["nothing was streamed"]


def test_memory_is_compared_after_the_warm_up() -> None:
    count = Count(completed=1, first_stride=[1.0, 2.0, 4.0])
    found = report(count, [10.0] * 25 + [100.0] * 50 + [110.0] * 25, "flashback_x_total 3.0\n")
    assert found["memory_growth"] == pytest.approx(1.1)
    assert found["slowest/median"] == 2.0
    assert found["metrics"] == {"flashback_x_total": "3.0"}
