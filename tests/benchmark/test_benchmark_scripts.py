"""The benchmark scripts as a whole, at a tiny shape: what they write, and what a failure loses."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from command_line import index_notes, refused, run

ROOT = Path(__file__).parents[2]
TINY = "--stride 8 --passage-tokens 20 --threads 1"
PYTHON = """#!{python}
# Answers measurements at once and keeps how they were asked for; those of gpt-17 fail.
import json, os, sys

words = sys.argv[1:]
if words[:3] != ["-m", "flashback", "bench"]:
    os.execv({python!r}, [{python!r}, *words])
with open({calls!r}, "a") as file:
    print(json.dumps(words[2:]), file=file)
if "gpt-17" in words:
    print("half of a rec")
    sys.exit("flashback: no such shape")
with open(words[words.index("--plot") + 1], "w") as figure:
    figure.write("drawn")
print({record!r})
"""
"""An interpreter for the scripts: what it was asked is then run in this process."""


def run_script(
    name: str, out: Path, code: int, **variables: str | Path
) -> "subprocess.CompletedProcess[str]":
    """Run a script with these variables; it must end with this exit code."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    environment = {name: str(value) for name, value in variables.items()}
    usual = {"PYTHON": sys.executable, "LENGTHS": "40:100", "OPTIONS": TINY}
    ended = subprocess.run(
        [ROOT / "scripts" / name, out],
        env=os.environ | usual | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    logs = "".join(path.read_text("utf-8") for path in out.glob("*.log"))
    assert ended.returncode == code, ended.stdout + ended.stderr + logs
    return ended


class Answering:
    """An interpreter that measures nothing, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "python"
        self._calls = folder / "calls"
        record = json.dumps(made_up_record(10.0))
        text = PYTHON.format(python=sys.executable, calls=str(self._calls), record=record)
        self.path.write_text(text, "utf-8")
        self.path.chmod(0o755)

    @property
    def calls(self) -> list[list[str]]:
        """The words of each measurement."""
        return [json.loads(line) for line in self._calls.read_text("utf-8").splitlines()]


@pytest.fixture
def python(tmp_path_factory: pytest.TempPathFactory) -> Answering:
    return Answering(tmp_path_factory.mktemp("bin"))


TESTS = """
import pytest

@pytest.mark.gpu
def test_on_a_gpu():
    pass

def test_elsewhere():
    pass
"""


@pytest.mark.usefixtures("small_ceilings")
def test_the_gpu_script_keeps_what_it_has_when_a_step_fails(
    model_folder: Path, tmp_path: Path, python: Answering
) -> None:
    tests = python.path.with_name("test_some.py")
    tests.write_text(TESTS, "utf-8")
    ended = run_script(
        "gpu_benchmark.sh",
        tmp_path,
        code=1,
        PYTHON=python.path,
        DEVICE="cpu",
        SHAPE=model_folder,
        LONG_SHAPE="gpt-17",
        STEPS="parity long batch",
        BATCH="2",
        TESTS=tests,
        WORKERS="0",
    )
    assert ended.stderr.splitlines()[-1] == "failed: runtime-gpt-17-bfloat16"
    log = (tmp_path / "runtime-gpt-17-bfloat16.log").read_text("utf-8")
    assert log == "flashback: no such shape\n"
    written = tmp_path / "runtime-tiny-llama-bfloat16-batch"
    assert json.loads(written.with_suffix(".json").read_text("utf-8"))["shape"] == "opt"
    assert not list(tmp_path.glob("*.part"))
    assert (tmp_path / "runtime.md").read_text("utf-8").count("| append | ") == 1
    assert "1 passed, 1 deselected" in (tmp_path / "parity.log").read_text("utf-8")

    long, batch = python.calls
    assert "expected a model's folder" in refused(*long)
    record = run(*batch).record
    assert (record["dtype"], record["batch"]) == ("bfloat16", 2)
    assert 0 < record["decode_bound_share"]["append"] < 1
    assert written.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("small_ceilings")
def test_the_cpu_script_measures_real_text(
    model_folder: Path, tmp_path: Path, python: Answering
) -> None:
    (tmp_path / "sea.txt").write_text("The moon pulls the water of the ocean. " * 5, "utf-8")
    out = tmp_path / "out"
    run_script(
        "cpu_benchmark.sh",
        out,
        code=0,
        PYTHON=python.path,
        SHAPE=model_folder,
        STEPS="text",
        INDEX=index_notes(tmp_path),
        OPTIONS=f"{TINY} --text {tmp_path / 'sea.txt'} --pattern none --pattern append",
    )
    (call,) = python.calls
    record = run(*call).record
    assert record["seconds"].keys() == {"none", "append"}
    (out / "runtime-tiny-llama-text.json").write_text(json.dumps(record), "utf-8")
    assert "passages unchanged" in tables(out).read_text("utf-8")
    kept = kept_of(out / "runtime-tiny-llama-text.json", tmp_path / "kept")
    about, settings, _, names, *rows = kept.read_text("utf-8").splitlines()
    assert about.startswith(f"# shape {model_folder}, device cpu, ")
    assert "arms none+append, " in settings
    assert names.split(",")[1:4] == [
        f"none {name} ms" for name in ("boundary", "stride", "predicted")
    ]
    lengths = [row["length"] for row in record["rows"] if row["pattern"] == "none"]
    assert [int(row.split(",")[0]) for row in rows] == lengths
    assert kept.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_step_that_does_not_exist_and_time_that_is_over(tmp_path: Path) -> None:
    ended = run_script("cpu_benchmark.sh", tmp_path, code=2, STEPS="everything")
    assert ended.stderr == "STEPS: everything; expected some of: whole sampled bfloat16 text\n"
    ended = run_script("cpu_benchmark.sh", tmp_path, code=1, STEPS="whole", LIMIT="0")
    assert ended.stderr.splitlines()[-1] == "failed: runtime-opt-125m tables"


def kept_of(record: Path, folder: Path) -> Path:
    """The table that is kept of a record, in a folder."""
    write: Any = runpy.run_path(str(ROOT / "docs" / "write_results.py"))["write"]
    path: Path = write(record, folder)
    return path


def tables(folder: Path) -> Path:
    """The page of the records in a folder."""
    write: Any = runpy.run_path(str(ROOT / "docs" / "write_runtime_tables.py"))["write"]
    page: Path = write(folder)
    return page


def test_whole_and_sampled_sweeps_are_compared(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no runtime-\*\.json"):
        tables(tmp_path)
    for name, seconds in (("opt", 10.0), ("opt-sampled", 10.4)):
        (tmp_path / f"runtime-{name}.json").write_text(json.dumps(made_up_record(seconds)))
    page = tables(tmp_path).read_text("utf-8")
    assert "opt: seconds sampled / the whole sweep: none 1.000, append 1.040." in page
    assert "| append | 10.40 | 30.8 | 40% |  | 1.20 x | 50% | 60% | 0.90 |" in page
    assert "append takes 5.40 s more than none: 4.00 s in boundary passes, 1.40 s in" in page


def test_what_is_kept_of_other_records(tmp_path: Path) -> None:
    interval = {"value": 13.375, "low": 11.9, "high": 14.87}
    row = {"name": "slot", "perplexity": 13.375, "low": 11.9, "high": 14.87, "bits_per_byte": 1.0}
    table = {
        "rows": [{**row, "against_first_row": interval}],
        "settings": {"documents": ["a", "b"]},
    }
    point = {"arm": "slot", "stride": 4, "passages": 2, "seconds_per_token": 0.0129}
    pareto = {"points": [{**point, "perplexity": interval}], "settings": {"timing": {"prompts": 2}}}
    engine = {"arm": "ours", "tokens": 384, "tokens_per_second": 83.55, "spread": 0.0}
    speed = {"rows": [{**engine, "other_share": 0.024}], "settings": {}, "versions": {"torch": "2"}}
    kept = [
        (table, ["# documents a+b", "slot,13.38,11.9,14.87,13.38,11.9,14.87,1"]),
        (pareto, ["# timing (prompts 2)", "slot,4,2,13.38,11.9,14.87,12.9"]),
        (speed, ["# torch 2", "ours,384,83.55,0,0.024"]),
    ]
    for record, (first, last) in kept:
        (tmp_path / "some.json").write_text(json.dumps(record), "utf-8")
        lines = kept_of(tmp_path / "some.json", tmp_path).read_text("utf-8").splitlines()
        assert (lines[0], lines[-1]) == (first, last)


def made_up_record(append: float) -> dict[str, Any]:
    arms = ("none", "append")
    same = {"spread": 0.1, "bound_share": 0.5, "decode_bound_share": 0.6, "predicted_share": 0.9}
    return {
        "shape": "opt",
        "device": "cpu",
        "device_name": "a processor",
        "threads": 2,
        "dtype": "float32",
        "batch": 1,
        "text": "random tokens",
        "tokens": 320,
        "settings": {
            "arms": arms,
            "lengths": "512:2048",
            "sampled": False,
            "stride": 16,
            "passage_tokens": 128,
            "repeats": 1,
        },
        "versions": {"flashback": "0"},
        "ceilings": {"bytes_per_second": 2e10, "operations_per_second": 1e11},
        "calibrated": {"bytes_per_second": 1e10, "operations_per_second": 9e10},
        "seconds": {"none": 5.0, "append": append},
        "encode_seconds": {"none": 0.2, "append": 4.2},
        "boundary_growth": {"from": 528, "to": 1904, **dict.fromkeys(arms, 1.2)},
        "ratios": {"append/none": append / 5},
        "ratio_ranges": {"append/none": (append / 5, append / 5)},
        **{name: dict.fromkeys(arms, value) for name, value in same.items()},
    }
