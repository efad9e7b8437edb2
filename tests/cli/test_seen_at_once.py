"""What is seen before PyTorch is imported, which takes seconds: here it cannot be imported."""

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import index_notes, write_notes
from flashback.cli.console import training_progress

SLOW = ("torch", "transformers")
ALSO_SLOW = ("numpy", "lxml", "markdown_it", "pyarrow")
"""Not for commands that read no file of theirs."""
WITHOUT = """
import sys

REFUSED = {refused}

class Refuses:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in REFUSED:
            raise ImportError(name + " is refused")

sys.meta_path.insert(0, Refuses())
from flashback.cli.main import main
main()
"""


def run_without_torch(
    *arguments: str | Path, also: tuple[str, ...] = ()
) -> "subprocess.CompletedProcess[str]":
    code = WITHOUT.format(refused=(*SLOW, *also))
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With an index, IDX, its texts, `notes`, and a file of questions."""
    folder = tmp_path_factory.mktemp("at-once")
    index_notes(folder)
    (folder / "q.jsonl").write_text('{"question": "What do tides follow?", "answer": "the moon"}\n')
    return folder


@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        ("--version",),
        *((name, "--help") for name in ("index", "search", "generate", "serve", "train", "bench")),
        ("search", "IDX", "moon"),
        ("index", "verify", "IDX"),
        ("index", "notes", "--out", "NEW", "--model", "none"),
    ],
)
def test_some_commands_do_without_torch(words: tuple[str, ...], folder: Path) -> None:
    paths = {"IDX": folder / "IDX", "notes": folder / "notes", "NEW": folder / "NEW"}
    also = () if "notes" in words else ALSO_SLOW
    found = run_without_torch(*(paths.get(word, word) for word in words), also=also)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout


@pytest.mark.parametrize(
    "words",
    [
        *((name, "--pattern", "none") for name in ("serve", "chat")),
        *((name, "--pattern", "none", "x") for name in ("generate", "ask")),
        ("generate", "--index", "IDX", "x"),
        ("train", "notes", "--index", "IDX", "--out", "A"),
        ("export", "--adapter", "A", "--out", "B"),
        ("eval", "notes", "--index", "IDX"),
        ("eval", "qa", "q.jsonl", "--index", "IDX"),
        ("reproduce", "--train", "notes", "--evaluate", "notes", "--index", "IDX", "--out", "A"),
        ("bench", "pareto", "notes", "--index", "IDX", "--out", "A"),
    ],
)
def test_what_loads_a_model_says_so_first(words: tuple[str, ...], folder: Path) -> None:
    names = ("IDX", "notes", "q.jsonl", "A", "B")
    found = run_without_torch(*(folder / word if word in names else word for word in words))
    assert found.returncode != 0
    assert found.stderr.startswith("loading flashback-mini\n")
    assert found.stdout == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("demo",), "loading a reader\n"),
        (("bench", "runtime"), "loading PyTorch\n"),
        (("index", "notes", "--out", "A"), "loading the tokenizer of flashback-mini\n"),
    ],
)
def test_what_loads_something_else_says_that(
    words: tuple[str, ...], said: str, folder: Path
) -> None:
    found = run_without_torch(
        *(folder / word if word in ("notes", "A") else word for word in words)
    )
    assert found.stderr.startswith(said)


def test_what_is_refused_at_once_loads_nothing(tmp_path: Path) -> None:
    notes = write_notes(tmp_path / "notes")
    for words in (("generate", "--stride", "0", "x"), ("train", notes, "--out", "A")):
        found = run_without_torch(*words)
        assert found.returncode == 2
        assert found.stderr.startswith("flashback: ")
        assert found.stderr.count("\n") == 1


def test_a_training_without_a_terminal_prints_its_losses(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from flashback.training.trainer import Progress

    with training_progress() as on_step:
        for step, loss in enumerate([math.nan, math.nan, 4.25, 4.25, 3.5], start=1):
            on_step(Progress(step, 5, 100 * step, loss))
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(
        r"training: step 1 of 5, [\d,]+ targets/s\n"
        r"training: step 3 of 5, loss 4\.250, [\d,]+ targets/s\n"
        r"training: step 5 of 5, loss 3\.500, [\d,]+ targets/s\n",
        err,
    )
