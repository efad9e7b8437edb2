"""The examples run, and say what they promise."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples"
SAYS = {
    "own_corpus": "tides.txt: ",
    "custom_retriever": "['snow']",
    "langchain_retriever": "passages: ['Bees']",
    "server_client": "moon",
    "train_and_export": "losses: [",
    "evaluate": "perplexity",
}
"""Part of what each prints."""
NEEDS = {
    "langchain_retriever": "langchain_core",
    "server_client": "openai",
    "train_and_export": "accelerate",
}


def test_every_example_is_known() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == set(SAYS)


@pytest.mark.parametrize("name", SAYS)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    if name in NEEDS and find_spec(NEEDS[name]) is None:
        pytest.skip(f"needs {NEEDS[name]}")
    found = subprocess.run(
        [sys.executable, FOLDER / f"{name}.py"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    assert SAYS[name] in found.stdout
    assert not list(tmp_path.iterdir())  # it cleans up
    lines = (FOLDER / f"{name}.py").read_text("utf-8").splitlines()
    assert 20 <= len(lines) <= 50
