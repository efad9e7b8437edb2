"""The simulation of replicas: the same conversations, whatever the route, and no turn lost."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from command_line import refused, run
from flashback.benchmark.replicas import (
    Outcome,
    Simulation,
    conversations,
    routes,
    simulate,
)
from flashback.benchmark.replicas_report import replicas_report, reused_share
from flashback.benchmark.replicas_settings import ReplicasSettings

SMALL: dict[str, Any] = {"replicas": 4, "conversations": 60, "arrivals": 2.0}


def outcome(route: str = "affinity", **values: Any) -> Outcome:
    return Simulation(ReplicasSettings(**SMALL | values), route).run()


@limits(max_examples=15, deadline=None)
@given(
    st.sampled_from(sorted(routes(ReplicasSettings()))),
    st.integers(0, 100),
    st.integers(0, 20_000),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([0.0, 0.5]),
)
def test_every_turn_gets_its_first_token(
    route: str, seed: int, room: int, dies: float, hot: float
) -> None:
    asked: dict[str, Any] = {"seed": seed, "cache_tokens": room, "dies": dies, "hot": hot}
    found = outcome(route, **asked)
    drawn = list(conversations(ReplicasSettings(**SMALL | asked)))
    turns = sum(len(one.turns) for one in drawn)
    # An answer that broke off had its first token before, too.
    assert len(found.served) == turns + found.broken
    assert all(0 <= turn.reused <= turn.history for turn in found.served)
    assert all(turn.waited > 0 for turn in found.served)
    if not dies:
        assert (found.moved, found.broken) == (0, 0)
        prefilled = sum(turn.history - turn.reused for turn in found.served)
        questions = sum(turn.question for one in drawn for turn in one.turns)
        seconds = (prefilled + questions) / ReplicasSettings().prefill_rate
        assert sum(found.work.values()) == pytest.approx(seconds)


def test_with_room_for_all_affinity_caches_all() -> None:
    found = outcome("affinity, no bound", cache_tokens=10**9, dies=0.0)
    assert reused_share(found.served) == 1.0
    assert reused_share(outcome(cache_tokens=0).served) == 0.0


def test_affinity_keeps_what_other_routes_lose() -> None:
    affinity, free, least, turns = simulate(ReplicasSettings(**SMALL, cache_tokens=15_000))
    shares = [reused_share(one.served) or 0.0 for one in (affinity, free, least, turns)]
    assert min(shares[:2]) > 2 * max(shares[2:])


def test_the_bound_keeps_hot_conversations_from_filling_one_replica() -> None:
    values: dict[str, Any] = {"hot": 0.8, "dies": 0.0, "prefill_rate": 2000.0}
    bounded, free = outcome(**values), outcome("affinity, no bound", **values)
    shares = [max(one.work.values()) / sum(one.work.values()) for one in (bounded, free)]
    assert shares[0] < 0.7 < 0.9 < shares[1]


def test_a_death_costs_what_was_cached_and_no_turn() -> None:
    calm, struck = outcome(dies=0.0), outcome(dies=0.5)
    assert struck.broken > 0
    assert (reused_share(struck.served) or 0) < (reused_share(calm.served) or 0)


def test_the_command_is_the_same_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    words = ("--replicas", "3", "--conversations", "40", "--arrivals", "2")
    figure = tmp_path / "replicas.png"
    record = run("bench", "replicas", *words, "--json", "--plot", figure).record
    assert record == run("bench", "replicas", *words, "--json").record
    assert figure.stat().st_size > 1000
    assert [one["route"] for one in record["routes"]] == list(routes(ReplicasSettings()))
    shown = run("bench", "replicas", *words, "--dies", "0").out
    assert "affinity" in shown
    assert "dies" not in shown
    outcomes = simulate(ReplicasSettings(**SMALL))
    report = replicas_report(ReplicasSettings(**SMALL), outcomes)
    assert all(len(row) == len(report.headings) for row in report.rows)


def test_a_replica_that_dies_needs_another() -> None:
    assert "--replicas 1: none is left while one is dead" in refused(
        "bench", "replicas", "--replicas", "1"
    )
