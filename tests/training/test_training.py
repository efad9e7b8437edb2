"""Training: what changes and what does not, the same after any interruption, refused in a line."""

import errno
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    CTRLConfig,
    CTRLLMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    MptConfig,
    MptForCausalLM,
)

from chat_templates import TEMPLATES
from command_line import Outcome, refused, run, start
from families import FAMILIES, tiny_model
from flashback.cli.reader_options import ReaderOptions
from flashback.errors import SettingsError, TrainingError
from flashback.files import folder_locked, write_atomically
from flashback.patterns.frame import Frame
from flashback.patterns.registry import PATTERNS
from flashback.readers.adapter import put_on
from flashback.readers.card import CARD, CONFIG, WEIGHTS, read_card
from flashback.readers.lora import add_lora, query_and_value, save_lora
from flashback.readers.lora_settings import Marks
from flashback.readers.reader import Reader
from flashback.scoring.examples import Arrangement, Example
from flashback.scoring.targets import TargetScorer
from flashback.scoring.windows import check_positions
from flashback.training.model_card import model_card
from flashback.training.run import CHECKPOINTS, Run
from flashback.training.train import train
from flashback.training.trainer import PackedLoss, Progress, last_checkpoint
from tiny_readers import byte_tokenizer, tiny_reader
from trainings import (
    EXAMPLES,
    RETRIEVAL,
    RUN,
    SETTINGS,
    WINDOWS,
    farthest,
    full_model,
    lora_weights,
    made_up_examples,
    run_with,
    slow_run,
    train_usual,
)

TOLERANCE = 1e-6
MARKS = (258, 259)
FULL = OSError(errno.ENOSPC, "No space left on device")
DEADLINE = 200
"""Seconds a process may take to get anywhere, on a busy machine."""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the usual training gives."""
    out = tmp_path_factory.mktemp("trained") / "A"
    train_usual(tiny_reader(), out)
    return out


def kept(out: Path) -> list[str]:
    """The names in a folder."""
    return sorted(path.name for path in out.iterdir())


# What changes


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("marks", Marks)
def test_nothing_but_lora_and_trained_rows_changes(
    family: str, marks: Marks, tmp_path: Path
) -> None:
    reader = tiny_reader(family)
    before = [(weight, weight.detach().clone()) for weight in reader.model.parameters()]
    size = len(reader.tokenizer)
    card = train_usual(reader, tmp_path / "A", run_with(marks=marks))
    for weight, old in before:  # the model carries the adapter: these are the base's own
        assert torch.equal(weight, old)
    found = lora_weights(tmp_path / "A")
    assert all(weight.abs().max() > 0 for name, weight in found.items() if "lora_B" in name)
    rows = [weight for name, weight in found.items() if "lora_" not in name]
    table = tiny_reader(family).model.get_input_embeddings().weight
    assert isinstance(table, Tensor)
    if marks is Marks.NONE:
        assert (rows, card.mark_ids, len(reader.tokenizer)) == ([], None, size)
    else:
        assert (card.mark_ids, len(reader.tokenizer)) == (MARKS, size + 2)
        (own,) = rows
        assert torch.equal(own, table[list(MARKS)]) == (marks is Marks.FROZEN)
    assert not any(module.training for module in reader.model.modules())


@pytest.mark.parametrize("marks", Marks)
def test_a_text_in_front_of_passages_is_trained_on_and_shown(marks: Marks, tmp_path: Path) -> None:
    card = train_usual(tiny_reader(), tmp_path / "A", run_with(marks=marks, frame_before="Turn: "))
    assert card.frame_before == "Turn: "
    assert read_card(tmp_path / "A").frame_before == "Turn: "
    reader = put_on(tiny_reader(), tmp_path / "A")
    left, right = ((), ()) if marks is Marks.NONE else ((MARKS[0],), (MARKS[1],))
    words = tuple(reader.encode("Turn: "))
    assert reader.frame(None, "append") == Frame((*words, *left), right, sink=(0,))
    assert reader.frame(None, "prepend").before == left  # it was not trained for it
    train_usual(tiny_reader(), tmp_path / "B", run_with(marks=marks))
    assert farthest(lora_weights(tmp_path / "A"), lora_weights(tmp_path / "B")) > TOLERANCE


def test_an_adapter_without_marks_is_used_without_those_that_the_reader_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on an exported checkpoint; and no training aims at them."""
    aimed = []

    def aiming(model: nn.Module, arrangement: Arrangement) -> PackedLoss:
        aimed.append(arrangement.forbidden)
        return PackedLoss(model, arrangement)

    monkeypatch.setattr("flashback.training.train.PackedLoss", aiming)
    train_usual(tiny_reader(marks=True), tmp_path / "A", run_with(marks=Marks.NONE, steps=1))
    assert aimed == [MARKS]
    reader = put_on(tiny_reader(marks=True), tmp_path / "A")
    assert reader.marks == MARKS
    assert reader.frame(None, "append") == Frame(sink=(0,))


def test_a_trained_adapter_lies_in_its_folder_alone(uninterrupted: Path) -> None:
    assert kept(uninterrupted) == sorted(["README.md", CARD, CONFIG, WEIGHTS])
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in uninterrupted.iterdir())
    assert json.loads((uninterrupted / CARD).read_text())["training"]["rank"] == 16


def test_a_card_says_what_was_trained(uninterrupted: Path) -> None:
    card = read_card(uninterrupted)
    assert (card.pattern, card.marks, card.mark_ids) == ("append", Marks.TRAINED, MARKS)
    assert (card.stride, card.query_tokens, card.passage_tokens, card.passages) == (4, 8, 9, 1)
    assert card.window_tokens == WINDOWS.window_tokens
    assert (card.training["windows"], card.training["steps"]) == (5, 7)
    assert [entry["step"] for entry in card.results["log"]] == [2, 3, 4, 6, 7]
    losses = {entry["step"]: entry["loss"] for entry in card.results["log"]}
    mean = (2 * losses[2] + losses[3] + losses[4] + 2 * losses[6] + losses[7]) / 7
    assert card.results["training_loss"] == pytest.approx(mean)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_training_lowers_the_loss_of_its_pattern(pattern: str, tmp_path: Path) -> None:
    some = replace(RETRIEVAL, pattern=pattern)
    own = run_with(retrieval=some, steps=12, dropout=0.0, log_steps=1, windows_per_step=5)
    card = train_usual(tiny_reader(), tmp_path / "A", own)
    losses = [entry["loss"] for entry in card.results["log"]]
    assert losses[-1] < losses[0] - 0.3
    assert card.pattern is pattern
    trained = put_on(tiny_reader(), tmp_path / "A")
    found, untrained = (
        loss_of(reader, pattern)
        for reader in (trained, put_on(tiny_reader(), only_rows(tmp_path, pattern)))
    )
    assert losses[0] == pytest.approx(untrained, abs=1e-5)
    assert found < losses[0] - 0.3


def only_rows(folder: Path, pattern: str) -> Path:
    """An adapter that changes nothing."""
    some = replace(RETRIEVAL, pattern=pattern)
    train_usual(tiny_reader(), folder / "0", run_with(retrieval=some, steps=1, learning_rate=0.0))
    return folder / "0"


def loss_of(reader: Reader, pattern: str, examples: Sequence[Example] = EXAMPLES) -> float:
    """Nats per target."""
    arrangement = Arrangement(pattern, reader.frame(None, pattern), reader.forbidden)
    with torch.no_grad():
        scores = TargetScorer(reader.model).log_probs(examples, arrangement)
    return -float(torch.cat([score.flatten() for score in scores]).mean())


def test_windows_of_one_step_weigh_by_their_targets(tmp_path: Path) -> None:
    """Two batches of one window are one batch of two, though one has seven times the targets."""
    examples = made_up_examples(2, cuts=(1, 7))
    folders = tmp_path / "accumulated", tmp_path / "together"
    cards = [
        train(
            tiny_reader(),
            examples,
            run_with(steps=1, warmup=0, dropout=0.0, windows_per_step=size, accumulation=2 // size),
            folder,
        )
        for folder, size in zip(folders, (1, 2), strict=True)
    ]
    assert farthest(*map(lora_weights, folders)) <= TOLERANCE
    assert farthest(lora_weights(folders[0]), first_weights(examples, tmp_path)) > 1e-3
    assert cards[0].results["training_loss"] == pytest.approx(cards[1].results["training_loss"])


def first_weights(examples: Sequence[Example], folder: Path) -> dict[str, Tensor]:
    """The weights that a training begins with."""
    train(tiny_reader(), examples, run_with(steps=1, learning_rate=0.0), folder / "start")
    return lora_weights(folder / "start")


def test_seeds_decide_the_weights(uninterrupted: Path, tmp_path: Path) -> None:
    train_usual(tiny_reader(), tmp_path / "same")
    train_usual(tiny_reader(), tmp_path / "other", run_with(seed=1))
    assert farthest(lora_weights(tmp_path / "same"), lora_weights(uninterrupted)) == 0
    assert farthest(lora_weights(tmp_path / "other"), lora_weights(uninterrupted)) > 1e-3


def test_bfloat16_trains(uninterrupted: Path, tmp_path: Path) -> None:
    card = train_usual(tiny_reader(), tmp_path / "A", bfloat16=True)
    assert card.training["bfloat16"] is True
    found = lora_weights(tmp_path / "A")
    assert {weight.dtype for weight in found.values()} == {torch.float32}
    assert 1e-5 < farthest(found, lora_weights(uninterrupted)) < 0.2
    exact = read_card(uninterrupted).results["training_loss"]
    assert card.results["training_loss"] == pytest.approx(exact, abs=0.05)


def test_a_reader_in_bfloat16_is_trained_in_float32(tmp_path: Path) -> None:
    train_usual(coarse_reader(), tmp_path / "A")
    assert {weight.dtype for weight in lora_weights(tmp_path / "A").values()} == {torch.float32}
    assert put_on(coarse_reader(), tmp_path / "A").marks == MARKS


def coarse_reader() -> Reader:
    reader = tiny_reader()
    nn.Module.to(reader.model, torch.bfloat16)
    return reader


def test_progress_is_reported_at_every_step(tmp_path: Path) -> None:
    seen: list[Progress] = []
    train_usual(tiny_reader(), tmp_path / "A", on_step=seen.append)
    assert [(one.step, one.steps) for one in seen] == [(step, 7) for step in range(1, 8)]
    targets = sum(example.window.target_count for example in EXAMPLES) / len(EXAMPLES) * 2
    assert [one.targets for one in seen] == [int(step * targets) for step in range(1, 8)]
    assert seen[0].loss != seen[0].loss
    assert 4 < seen[-1].loss < 8


# Evaluation on the way


def test_held_out_documents_are_scored_and_change_nothing(
    uninterrupted: Path, tmp_path: Path
) -> None:
    """The mean over targets, not over windows."""
    held_out = made_up_examples(3, cuts=(1, 6, 2), seed=7)
    run = run_with(evaluation_steps=3)
    card = train(tiny_reader(), EXAMPLES, run, tmp_path / "A", held_out=held_out)
    assert farthest(lora_weights(tmp_path / "A"), lora_weights(uninterrupted)) == 0
    log = card.results["log"]
    found = {entry["step"]: entry["eval_loss"] for entry in log if "eval_loss" in entry}
    assert list(found) == [3, 6, 7]
    trained = put_on(tiny_reader(), tmp_path / "A")
    assert found[7] == pytest.approx(loss_of(trained, "append", held_out), abs=1e-5)
    assert card.results["training_loss"] == read_card(uninterrupted).results["training_loss"]


# Where LoRA goes


DEFAULTS = {
    "opt": ("q_proj", "v_proj"),
    "gpt2": ("c_attn",),
    "llama": ("q_proj", "v_proj"),
    "qwen3": ("q_proj", "v_proj"),
    "mistral": ("q_proj", "v_proj"),
    "gemma2": ("q_proj", "v_proj"),
    "gemma3": ("q_proj", "v_proj"),
    "gpt_neox": ("query_key_value",),
    "falcon": ("query_key_value",),
    "phi": ("q_proj", "v_proj"),
    "bloom": ("query_key_value",),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_goes_to_queries_and_values(family: str) -> None:
    reader = tiny_reader(family)
    layers: int = reader.model.config.num_hidden_layers
    assert query_and_value(reader.model) == DEFAULTS[family]
    model, _, _ = add_lora(reader, SETTINGS, SETTINGS.seed)
    adapted = [name for name, _ in model.named_parameters() if "lora_B" in name]
    assert len(adapted) == layers * len(DEFAULTS[family])


def test_a_family_with_other_names_must_name_its_layers() -> None:
    mpt = MptForCausalLM(MptConfig(d_model=16, n_heads=2, n_layers=1, vocab_size=300))
    assert query_and_value(mpt) == ("Wqkv",)
    ctrl = CTRLLMHeadModel(CTRLConfig(vocab_size=300, n_embd=16, dff=16, n_layer=1, n_head=2))
    with pytest.raises(
        SettingsError, match=r"of ctrl are not known; name the layers with lora_targets"
    ):
        query_and_value(ctrl)
    reader = tiny_reader(model=ctrl)
    add_lora(reader, replace(SETTINGS, lora_targets=("Wq", "Wv")), seed=0)


def test_chosen_layers_get_lora(tmp_path: Path) -> None:
    run = run_with(lora_targets=("o_proj", "1.mlp.down_proj"))
    train_usual(tiny_reader(), tmp_path / "A", run)
    names = {
        name.split(".lora_")[0][-14:] for name in lora_weights(tmp_path / "A") if "lora" in name
    }
    assert len(lora_weights(tmp_path / "A")) == 2 * 3 + 1
    assert names == {"self_attn.o_proj"[-14:], ".mlp.down_proj"}
    merged = put_on(tiny_reader(), tmp_path / "A").model
    moved = {
        name
        for name, weight in merged.named_parameters()
        if not torch.equal(weight, tiny_model("llama").get_parameter(name))
    }
    assert moved == {
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.o_proj.weight",
        "model.layers.1.self_attn.o_proj.weight",
        "model.layers.1.mlp.down_proj.weight",
    }


def test_an_untied_head_can_be_a_target(tmp_path: Path) -> None:
    reader = tiny_reader("llama")
    train_usual(reader, tmp_path / "A", run_with(lora_targets=("lm_head",)))
    ids = torch.tensor([[0, 5, 258, 7, 259, 9]])
    with torch.no_grad():
        trained = reader.model(input_ids=ids).logits
        merged = put_on(tiny_reader("llama"), tmp_path / "A").model(input_ids=ids).logits
    assert (trained - merged).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("family", "target", "message"),
    [
        ("llama", "nonsuch", "lora_targets='nonsuch': llama has no such linear layer"),
        ("llama", "", "lora_targets='': llama has no such linear layer"),
        ("llama", "embed_tokens", "lora_targets='embed_tokens': llama has no such linear layer"),
        ("llama", "self_attn", "lora_targets='self_attn': llama has no such linear layer"),
        ("llama", "proj", "lora_targets='proj': llama has no such linear layer"),
        ("gpt2", "lm_head", "lora_targets='lm_head': its weight is the embedding's too"),
        ("opt", "lm_head", "lora_targets='lm_head': its weight is the embedding's too"),
    ],
)
def test_targets_that_cannot_be(family: str, target: str, message: str, tmp_path: Path) -> None:
    run = run_with(lora_targets=("v_proj" if family != "gpt2" else "c_attn", target))
    assert message in why_refused(tmp_path / "A", run, family=family, error=SettingsError)
    assert not (tmp_path / "A").exists()


# Interrupted


class Stop(Exception):
    """Ends a training."""


def stop_at(step: int) -> Callable[[Progress], None]:
    def on_step(state: Progress) -> None:
        if state.step == step:
            raise Stop

    return on_step


def stop_training(out: Path, step: int, run: Run = RUN, **more: Any) -> None:
    """Train until a step has been made, and no further."""
    with pytest.raises(Stop):
        train_usual(tiny_reader(), out, run, on_step=stop_at(step), **more)
    assert not (out / CARD).exists()


@pytest.mark.parametrize(
    ("step", "resumed"), [(1, None), (2, None), (3, 2), (4, 2), (5, 4), (6, 4), (7, 6)]
)
def test_a_training_that_was_stopped_goes_on_exactly(
    step: int, resumed: int | None, uninterrupted: Path, tmp_path: Path
) -> None:
    """With dropout, across epochs of which the last batch is smaller."""
    out = tmp_path / "A"
    stop_training(out, step)
    last = last_checkpoint(out / CHECKPOINTS)
    assert (last and last.name) == (resumed and f"checkpoint-{resumed}")
    steps: list[int] = []
    torch.manual_seed(random.randrange(1 << 30))
    card = train_usual(tiny_reader(), out, on_step=lambda state: steps.append(state.step))
    assert steps == list(range((resumed or 0) + 1, 8))
    assert farthest(lora_weights(out), lora_weights(uninterrupted)) <= TOLERANCE
    assert kept(out) == kept(uninterrupted)
    whole = read_card(uninterrupted)
    assert card.results["training_loss"] == pytest.approx(whole.results["training_loss"])
    for one, other in zip(card.results["log"], whole.results["log"], strict=True):
        assert one == pytest.approx(other)


@pytest.mark.parametrize("change", [{"accumulation": 2, "windows_per_step": 1}, {"marks": "none"}])
def test_so_do_other_trainings_stopped_twice(change: dict[str, Any], tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "A"
    run = run_with(**change, checkpoint_steps=1)
    train_usual(tiny_reader(), whole, run)
    stop_training(out, 3, run)
    stop_training(out, 6, run)
    train_usual(tiny_reader(), out, run)
    assert farthest(lora_weights(out), lora_weights(whole)) <= TOLERANCE


def test_rows_of_a_full_reader_are_resumed_too(tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "A"
    train_usual(tiny_reader(model=full_model("opt")), whole)
    with pytest.raises(Stop):
        train_usual(tiny_reader(model=full_model("opt")), out, on_step=stop_at(5))
    train_usual(tiny_reader(model=full_model("opt")), out)
    assert farthest(lora_weights(out), lora_weights(whole)) <= TOLERANCE


def test_a_training_that_is_killed_goes_on_exactly(tmp_path: Path) -> None:
    """At any moment, from any state of its files."""
    out, whole = tmp_path / "A", tmp_path / "whole"
    script = Path(__file__).parents[1] / "trainings.py"
    process = subprocess.Popen([sys.executable, str(script), str(out)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        for _ in range(random.randint(1, slow_run().settings.steps - 2)):
            assert process.stdout.readline() == b"step\n"
    time.sleep(random.uniform(0, 0.1))  # anywhere in the step that follows
    process.send_signal(signal.SIGKILL)
    assert process.wait(DEADLINE) == -signal.SIGKILL
    train_usual(tiny_reader(), whole, slow_run())
    if not (out / CARD).exists():  # it was not that fast
        train_usual(tiny_reader(), out, slow_run())
    assert farthest(lora_weights(out), lora_weights(whole)) <= TOLERANCE


def test_a_checkpoint_that_is_not_whole_is_passed_over(
    uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while the second was written: between its last file and the mark that it is whole."""

    def write(path: Path, text: str) -> None:
        if path.parent.name == "checkpoint-4":
            raise KeyboardInterrupt
        write_atomically(path, text)

    with monkeypatch.context() as patched:
        patched.setattr("flashback.training.trainer.write_atomically", write)
        with pytest.raises(KeyboardInterrupt):
            train_usual(tiny_reader(), tmp_path / "A")
    checkpoints = tmp_path / "A" / CHECKPOINTS
    assert kept(checkpoints) == ["checkpoint-2", "checkpoint-4"]
    (checkpoints / "checkpoint-4" / WEIGHTS).write_bytes(b"half")
    last = last_checkpoint(checkpoints)
    assert last == checkpoints / "checkpoint-2"
    train_usual(tiny_reader(), tmp_path / "A")
    assert farthest(lora_weights(tmp_path / "A"), lora_weights(uninterrupted)) <= TOLERANCE


def test_two_checkpoints_are_kept(tmp_path: Path) -> None:
    stop_training(tmp_path / "A", 7, run_with(checkpoint_steps=1))
    assert kept(tmp_path / "A" / CHECKPOINTS) == ["checkpoint-5", "checkpoint-6"]
    checkpoint = tmp_path / "A" / CHECKPOINTS / "checkpoint-6"
    assert not any(weight.shape[0] == 300 for weight in lora_weights(checkpoint).values())
    assert "training_args.bin" not in kept(checkpoint)


def test_a_training_whose_adapter_could_not_be_written_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is a step added: the rate is still high at the end of a training that only warms up."""
    out, whole = tmp_path / "A", tmp_path / "whole"
    run = run_with(warmup=1.0)
    expected = train_usual(tiny_reader(), whole, run)

    def save(model: Any, folder: Path) -> None:
        if folder == out:
            raise FULL
        save_lora(model, folder)

    with monkeypatch.context() as patched:
        patched.setattr("flashback.training.train.save_lora", save)
        with pytest.raises(TrainingError, match=r"cannot be written: .*No space left on device"):
            train_usual(tiny_reader(), out, run)
    assert not (out / CARD).exists()

    def never(_: Progress) -> None:
        raise AssertionError("a step was made")

    card = train_usual(tiny_reader(), out, run, on_step=never)
    assert farthest(lora_weights(out), lora_weights(whole)) == 0
    assert kept(out) == kept(whole)
    assert card.results == expected.results


# Refused


def why_refused(
    out: Path,
    run: Run = RUN,
    *,
    family: str = "llama",
    error: type[Exception] = TrainingError,
    **more: Any,
) -> str:
    """The one line that refuses a training."""
    with pytest.raises(error) as caught:
        train_usual(tiny_reader(family), out, run, **more)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "other",
    [
        run_with(learning_rate=0.02),
        run_with(seed=1),
        run_with(marks="frozen"),
        run_with(retrieval=replace(RETRIEVAL, pattern="prepend")),
        replace(RUN, windows=replace(WINDOWS, window_tokens=65)),
        replace(RUN, data={"documents": ["others"]}),
    ],
)
def test_another_run_is_not_continued(other: Run, tmp_path: Path) -> None:
    out = tmp_path / "A"
    stop_training(out, 3)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert "holds an interrupted training with other settings" in why_refused(out, other)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_nor_the_same_run_on_something_else(uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "A"
    stop_training(out, 3)
    other = "holds an interrupted training with other settings or documents"
    with pytest.raises(TrainingError, match=other):
        train(tiny_reader(), made_up_examples(5, seed=1), RUN, out)
    with pytest.raises(TrainingError, match=other):
        train(tiny_reader(), EXAMPLES[:4], RUN, out)
    with pytest.raises(TrainingError, match=other):
        train_usual(tiny_reader(model=tiny_model("llama", seed=1)), out)
    with pytest.raises(TrainingError, match=other):
        train_usual(tiny_reader(), out, bfloat16=True)
    train_usual(tiny_reader(), out)
    assert farthest(lora_weights(out), lora_weights(uninterrupted)) <= TOLERANCE


def test_a_run_without_a_checkpoint_does_not_stand_in_the_way(
    uninterrupted: Path, tmp_path: Path
) -> None:
    """Nothing is lost by another one."""
    out = tmp_path / "A"
    stop_training(out, 1, run_with(learning_rate=5.0))
    train_usual(tiny_reader(), out)
    assert farthest(lora_weights(out), lora_weights(uninterrupted)) == 0


def test_folders_that_are_taken(uninterrupted: Path, tmp_path: Path) -> None:
    assert "exists already; choose another out" in why_refused(uninterrupted)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    assert "the folder is not empty; choose another out" in why_refused(foreign)
    assert kept(foreign) == ["thesis.tex"]
    assert "a file is in the way" in why_refused(foreign / "thesis.tex")
    empty = tmp_path / "empty"
    empty.mkdir()
    train_usual(tiny_reader(), empty, run_with(steps=1))


def test_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="there is no window to train on"):
        train(tiny_reader(), [], RUN, tmp_path / "A")
    assert not (tmp_path / "A").exists()


def test_nothing_to_learn(tmp_path: Path) -> None:
    """Windows without a passage, or without a target."""
    empty = [replace(one, passages=((),) * len(one.passages)) for one in EXAMPLES]
    with pytest.raises(TrainingError, match="no window has a passage, which pattern='append'"):
        train(tiny_reader(), empty, RUN, tmp_path / "A")
    uncut = [replace(one, window=replace(one.window, cuts=()), passages=()) for one in EXAMPLES]
    with pytest.raises(TrainingError, match="no window has a target"):
        train(tiny_reader(), uncut, RUN, tmp_path / "A")
    assert not (tmp_path / "A").exists()


def test_a_reader_that_has_an_adapter(uninterrupted: Path, tmp_path: Path) -> None:
    """Whether merged or not: its base could not be found again."""
    used = tiny_reader()
    train_usual(used, tmp_path / "A")
    for reader in (used, put_on(tiny_reader(), uninterrupted)):
        with pytest.raises(TrainingError, match="llama has an adapter on it; load it anew"):
            train_usual(reader, tmp_path / "B")
    assert not (tmp_path / "B").exists()


@pytest.mark.parametrize(
    ("marks", "echo", "least"), [("trained", 0, 75), ("none", 0, 73), ("none", 5, 78)]
)
def test_windows_must_fit_the_positions(marks: str, echo: int, least: int, tmp_path: Path) -> None:
    """N + k·m + what stands around passages, exactly."""
    run = run_with(marks=marks, echo_tokens=echo, steps=1)
    with pytest.raises(SettingsError, match=f"need {least} positions, but llama has {least - 1}"):
        train_usual(tiny_reader(window=least - 1), tmp_path / "A", run)
    assert not (tmp_path / "A").exists()
    train_usual(tiny_reader(window=least), tmp_path / "A", run)


def test_windows_without_passages_need_their_own_length_only(tmp_path: Path) -> None:
    alone = replace(RETRIEVAL, pattern="none")
    check_positions(tiny_reader(window=64), WINDOWS, alone)
    with pytest.raises(SettingsError) as caught:
        check_positions(tiny_reader(window=63), WINDOWS, alone)
    assert str(caught.value) == (
        "windows of 64 tokens need 64 positions, but llama has 63 (a test); lower window_tokens"
    )


@pytest.mark.parametrize("name", ["nonsuch", "tensorboard", "wandb"])
def test_loggers_that_are_not_there(name: str, tmp_path: Path) -> None:
    from importlib.util import find_spec

    if find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    message = why_refused(tmp_path / "A", error=SettingsError, log_to=[name])
    assert message.startswith("log_to: ")
    assert name in message.lower()
    assert not (tmp_path / "A").exists()


def test_losses_go_to_a_logger_and_its_files_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import TrainerCallback
    from transformers.integrations import integration_utils

    class ToFile(TrainerCallback):
        def on_log(self, args: Any, *_: Any, logs: Any = None, **__: Any) -> None:
            with open(Path(args.output_dir, "losses"), "a") as file:
                file.write(f"{logs.get('loss')}\n")

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tofile", ToFile)
    card = train_usual(tiny_reader(), tmp_path / "A", log_to=["tofile"])
    lines = (tmp_path / "A" / CHECKPOINTS / "losses").read_text().split()
    assert lines[:-1] == [str(entry["loss"]) for entry in card.results["log"]]
    assert kept(tmp_path / "A" / CHECKPOINTS) == ["losses"]


def test_accelerate_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.training_args.is_accelerate_available", lambda: False)
    assert "pip install '.[train]' in a clone" in why_refused(tmp_path / "A")


# Broken on the way


def poisoned_reader() -> Reader:
    """A reader that fails at one token."""
    model = tiny_model("llama")
    table = model.get_input_embeddings().weight
    assert isinstance(table, Tensor)
    with torch.no_grad():
        table[299] = torch.nan
    return tiny_reader(model=model)


def why_poisoned(at: int, out: Path) -> tuple[int, str]:
    """The step at which one window's loss is no number, and what is said of it."""
    examples = list(EXAMPLES)
    window = examples[at].window
    examples[at] = replace(examples[at], window=replace(window, ids=(0, 299, *window.ids[2:])))
    run = run_with(windows_per_step=1, checkpoint_steps=1)
    with pytest.raises(TrainingError) as caught:
        train(poisoned_reader(), examples, run, out)
    message = str(caught.value)
    start = r"the loss became nan, its gradient nan, at step (\d) on windows of Title (\d); "
    found = re.match(start, message)
    assert found
    assert int(found[2]) == at
    return int(found[1]), message


def test_a_loss_that_is_no_number_ends_the_training(tmp_path: Path) -> None:
    """It names the step, the documents and the last good checkpoint."""
    messages = dict(why_poisoned(at, tmp_path / str(at)) for at in range(len(EXAMPLES)))
    assert sorted(messages) == [1, 2, 3, 4, 5]  # wherever the window came
    for step, message in messages.items():
        assert "lower learning_rate, with another out" in message
        last = f"the last good checkpoint is {tmp_path}/\\d/checkpoints/checkpoint-{step - 1};"
        assert re.search(last if step > 1 else "there is no checkpoint yet;", message)


def test_a_gradient_that_is_no_number_spoils_no_checkpoint(tmp_path: Path) -> None:
    """The loss of that step is still one; the weights behind it would not be."""
    reader = tiny_reader()

    def spoil(state: Progress) -> None:
        if state.step == 3:
            named = reader.model.named_parameters()
            weight = next(weight for name, weight in named if "lora_B" in name)
            weight.register_hook(lambda gradient: gradient * torch.inf)

    out = tmp_path / "A"
    with pytest.raises(TrainingError, match=r"its gradient (nan|inf), at step 4 ") as caught:
        train_usual(reader, out, run_with(checkpoint_steps=1), on_step=spoil)
    assert "the loss became nan" not in str(caught.value)
    last = last_checkpoint(out / CHECKPOINTS)
    assert last is not None
    assert last.name == "checkpoint-3"
    assert all(weight.isfinite().all() for weight in lora_weights(last).values())


@pytest.mark.parametrize(
    ("writer", "error"),
    [
        ("torch.save", FULL),
        ("torch.save", RuntimeError("[enforce fail at inline_container.cc] unexpected pos 576")),
        ("peft.peft_model.safe_save_file", FULL),
        ("peft.peft_model.safe_save_file", SafetensorError("I/O error: No space left on device")),
        ("flashback.training.trainer.sync_files", FULL),
        ("flashback.training.trainer.write_atomically", FULL),
    ],
)
def test_a_full_disk_ends_the_training_and_keeps_the_last_checkpoint(
    writer: str,
    error: Exception,
    uninterrupted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "A"

    def fill(state: Progress) -> None:
        if state.step == 4:  # whose checkpoint comes next
            monkeypatch.setattr(writer, fail)

    def fail(*_: object, **__: object) -> None:
        raise error

    message = why_refused(out, on_step=fill)
    monkeypatch.undo()
    assert "checkpoint-4 cannot be written: " in message
    assert "(is the disk full?)" in message
    assert f"the last good one is {out / CHECKPOINTS / 'checkpoint-2'}" in message
    assert kept(out / CHECKPOINTS) == ["checkpoint-2"]
    train_usual(tiny_reader(), out)
    assert farthest(lora_weights(out), lora_weights(uninterrupted)) <= TOLERANCE


def test_a_disk_that_was_full_from_the_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise FULL

    monkeypatch.setattr("torch.save", fail)
    message = why_refused(tmp_path / "A")
    assert "checkpoint-2 cannot be written: [Errno 28] No space left on device" in message
    assert "there is none yet; make room and run the same command again" in message


# The command


TEXTS = [
    "The tides of the ocean follow the moon, and water is pulled towards it every day anew.",
    "A network has sockets; whoever connects sends and receives, then closes. So does json data.",
    "In winter snow falls on the ocean. In spring it melts, and water goes where the moon pulls.",
    "A module decodes a format for data. Exchanging json over a socket is what networks do.",
]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Documents that have words in common with the small corpus, and are none of it."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.txt").write_text(text)
    return folder


SIZES = ("--stride", "8", "--query-tokens", "22", "--passage-tokens", "40")
CUTTING = ("--window-tokens", "64", "--first-boundary", "16")
SHORT = ("--steps", "4", "--windows-per-step", "2", "--learning-rate", "0.01")


class Train:
    """`flashback train` with settings that fit the tiny model's 192 positions."""

    def __init__(self, model: Path, index: Path, texts: Path, out: Path) -> None:
        options = ("--model", model, "--index", index, "--device", "cpu", "--dtype", "float32")
        self.words = ("train", texts, *options, *SIZES, *CUTTING, *SHORT, "--out", out)
        self.out = out

    def __call__(self, *more: str | Path) -> Outcome:
        return run(*self.words, *more)

    def refused(self, *more: str | Path, code: int = 2) -> str:
        message = refused(*self.words, *more, code=code)
        assert not self.out.exists()
        return message


@pytest.fixture
def command(model_folder: Path, index: Path, texts: Path, tmp_path: Path) -> Train:
    return Train(model_folder, index, texts, tmp_path / "made" / "A")


@pytest.mark.filterwarnings("ignore:.* passages looked at are longer")
def test_an_adapter_is_trained_in_a_line(command: Train, model_folder: Path, index: Path) -> None:
    outcome = command()
    card = read_card(command.out)
    loss = card.results["training_loss"]
    assert outcome.out == (
        f"{command.out}: trained; mean loss of all steps {loss:.3f} nats per target\n"
    )
    assert outcome.err == ""
    assert card.base.name == str(model_folder)
    assert card.data == {"documents": [str(command.words[1])], "index": str(index)}
    prompt = ("--max-new-tokens", "8", "moon")
    words = ("generate", "--model", model_folder, "--adapter", command.out, "--index", index)
    assert run(*words, *SIZES, *prompt).err == ""  # what it was trained for
    readme = (command.out / "README.md").read_text()
    assert f"base_model: {model_folder}\n" in readme
    assert "4 steps of 2 windows." in readme


QUESTIONS = (
    {"question": "What is up?", "answer": "moon", "passage": "The moon is up."},
    {"question": "What does the moon pull?", "answers": ["sea", "mud"], "passage": "The sea."},
)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in QUESTIONS))
    return path


def test_answers_to_questions_are_trained_on(
    questions: Path, model_folder: Path, index: Path, tmp_path: Path
) -> None:
    out, model = tmp_path / "A", ("--model", model_folder, "--passage-tokens", "40")
    words = ("train", "--questions", questions, *model, *SHORT, "--log-steps", "1", "--json")
    record = run(*words, "--oracle", "--steps", "40", "--out", out).record
    assert record["data"] == {
        "documents": [],
        "index": None,
        "questions": str(questions),
        "sha256": hashlib.sha256(questions.read_bytes()).hexdigest(),
        "oracle": True,
        "form": "question",
    }
    assert record["window_tokens"] == len("sQuestion: What does the moon pull?\nAnswer: sea.")
    losses = [entry["loss"] for entry in record["results"]["log"]]
    assert losses[-1] < losses[0] - 0.5
    assert "on the right answers of " in (out / "README.md").read_text()
    asked = ("eval", "qa", questions, *model, "--oracle", "--pattern", "append", "--json")
    rows = run(*asked, "--adapter", out, "--max-new-tokens", "6").record["rows"]
    nats = {row["name"]: row["nats_per_token"]["value"] for row in rows}
    assert nats["append + LoRA, trained marks"] < nats["append"]
    found = run(*words, "--index", index, "--out", tmp_path / "B").record
    assert (found["data"]["index"], found["data"]["oracle"]) == (str(index), False)


def test_chats_are_trained_on_with_passages_in_a_turn_of_the_user(
    questions: Path, model_folder: Path, texts: Path, index: Path, tmp_path: Path
) -> None:
    chatty = shutil.copytree(model_folder, tmp_path / "chatty")
    (chatty / "chat_template.jinja").write_text(TEMPLATES["chatml"])
    words = ("train", "--questions", questions, "--model", chatty, *SIZES, *SHORT, "--oracle")

    def trained(*more: str | Path) -> str:
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        found = run(*words, *more, "--out", out, "--json").record["frame_before"]
        assert read_card(out).frame_before == found
        assert isinstance(found, str)
        named = f"; {json.dumps(found)} stands in front of it." in (out / "README.md").read_text()
        assert named == bool(found)
        return found

    assert trained() == "<|im_end|>\n<|im_start|>user\n"
    assert trained("--frame-before", "") == ""
    assert trained("--frame-before", "Read: ") == "Read: "
    assert trained("--pattern", "prepend") == ""
    assert trained("--form", "question") == ""
    assert trained(texts, "--index", index, *CUTTING) == ""


def test_questions_and_documents_are_trained_on_together(command: Train, questions: Path) -> None:
    alone = command("--json").record["training"]["windows"]
    shutil.rmtree(command.out)
    both = command("--json", "--questions", questions, "--oracle").record
    assert both["training"]["windows"] == alone + len(QUESTIONS)
    assert both["window_tokens"] == 64


def test_questions_that_cannot_be_trained_on(
    questions: Path, model_folder: Path, index: Path, tmp_path: Path
) -> None:
    words = ("train", "--model", model_folder, "--out", tmp_path / "A")
    assert "expected DOCUMENTS or --questions FILE, found neither" in refused(*words, code=2)
    alone = refused(*words, questions, "--index", index, "--oracle", code=2)
    assert "--form, --examples and --oracle are for --questions" in alone
    asked = (*words, "--questions", questions)
    assert "there is no index; give an --index" in refused(*asked, code=2)
    assert "found both" in refused(*asked, "--index", index, "--oracle", code=2)
    assert "--form chat: " in refused(*asked, "--oracle", "--form", "chat", code=2)
    none = refused(*asked, "--pattern", "none", "--frame-before", "Read: ", code=2)
    assert "--frame-before 'Read: ': has no effect with --pattern none" in none
    long = refused(*asked, "--oracle", "--window", "48", code=1)
    assert re.search(r"question 1: with its passages and its answer it needs \d+ positions", long)


def test_the_json_of_a_training_is_its_card(command: Train) -> None:
    record = command("--json", "--held-out", command.words[1], "--evaluation-steps", "2").record
    assert record == json.loads((command.out / CARD).read_text())
    assert [entry["step"] for entry in record["results"]["log"] if "eval_loss" in entry] == [2, 4]
    names = [row["name"] for row in record["results"]["table"]["rows"]]
    assert names[0] == "none"
    assert names[-1] == "append + LoRA, trained marks"
    assert f"| {names[-1]} |" in (command.out / "README.md").read_text()


def test_settings_reach_the_training(command: Train) -> None:
    flags = ("--marks", "frozen", "--rank", "3", "--alpha", "5", "--lora-target", "o_proj")
    more = ("--passages", "2", "--pattern", "prepend", "--seed", "9", "--bfloat16")
    record = command("--json", *flags, *more).record
    assert (record["marks"], record["pattern"], record["passages"]) == ("frozen", "prepend", 2)
    named = {name: record["training"][name] for name in ("rank", "alpha", "seed", "bfloat16")}
    assert named == {"rank": 3, "alpha": 5, "seed": 9, "bfloat16": True}
    config = json.loads((command.out / CONFIG).read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (3, 5, ["o_proj"])


def test_a_baseline_needs_no_index(model_folder: Path, texts: Path, tmp_path: Path) -> None:
    words = ("train", texts, "--model", model_folder, "--pattern", "none", "--marks", "none")
    out = tmp_path / "A"
    run(*words, "--stride", "8", *CUTTING, *SHORT, "--out", out)
    assert (read_card(out).pattern, read_card(out).mark_ids) == ("none", None)


def test_the_same_command_goes_on(command: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise FULL

    with monkeypatch.context() as patched:
        patched.setattr("flashback.training.train._publish", fail)
        assert "No space left" in refused(*command.words, code=1)
    other = refused(*command.words, "--rank", "3", code=1)
    assert "repeat that command to continue it" in other
    command()
    assert "exists already" in refused(*command.words, code=1)


def test_the_same_command_goes_on_while_held_out_documents_are_scored(
    command: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adapter is made, its table is not; and its training's model is gone by then."""
    held = ("--held-out", command.words[1])
    loaded: list[weakref.ref[Any]] = []
    load = ReaderOptions.load_plain

    def remembering(self: ReaderOptions) -> Reader:
        reader = load(self)
        loaded.append(weakref.ref(reader.model))
        return reader

    def interrupted(*_: object, **__: object) -> None:
        assert loaded[0]() is None
        raise FULL

    with monkeypatch.context() as patched:
        patched.setattr(ReaderOptions, "load_plain", remembering)
        patched.setattr("flashback.evaluation.evaluate.evaluate", interrupted)
        assert "No space left" in refused(*command.words, *held, code=1)
    trained = (command.out / WEIGHTS).read_bytes()
    assert "with other settings" in refused(*command.words, *held, "--rank", "3", code=1)
    record = command("--json", *held).record
    assert record["results"]["table"]["rows"][0]["name"] == "none"
    assert (command.out / WEIGHTS).read_bytes() == trained
    assert kept(command.out) == sorted(["README.md", CARD, CONFIG, WEIGHTS])
    assert "exists already" in refused(*command.words, *held, code=1)


def test_one_training_at_a_time_writes_into_a_folder(tmp_path: Path) -> None:
    out = tmp_path / "A"
    out.mkdir()
    with folder_locked(out), pytest.raises(TrainingError, match="another training writes"):
        train_usual(tiny_reader(), out)
    train_usual(tiny_reader(), out)


def test_the_windows_of_a_step_are_counted_up_to_the_epochs_end(tmp_path: Path) -> None:
    seen: list[float] = []
    run = run_with(accumulation=8, steps=2)
    card = train_usual(
        tiny_reader(), tmp_path / "A", run, on_step=lambda state: seen.append(state.targets)
    )
    assert f"2 steps of {len(EXAMPLES)} windows." in model_card(card)
    targets = sum(example.window.target_count for example in EXAMPLES)
    assert seen == [targets, 2 * targets]


def test_standard_input_is_not_read_twice(command: Train) -> None:
    words: tuple[str | Path, ...] = ("-", "--held-out", "-")
    assert "can be read only once" in command.refused(*words)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--marks", "loud"], "'loud' is not one of 'trained', 'frozen', 'none'"),
        (["--pattern", "sideways"], "'sideways' is not one of"),
        (["--steps", "0"], "--steps 0: expected a whole number from 1"),
        (["--learning-rate", "nan"], "--learning-rate nan"),
        (["--learning-rate", "1e9"], "--learning-rate 1000000000.0"),
        (["--rank", "0"], "--rank 0"),
        (["--dropout", "1"], "--dropout 1.0"),
        (["--window-tokens", "4"], "--window-tokens 4"),
        (["--window-tokens", "20"], "--window-tokens 20: a context of"),
        (["--window-tokens", "1000"], "need 1042 positions, but"),
        (["--passage-tokens", "500"], "need 566 positions, but"),
        (["--held-out-windows", "0"], "'--held-out-windows'"),
        (["--lora-target", "nonsuch"], "--lora-target nonsuch: "),
        (["--echo-tokens", "4", "--pattern", "prepend"], "no effect with --pattern prepend"),
        (["--log-to", "nonsuch"], "--log-to: nonsuch is not supported"),
        (["--device", "toaster"], "--device toaster"),
        (["--nonsuch"], "'--nonsuch'"),
    ],
)
def test_wrong_usage(more: list[str], message: str, command: Train) -> None:
    assert message in command.refused(*more)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model", "./nowhere"], "found nothing there"),
        (["--index", "nowhere"], "index nowhere: no such folder"),
        (["--held-out", "nowhere"], "nowhere: no such file or folder"),
        (["--min-score", "1000"], "no passage was found for any of"),
    ],
)
def test_what_is_not_there(more: list[str], message: str, command: Train) -> None:
    assert message in command.refused(*more, code=1)


def test_readers_whose_cache_cannot_be_cut_back_are_refused(index: Path, tmp_path: Path) -> None:
    config = MambaConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, state_size=4)
    MambaForCausalLM(config).save_pretrained(tmp_path / "mamba")
    byte_tokenizer().save_pretrained(tmp_path / "mamba")
    (tmp_path / "text.txt").write_text("The moon is bright tonight. " * 20)
    words = ("train", tmp_path / "text.txt", "--model", tmp_path / "mamba", "--index", index)
    message = refused(*words, "--out", tmp_path / "A", code=1)
    assert "(mamba) keeps no key-value cache" in message
    assert not (tmp_path / "A").exists()


def test_corpora_that_cannot_be_trained_on(model_folder: Path, index: Path, tmp_path: Path) -> None:
    out = ("--model", model_folder, "--index", index, "--out", tmp_path / "A", *SIZES, *CUTTING)
    assert "expected DOCUMENTS or --questions FILE" in refused("train", *out)
    assert "no such file or folder" in refused("train", "nowhere", *out, code=1)
    (tmp_path / "short.txt").write_text("too short")
    message = refused("train", tmp_path / "short.txt", *out, code=1)
    assert "no document has 24 tokens" in message
    without = ("train", tmp_path / "short.txt", "--model", model_folder, "--out", tmp_path / "A")
    assert "--pattern append retrieves, but there is no index" in refused(*without)
    assert not (tmp_path / "A").exists()


def test_a_terminal_sees_progress(command: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Console(file=io.StringIO(), force_terminal=True, width=200)
    for module in ("console", "train"):
        monkeypatch.setattr(f"flashback.cli.{module}.notes", shown)
    command()
    assert isinstance(shown.file, io.StringIO)
    text = shown.file.getvalue()
    assert "windows of " in text
    assert "4/4" in text
    assert "targets/s" in text


# Several processes


def free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


def test_two_processes_train_what_one_does_with_twice_the_batch(
    command: Train, tmp_path: Path
) -> None:
    """And evaluate it alike; only one of them prints and writes."""
    exact = ("--dropout", "0", "--checkpoint-steps", "2", "--evaluation-steps", "3")
    more = (*exact, "--held-out", command.words[1], "--held-out-windows", "3", "--json")
    alone = command(*more).record
    words = (*command.words, *more, "--windows-per-step", "1", "--out", tmp_path / "B")
    # What torchrun sets.
    ranks = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    first, second = (
        start(
            *words,
            env=os.environ | ranks | {"RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"},
        )
        for rank in "01"
    )
    assert second.communicate(timeout=DEADLINE)[0] == b""
    printed, errors = first.communicate(timeout=DEADLINE)
    assert (first.returncode, second.returncode) == (0, 0), errors.decode()
    together = json.loads(printed)
    assert farthest(lora_weights(command.out), lora_weights(tmp_path / "B")) <= 1e-5
    assert kept(tmp_path / "B") == kept(command.out)
    assert len(together["results"]["log"]) == len(alone["results"]["log"])
    for one, other in zip(together["results"]["log"], alone["results"]["log"], strict=True):
        assert one == pytest.approx(other, abs=1e-4)
