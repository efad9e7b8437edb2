"""The training benchmark: its three ways compute the same, and what it reports, at a tiny size."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from command_line import refused, run
from flashback.benchmark.bench_settings import TrainingBenchSettings
from flashback.benchmark.harness import Comparison
from flashback.benchmark.machine import device_name
from flashback.benchmark.shapes import config_of
from flashback.benchmark.training import (
    ARMS,
    RATIOS,
    Trained,
    Training,
    check_losses,
    made_up_examples,
    packed_loss,
    prepare,
)
from flashback.errors import FlashBackError, SettingsError
from tiny_readers import tiny_reader

SMALL = TrainingBenchSettings(
    windows=2, window_tokens=70, stride=8, passage_tokens=20, batch_size=3, repeats=2
)
TARGETS = 2 * 4 * 8
TINY = ("--window-tokens", "70", "--stride", "8", "--passage-tokens", "20", "--repeats", "1")


@pytest.fixture(autouse=True)
def matrix_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some seconds of large matrices less, twice a run."""
    monkeypatch.setattr("flashback.benchmark.training.operations_per_second", lambda _: 1e9)


def loss_and_gradient(training: Training, arm: str) -> tuple[Tensor, Tensor]:
    """Of all targets, by all that is trained."""
    loss = torch.stack([work() for work in training.works(arm)]).sum()
    trained = [one for one in training.model.parameters() if one.requires_grad]
    parts = torch.autograd.grad(loss, trained)
    return loss.detach(), torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize("family", ["opt", "gpt2", "llama", "gpt_neox", "bloom", "mistral"])
def test_all_arms_have_the_same_loss_and_gradient(family: str) -> None:
    training = Training.of(tiny_reader(family), SMALL)
    loss, gradient = loss_and_gradient(training, "padded")
    assert loss > 0
    assert gradient.norm() > 0
    for arm in ("sorted", "packed"):
        other, other_gradient = loss_and_gradient(training, arm)
        assert abs(other - loss) <= 1e-5 * loss
        assert (other_gradient - gradient).norm() <= 1e-4 * gradient.norm()


def test_every_arm_is_measured_on_all_targets() -> None:
    training = Training.of(tiny_reader(), SMALL)
    turns = []
    rows = training.run(lambda: turns.append(1)).rows
    assert [row.arm for row in rows] == list(ARMS)
    assert [row.amount for row in rows] == [TARGETS] * 3
    assert all(len(row.runs) == 2 and min(row.runs) > 0 for row in rows)
    assert len(turns) == training.steps == 2 * 2 * 3
    assert rows[0].loss == pytest.approx(rows[2].loss, rel=1e-4)


def test_the_products_of_packed_training_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a model's own: six operations a weight and token at most, four if it is frozen."""
    rates = iter([3e9, 4e9])
    monkeypatch.setattr("flashback.benchmark.training.operations_per_second", lambda _: next(rates))
    training = Training.of(tiny_reader(), SMALL)
    tokens: list[int] = []
    handle = training.model.register_forward_pre_hook(
        lambda _, __, named: tokens.append(named["input_ids"].numel()), with_kwargs=True
    )
    for work in training.works("packed"):
        work()
    handle.remove()
    found = training.run()
    base = training.reader.model.get_decoder().layers
    weights = sum(one.numel() for one in base.parameters() if one.dim() == 2)
    assert 2 * weights * sum(tokens) < found.operations < 8 * weights * sum(tokens)
    assert found.operations_per_second == 4e9
    packed = found.rows[2]
    assert found.share == pytest.approx(found.operations / packed.seconds / 4e9)


@pytest.mark.parametrize(("arm", "passes"), [("padded", 3), ("sorted", 3), ("packed", 2)])
def test_separate_sequences_come_in_batches_and_packed_ones_window_by_window(
    arm: str, passes: int
) -> None:
    training = Training.of(tiny_reader(), SMALL)
    assert len(training.works(arm)) == passes


def test_the_sorted_arm_has_less_padding_than_the_padded_one() -> None:
    training = Training.of(tiny_reader(), SMALL)
    tokens: list[int] = []
    handle = training.model.register_forward_pre_hook(
        lambda _, __, named: tokens.append(named["input_ids"].numel()), with_kwargs=True
    )
    counts = {}
    for arm in ARMS:
        tokens.clear()
        for work in training.works(arm):
            work()
        counts[arm] = sum(tokens)
    handle.remove()
    assert counts["packed"] < counts["sorted"] < counts["padded"]


def test_passages_are_all_different_and_of_three_quarters_to_all_of_the_length() -> None:
    passages = [p for one in made_up_examples(SMALL, tiny_reader()) for p in one.passages]
    assert len(set(passages)) == len(passages) == 8
    assert all(15 <= len(passage) <= 20 for passage in passages)
    default = TrainingBenchSettings(windows=20)
    lengths = {len(p) for one in made_up_examples(default, tiny_reader()) for p in one.passages}
    assert lengths == set(range(96, 129))


def test_figures_are_medians_and_ratios_are_of_targets_per_second() -> None:
    rows = [
        Trained("padded", 100, (9.0, 10.0, 12.0), 5.0),
        Trained("sorted", 100, (5.0, 5.0, 5.0), 5.0),
        Trained("packed", 100, (1.0, 2.0, 3.0), 5.0),
    ]
    assert [row.seconds for row in rows] == [10, 5, 2]
    assert [row.per_second for row in rows] == [10, 20, 50]
    assert [row.spread for row in rows] == pytest.approx([0.3, 0, 1])
    comparison = Comparison(tuple(rows), RATIOS)
    assert comparison.ratios == {"packed/padded": 5, "packed/sorted": 2.5}
    assert comparison.ratio_ranges == {"packed/padded": (4, 9), "packed/sorted": (5 / 3, 5)}


@pytest.mark.parametrize(
    ("dtype", "loss", "good"),
    [
        (torch.float32, 5.0004, True),
        (torch.float32, 5.001, False),
        (torch.bfloat16, 5.001, True),
        (torch.bfloat16, 5.5, False),
        (torch.float32, math.nan, False),
    ],
)
def test_arms_that_disagree_are_not_compared(dtype: torch.dtype, loss: float, good: bool) -> None:
    rows = [Trained(arm, 1, (1.0,), 5.0) for arm in ARMS[:2]]
    rows.append(Trained("packed", 1, (1.0,), loss))
    if good:
        check_losses(rows, dtype)
        return
    with pytest.raises(FlashBackError, match=r"losses .* differ \(padded 5.0+, sorted 5.0+, pac"):
        check_losses(rows, dtype)


def test_a_run_whose_arms_disagree_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = packed_loss
    monkeypatch.setattr(
        "flashback.benchmark.training.packed_loss", lambda *given: 1.001 * right(*given)
    )
    with pytest.raises(FlashBackError, match="their speeds cannot be compared"):
        Training.of(tiny_reader(), SMALL).run()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"windows": 0}, "windows=0: expected a whole number from 1"),
        ({"window_tokens": 47}, "window_tokens=47: expected at least 48"),
        ({"shape": "gpt-17"}, "shape='gpt-17': expected a model's folder or one of gpt2"),
        ({"device": "abacus"}, "device='abacus': expected auto, cpu"),
        ({"dtype": "float8"}, "dtype='float8': expected auto, float32 or bfloat16"),
    ],
)
def test_what_cannot_be_measured_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        prepare(TrainingBenchSettings(**settings))  # type: ignore[arg-type]


def test_windows_that_do_not_fit_the_reader_are_refused() -> None:
    fitting = replace(SMALL, window_tokens=192 - 2 - 20)
    assert Training.of(tiny_reader(), fitting).targets > 0
    with pytest.raises(SettingsError, match=r"window_tokens=171: needs 193 positions .* has 192"):
        Training.of(tiny_reader(), replace(SMALL, window_tokens=171))


def test_the_default_shape_is_that_of_the_earlier_measurement() -> None:
    config = config_of(TrainingBenchSettings().shape)
    assert (config.n_layer, config.n_embd, config.n_head) == (6, 512, 8)


def test_the_command_prints_json(model_folder: Path) -> None:
    record = run("bench", "training", "--shape", model_folder, *TINY, "--json").record
    assert (record["device"], record["dtype"]) == ("cpu", "float32")
    assert record["settings"]["window_tokens"] == 70
    assert record["device_name"] == device_name(torch.device("cpu"))
    speeds = {row["arm"]: row["targets_per_second"] for row in record["rows"]}
    assert list(speeds) == list(ARMS)
    for row in record["rows"]:
        keys = {"arm", "targets", "runs", "targets_per_second", "seconds", "spread", "loss"}
        assert set(row) == keys
        assert row["targets_per_second"] == pytest.approx(TARGETS / row["seconds"])
    rate = record["operations"] / record["rows"][2]["seconds"] / record["operations_per_second"]
    assert record["share_of_matrix_rate"] == pytest.approx(rate)
    assert record["ratios"] == pytest.approx(
        {f"packed/{arm}": speeds["packed"] / speeds[arm] for arm in ARMS[:2]}
    )


def test_the_command_prints_a_table(model_folder: Path) -> None:
    out = run("bench", "training", "--shape", model_folder, *TINY, "--threads", "1").out
    assert f"{TARGETS} targets" in " ".join(out.split())
    assert all(arm in out for arm in ARMS)
    assert "packed/sorted: " in out
    assert " of the matrix rate, " in " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--window-tokens", "40"], "--window-tokens 40: expected at least 48"),
        (["--window-tokens", "180"], "--window-tokens 180: needs 310 positions"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--shape", "gpt-17"], "--shape gpt-17"),
        (["--threads", "0"], "--threads"),
    ],
)
def test_bad_settings_are_one_line(model_folder: Path, arguments: list[str], message: str) -> None:
    assert message in refused("bench", "training", "--shape", model_folder, *arguments)
