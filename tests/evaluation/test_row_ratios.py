"""The script that compares two rows of a table."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flashback.evaluation.statistics import Bootstrap

SCRIPT = Path(__file__).parents[2] / "scripts" / "row_ratios.py"


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "documents.jsonl"
    documents = [
        {"tokens": 10, "nats": {"none": 20.0, "slot": 15.0}},
        {"tokens": 30, "nats": {"none": 50.0, "slot": 45.0}},
    ]
    path.write_text("\n".join(map(json.dumps, documents)), "utf-8")
    return path


def test_the_ratio_is_that_of_the_bootstrap(table: Path) -> None:
    import numpy as np

    row, base, tokens = (np.array(one) for one in ([15.0, 45.0], [20.0, 50.0], [10.0, 30.0]))
    found = Bootstrap(2).ratio(row, base, tokens)
    assert found.value == pytest.approx(np.exp(-10 / 40))
    expected = f"slot / none: {found.value:.4f} ({found.low:.4f} to {found.high:.4f})\n"
    assert run(table, "slot", "none").stdout == expected


def test_what_cannot_be_compared_gets_one_line(table: Path) -> None:
    broken = table.with_name("broken.jsonl")
    broken.write_text("no table\n", "utf-8")
    for words, code, said in (
        ((table, "slot"), 2, "usage: row_ratios.py FILE ROW BASE"),
        ((table, "slot", "prepend"), 1, "no row 'prepend'; expected one of none, slot"),
        ((table.with_name("gone"), "slot", "none"), 1, "No such file"),
        ((broken, "slot", "none"), 1, "expected a line of JSON for each document"),
    ):
        done = run(*words)
        assert (done.returncode, done.stderr.count("\n")) == (code, 1)
        assert said in done.stderr
