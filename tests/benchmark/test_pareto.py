"""Perplexity against speed: what is on the front, and the command from documents to a figure."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from command_line import refused, run
from flashback.benchmark.pareto import Point, front, in_markdown
from flashback.evaluation.statistics import Interval
from small_corpora import FITS, Corpora, write_corpus

NUMBERS = st.floats(0.5, 100)


def point(perplexity: float, seconds: float, arm: str = "none", stride: int = 4) -> Point:
    return Point(arm, stride, 1, Interval(perplexity, perplexity, perplexity), seconds)


@given(st.lists(st.builds(point, NUMBERS, NUMBERS), min_size=1))
def test_the_front_is_what_nothing_beats_in_both(points: list[Point]) -> None:
    def beaten(one: Point) -> bool:
        return any(
            other.perplexity.value <= one.perplexity.value
            and other.seconds_per_token <= one.seconds_per_token
            and (other.perplexity.value, other.seconds_per_token)
            != (one.perplexity.value, one.seconds_per_token)
            for other in points
        )

    best = front(points)
    kept = {(one.perplexity.value, one.seconds_per_token) for one in best}
    assert len(kept) == len(best)
    assert kept == {
        (one.perplexity.value, one.seconds_per_token) for one in points if not beaten(one)
    }


def test_a_table_has_a_column_for_every_stride_and_marks_the_front() -> None:
    points = [
        point(9.0, 0.002, "append", 4),
        point(8.0, 0.001, "append", 8),
        point(7.0, 0.004, "slot", 4),
        point(7.5, 0.003, "slot", 8),
    ]
    assert list(in_markdown(points)) == [
        "| perplexity, ms per token | k | s = 4 | s = 8 |",
        "|---|--:|--:|--:|",
        "| append | 1 | 9.00, 2.0 | **8.00, 1.0** |",
        "| slot | 1 | **7.00, 4.0** | **7.50, 3.0** |",
    ]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Corpora:
    return Corpora(tmp_path_factory.mktemp("corpora"))


TIMING = ("--prompts", "1", "--prompt-tokens", "24", "--new-tokens", "8")


def call(model: Path, corpora: Corpora, out: Path, *more: str) -> tuple[str | Path, ...]:
    words = ("bench", "pareto", corpora.scored, "--model", model, "--index", corpora.index)
    return (
        *words,
        *FITS,
        *TIMING,
        "--passage-tokens",
        "20",
        "--sweep",
        "s=4,8",
        "--sweep",
        "k=1,2",
        "--out",
        out,
        *more,
    )


def test_every_pattern_has_a_point_for_every_stride_and_k(
    model_folder: Path, corpora: Corpora, tmp_path: Path
) -> None:
    out = tmp_path / "PARETO"
    record: Any = run(*call(model_folder, corpora, out, "--json")).record
    swept = {(4, 1), (4, 2), (8, 1), (8, 2)}
    arms: dict[str, set[tuple[int, int]]] = {}
    for one in record["points"]:
        arms.setdefault(one["arm"], set()).add((one["stride"], one["passages"]))
        assert one["seconds_per_token"] > 0
        assert one["perplexity"]["value"] > 1
    assert arms == dict.fromkeys(
        ["none", "prepend (text)", "append (text)", "append (text, echo)", "slot (text)"], swept
    )
    assert json.loads((out / "pareto.json").read_text()) == record
    assert "slot (text)" in (out / "pareto.md").read_text()
    assert (out / "pareto.png").read_bytes().startswith(b"\x89PNG")

    kept = sorted(path.stat().st_mtime_ns for path in (out / "scores").iterdir())
    again: Any = run(*call(model_folder, corpora, out, "--json")).record
    assert sorted(path.stat().st_mtime_ns for path in (out / "scores").iterdir()) == kept
    values = [[one["perplexity"] for one in found["points"]] for found in (record, again)]
    assert values[0] == values[1]


def test_what_has_no_place_in_the_table_is_not_swept(
    model_folder: Path, corpora: Corpora, tmp_path: Path
) -> None:
    message = refused(*call(model_folder, corpora, tmp_path / "PARETO", "--sweep", "m=8,16"))
    assert "expected s= and k= only" in message


def test_documents_shorter_than_a_prompt_are_refused(
    model_folder: Path, corpora: Corpora, tmp_path: Path
) -> None:
    few = write_corpus(tmp_path / "few.jsonl", 1)
    words = list(call(model_folder, corpora, tmp_path / "OUT"))
    words[2] = few
    words[words.index("24")] = "100000"
    assert "no window has the 100000 tokens of a prompt" in refused(*words, code=1)
