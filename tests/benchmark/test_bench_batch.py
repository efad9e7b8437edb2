"""`flashback bench batch`: what it measures and checks, in no fixed time."""

from pathlib import Path

import pytest
import torch

from command_line import run
from flashback.benchmark.batch import ARMS, BatchBench, random_prompts
from flashback.benchmark.bench_settings import BatchBenchSettings
from flashback.benchmark.machine import device_name
from flashback.benchmark.material import RandomPassages
from flashback.errors import FlashBackError
from flashback.settings import SearchOptions
from tiny_readers import tiny_reader

SMALL = BatchBenchSettings(
    batch_size=3, prompt_tokens=20, new_tokens=10, stride=5, passage_tokens=12, repeats=2
)


def test_both_arms_write_the_same_from_prompts_of_different_lengths() -> None:
    reader = tiny_reader()
    assert [len(prompt) for prompt in random_prompts(reader, SMALL)] == [10, 15, 20]
    turns: list[int] = []
    bench = BatchBench(reader, SMALL)
    rows = bench.run(lambda: turns.append(1)).rows
    assert [row.arm for row in rows] == list(ARMS)
    assert all(row.amount == 30 and len(row.runs) == 2 and row.seconds > 0 for row in rows)
    assert len(turns) == bench.steps == 4  # the warm-up is not counted


def test_texts_that_differ_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = BatchBench(tiny_reader(), SMALL)
    plain = bench._write
    monkeypatch.setattr(bench, "_write", lambda arm, turn: (plain(arm, turn)[0], [(len(arm),)] * 3))
    with pytest.raises(FlashBackError, match="3 of 3 texts differ"):
        bench.run()


def test_passages_depend_on_the_query_alone() -> None:
    retriever = RandomPassages(tiny_reader(), 12)
    options = SearchOptions(k=2)
    one, other = retriever.search(["a", "b"], options)
    assert retriever.search(["b"], options) == [other]
    assert len({hit.text for hit in (*one, *other)}) == 4


def test_the_command_prints_figures(model_folder: Path) -> None:
    small = ("--batch-size", "2", "--prompt-tokens", "20", "--new-tokens", "4", "--repeats", "1")
    more = ("--passage-tokens", "12", "--device", "cpu", "--shape", model_folder)
    record = run("bench", "batch", *small, *more, "--json").record
    assert [row["arm"] for row in record["rows"]] == list(ARMS)
    assert record["device_name"] == device_name(torch.device("cpu"))
    ratio = record["rows"][1]["tokens_per_second"] / record["rows"][0]["tokens_per_second"]
    assert record["ratios"] == {"batch/one_by_one": pytest.approx(ratio)}
    out = run("bench", "batch", *small, *more).out
    assert "batch/one_by_one: " in out
