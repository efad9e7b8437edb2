"""Adapters: merged exactly, onto the right model only, and nothing in them is ever executed."""

import json
import pickle
import shutil
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from command_line import refused, run
from families import FAMILIES, tiny_model
from flashback.cli.patterns import as_trained
from flashback.declared import AUTO
from flashback.engines.local import LocalEngine
from flashback.errors import AdapterError, FlashBackWarning
from flashback.loading import load
from flashback.patterns.frame import Frame
from flashback.patterns.registry import PATTERNS
from flashback.readers.adapted import adapter_folder, load_adapted
from flashback.readers.adapter import put_on
from flashback.readers.card import (
    CARD,
    CONFIG,
    FORMAT,
    WEIGHTS,
    AdapterCard,
    card_record,
    read_card,
)
from flashback.readers.fingerprint import base_of, fingerprint
from flashback.readers.load import MINI, load_reader
from flashback.readers.lora import add_lora, save_lora
from flashback.readers.lora_settings import LoraSettings, Marks
from flashback.readers.reader import Reader
from flashback.readers.shipped import adapter_path, shipped, shipped_adapters
from flashback.settings import FrameText, QueryForm, RetrievalSettings, Settings
from flashback.training.export import export
from flashback.training.model_card import model_card
from flashback.writing.generator import Generator
from tiny_readers import byte_tokenizer, tiny_reader
from trainings import full_model

TOLERANCE = 1e-5
"""Largest allowed difference of a logit."""
MARKS = (258, 259)
"""The first ids behind the byte tokenizer's."""
TEXT = torch.tensor([[0, 40, 41, 42, 258, 50, 60, 70, 259, 80, 90, 100]])
"""With marks around a passage."""
BARE_TEXT = torch.tensor([[0, 40, 41, 42, 50, 60, 70, 80, 90, 100]])
TRAINED_FOR = RetrievalSettings("append", stride=8, query_tokens=22, passage_tokens=40)
SMALL = ("--stride", "8", "--query-tokens", "22", "--passage-tokens", "40")


def card_of(reader: Reader, marks: Marks = Marks.TRAINED, **changes: Any) -> AdapterCard:
    """The card of an adapter that was never trained."""
    usual = AdapterCard(
        base=base_of(reader),
        pattern="append",
        marks=marks,
        mark_ids=None if marks is Marks.NONE else MARKS,
        echo_tokens=0,
        stride=TRAINED_FOR.stride,
        query_tokens=TRAINED_FOR.query_tokens,
        passage_tokens=TRAINED_FOR.passage_tokens,
        passages=TRAINED_FOR.passages,
        window_tokens=64,
    )
    return replace(usual, **changes)


def make_adapter(
    reader: Reader, folder: Path, marks: Marks = Marks.TRAINED, **changes: Any
) -> nn.Module:
    """An adapter with large random weights in a folder; returns the model it is still a part of."""
    card = card_of(reader, marks, **changes)
    model, _, _ = add_lora(reader, LoraSettings(marks=marks, dropout=0.0), seed=0)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    folder.mkdir(parents=True, exist_ok=True)
    save_lora(model, folder)
    (folder / CARD).write_text(card_record(card))
    return model.eval()


@torch.no_grad()
def logits(model: nn.Module, text: Tensor = TEXT) -> Tensor:
    found: Tensor = model(input_ids=text).logits
    return found


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def reader_of(family: str, full: bool) -> Reader:
    """A tiny reader; a full one has no embedding rows to spare."""
    return tiny_reader(family, model=full_model(family) if full else None)


SPARE_AND_FULL = pytest.mark.parametrize("full", [False, True], ids=["spare rows", "full"])


# Merged


@pytest.mark.parametrize("family", FAMILIES)
@SPARE_AND_FULL
def test_a_merged_adapter_computes_what_the_trained_model_did(
    family: str, full: bool, tmp_path: Path
) -> None:
    trained = make_adapter(reader_of(family, full), tmp_path)
    before = logits(reader_of(family, full=False).model)[..., : MARKS[0]]
    merged = put_on(reader_of(family, full), tmp_path)
    found = logits(merged.model)
    assert difference(found, logits(trained)) <= TOLERANCE
    assert (found[..., : MARKS[0]] - before).abs().max() > 0.1
    assert not merged.model.training


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("marks", [Marks.FROZEN, Marks.NONE])
@SPARE_AND_FULL
def test_so_do_adapters_with_frozen_marks_and_without(
    family: str, marks: Marks, full: bool, tmp_path: Path
) -> None:
    """The rows of frozen marks are kept too: a full reader has no others."""
    text = BARE_TEXT if marks is Marks.NONE else TEXT
    trained = make_adapter(reader_of(family, full), tmp_path, marks)
    merged = put_on(reader_of(family, full), tmp_path)
    assert difference(logits(merged.model, text), logits(trained, text)) <= TOLERANCE


def test_rows_of_frozen_marks_are_those_of_the_training(tmp_path: Path) -> None:
    torch.manual_seed(5)
    trained = make_adapter(reader_of("llama", full=True), tmp_path, Marks.FROZEN)
    torch.manual_seed(6)
    merged = put_on(reader_of("llama", full=True), tmp_path)
    inner: Any = trained
    rows = inner.get_base_model().get_input_embeddings().weight
    assert torch.equal(embedding(merged.model)[list(MARKS)], rows[list(MARKS)])


def embedding(model: PreTrainedModel) -> Tensor:
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Every weight by name, once."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
@SPARE_AND_FULL
def test_only_lora_targets_and_marking_rows_differ_from_the_base(
    family: str, full: bool, tmp_path: Path
) -> None:
    make_adapter(reader_of(family, full), tmp_path)
    base = reader_of(family, full)
    before = weights(base.model)
    tied = base.model.get_output_embeddings().weight is embedding(base.model)
    table = next(
        name for name, weight in before.items() if weight.shape == embedding(base.model).shape
    )
    merged = put_on(base, tmp_path)
    after = weights(merged.model)
    assert after.keys() == before.keys()
    targets = json.loads((tmp_path / CONFIG).read_text())["target_modules"]
    for name, weight in before.items():
        if any(name.endswith(f".{target}.weight") for target in targets):
            assert not torch.equal(after[name], weight)
        elif weight.shape[0] in (258, 300):  # a row for every token, in the head too
            assert torch.equal(after[name][:258], weight[:258])
            assert torch.equal(after[name][260:], weight[260:])
        else:
            assert torch.equal(after[name], weight), name
    if not full:
        assert not torch.equal(after[table][258:260], before[table][258:260])
    head = merged.model.get_output_embeddings().weight
    assert (head is embedding(merged.model)) == tied


@pytest.mark.parametrize("family", ["opt", "llama"])
def test_the_second_of_two_loads_is_the_first(family: str, tmp_path: Path) -> None:
    """Rows that are drawn anew, a head's for marks among them, are drawn alike."""
    make_adapter(reader_of(family, True), tmp_path)
    first = put_on(reader_of(family, True), tmp_path)
    torch.manual_seed(99)
    second = put_on(reader_of(family, True), tmp_path)
    found = weights(second.model)
    for name, weight in weights(first.model).items():
        assert torch.equal(found[name], weight)


def test_an_adapter_is_merged_into_bfloat16_weights(model_folder: Path, tmp_path: Path) -> None:
    make_adapter(load_reader(str(model_folder), dtype="float32", device="cpu"), tmp_path)
    exact = put_on(load_reader(str(model_folder), dtype="float32", device="cpu"), tmp_path)
    coarse = put_on(load_reader(str(model_folder), dtype="bfloat16", device="cpu"), tmp_path)
    assert {weight.dtype for weight in coarse.model.parameters()} == {torch.bfloat16}
    found = dict(coarse.model.named_parameters())
    for name, weight in exact.model.named_parameters():
        assert (found[name].float() - weight).abs().max() <= weight.abs().max() / 128


# Exported


PLAIN = """
    import json, sys

    sys.modules["flashback"] = None  # any import of it fails
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    found = {}
    for name, ids in json.loads(sys.argv[1]).items():
        model, report = AutoModelForCausalLM.from_pretrained(name, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"], report
        found[name] = model(input_ids=torch.tensor(ids)).logits.detach()
        marks = AutoTokenizer.from_pretrained(name)("<MARK_L>a<MARK_R>", add_special_tokens=False)
        found[name + " marks"] = torch.tensor(marks["input_ids"])
    save_file(found, sys.argv[2])
"""
"""Loads folders as software that knows nothing of us does, and writes down their logits."""


def test_plain_transformers_computes_the_same_with_an_export(tmp_path: Path) -> None:
    expected: dict[str, Tensor] = {}
    for family, full in [("gpt2", True), ("opt", False), ("gpt_neox", True), ("llama", False)]:
        adapter, out = tmp_path / f"{family}-adapter", tmp_path / family
        trained = make_adapter(reader_of(family, full), adapter)
        export(put_on(reader_of(family, full), adapter), out)
        expected[str(out)] = logits(trained)
        assert (out / "model.safetensors").stat().st_mode & 0o777 == 0o644
    texts = json.dumps(dict.fromkeys(expected, TEXT.tolist()))
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(PLAIN), texts]
    subprocess.run([*command, str(tmp_path / "found")], check=True, timeout=280)
    found = load_file(tmp_path / "found")
    for name, trained_logits in expected.items():
        assert difference(found[name], trained_logits) <= TOLERANCE
        left, right = MARKS
        assert found[f"{name} marks"].tolist() == [
            left,
            byte_tokenizer()("a")["input_ids"][1],
            right,
        ]


@pytest.mark.filterwarnings("ignore:.* passages looked at are longer")
def test_an_export_and_its_adapter_write_the_same(
    model_folder: Path, index: Path, tmp_path: Path
) -> None:
    adapter, out = tmp_path / "adapter", tmp_path / "merged"
    make_adapter(load_reader(str(model_folder), device="cpu", dtype="float32"), adapter)
    exact = ("--device", "cpu", "--dtype", "float32")
    outcome = run("export", "--model", model_folder, "--adapter", adapter, "--out", out, *exact)
    assert outcome.out == f"{out}: {model_folder} with {adapter} in it, float32\n"
    assert outcome.err == ""
    words = (*SMALL, *exact, "--index", index, "--max-new-tokens", "24", "--json", "moon, moon:")
    base = ("generate", "--model", model_folder)
    adapted = run(*base, "--adapter", adapter, *words).record
    exported = run("generate", "--model", out, *words).record
    plain = run(*base, *words).record
    assert adapted["tokens"] == exported["tokens"] != plain["tokens"]
    arranged = [stride["arranged"] for stride in adapted["strides"]]
    assert arranged == [stride["arranged"] for stride in exported["strides"]]
    assert all(ids.count(MARKS[0]) == ids.count(MARKS[1]) == 1 for ids in arranged)


def test_an_export_never_replaces_anything(model_folder: Path, tmp_path: Path) -> None:
    reader = load_reader(str(model_folder), device="cpu", dtype="float32")
    adapter = tmp_path / "adapter"
    make_adapter(reader, adapter)
    words = ("export", "--model", model_folder, "--adapter", adapter, "--out")
    assert "not empty; choose another --out" in refused(*words, model_folder, code=1)
    assert "a file is in the way" in refused(*words, adapter / CARD, code=1)
    empty = tmp_path / "empty"
    empty.mkdir()
    run(*words, empty)
    assert load_reader(str(empty)).marks == MARKS
    absent = ("export", "--model", model_folder, "--out", tmp_path / "E", "--adapter")
    assert "adapter nowhere: no such folder" in refused(*absent, "nowhere", code=1)
    assert "--adapter auto: none ships for" in refused(*absent, "auto")
    assert not (tmp_path / "E").exists()


@pytest.mark.parametrize("writer", ["transformers.modeling_utils.safe_save_file", "os.replace"])
def test_an_export_that_fails_leaves_nothing(
    writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    def fail(*_: object, **__: object) -> None:
        raise SafetensorError("No space left") if "safe" in writer else OSError(28, "No space left")

    make_adapter(tiny_reader(), tmp_path / "adapter")
    reader = put_on(tiny_reader(), tmp_path / "adapter")
    monkeypatch.setattr(writer, fail)
    with pytest.raises(OSError, match="No space left"):
        export(reader, tmp_path / "out" / "merged")
    assert list((tmp_path / "out").iterdir()) == []


# Marks and frames


@pytest.mark.parametrize("marks", [Marks.TRAINED, Marks.FROZEN])
def test_marks_of_an_adapter_are_the_frame_and_are_never_written(
    marks: Marks, tmp_path: Path
) -> None:
    make_adapter(tiny_reader(), tmp_path, marks, echo_tokens=3)
    reader = put_on(tiny_reader(), tmp_path)
    assert reader.forbidden == MARKS
    assert reader.frame(None, "append") == Frame((MARKS[0],), (MARKS[1],), 3, sink=(0,))
    assert reader.decode([*MARKS]) == ""


def test_an_adapter_without_marks_has_bare_passages(tmp_path: Path) -> None:
    make_adapter(tiny_reader(), tmp_path, Marks.NONE)
    size = len(tiny_reader().tokenizer)
    reader = put_on(tiny_reader(), tmp_path)
    assert reader.forbidden == ()
    assert reader.frame(None, "append") == Frame(sink=(0,))
    assert len(tiny_reader().frame(None, "append")) > 0
    assert len(reader.tokenizer) == size
    assert embedding(reader.model).shape[0] == 300


def mark_lover() -> PreTrainedModel:
    """A model that wants one of the marks next, always."""
    model = tiny_model("llama")
    head: Any = model.get_output_embeddings()
    with torch.no_grad():
        left, right = MARKS
        head.weight[left] *= 1000
        head.weight[right] = -head.weight[left]
    return model


def test_marks_are_never_generated(tmp_path: Path) -> None:
    make_adapter(tiny_reader(model=mark_lover()), tmp_path)
    reader = put_on(tiny_reader(model=mark_lover()), tmp_path)
    assert torch.isin(logits(reader.model).argmax(-1), torch.tensor(MARKS)).all()
    retrieval = replace(TRAINED_FOR, pattern="none")
    generator = Generator(reader, LocalEngine(reader.model, reader.window), None)
    with pytest.warns(FlashBackWarning):
        tokens = generator.generate("abc", Settings(retrieval)).tokens
    assert tokens
    assert not set(tokens) & set(MARKS)


# Refused


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good adapter of the tiny Llama."""
    folder = tmp_path_factory.mktemp("adapters") / "whole"
    make_adapter(tiny_reader(), folder)
    return folder


@pytest.fixture
def broken(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to be broken."""
    return Path(shutil.copytree(whole, tmp_path / "broken"))


def why_refused(folder: Path, reader: Reader | None = None) -> str:
    """The one line that refuses an adapter."""
    with pytest.raises(AdapterError) as caught:
        put_on(reader or tiny_reader(), folder)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"adapter {folder}")
    return message


Damage = Callable[[Path], object]


def rewrite(name: str, text: str | bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(
        text.encode() if isinstance(text, str) else text
    )


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def change(name: str, **values: Any) -> Damage:
    """Other values in a JSON file."""

    def damage(folder: Path) -> None:
        record = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(record | values))

    return damage


def without(name: str, key: str) -> Damage:
    def damage(folder: Path) -> None:
        record = json.loads((folder / name).read_text())
        del record[key]
        (folder / name).write_text(json.dumps(record))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove(CARD), f"no {CARD} in it; expected a folder made by `flashback train`"),
        (remove(CONFIG), f"no {CONFIG} in it"),
        (remove(WEIGHTS), f"no {WEIGHTS} in it"),
        (rewrite(CARD, ""), f"{CARD} is damaged (JSONDecodeError"),
        (rewrite(CARD, "{"), f"{CARD} is damaged"),
        (rewrite(CARD, "[]"), f"{CARD} is damaged"),
        (rewrite(CARD, "5"), f"{CARD} is damaged"),
        (rewrite(CARD, "null"), f"{CARD} is damaged"),
        (rewrite(CARD, b"\xff\xfe{"), f"{CARD} is damaged (UnicodeDecodeError"),
        (rewrite(CARD, "[" * 100_000), f"{CARD} is damaged (RecursionError"),
        (without(CARD, "format"), "is damaged (KeyError: 'format')"),
        (without(CARD, "base"), "is damaged (KeyError: 'base')"),
        (without(CARD, "mark_ids"), "is damaged (KeyError: 'mark_ids')"),
        (without(CARD, "stride"), "is damaged (TypeError"),
        (change(CARD, format=3), "format 3, but this version reads 2"),
        (change(CARD, format="1"), "format 1, but this version reads 2"),
        (
            change(CARD, format=1, pattern="slot"),
            "trained for a slot as it was in an earlier version",
        ),
        (change(CARD, base=5), "is damaged"),
        (change(CARD, query_form="words"), "is damaged (ValueError: 'words' is not a valid"),
        (change(CARD, base={"name": 1, "model_type": "x", "fingerprint": "x"}), "name of the base"),
        (change(CARD, base={"name": "x", "model_type": "x", "fingerprint": 7}), "fingerprint of"),
        (change(CARD, pattern="sideways"), "the pattern is 'sideways'"),
        (change(CARD, marks="loud"), "'loud' is not a valid Marks"),
        (change(CARD, marks="none"), "none marks with the ids (258, 259)"),
        (change(CARD, mark_ids=None), "trained marks with the ids None"),
        (change(CARD, mark_ids=[258]), "is damaged (IndexError"),
        (change(CARD, mark_ids=[float("inf"), 1]), "is damaged (OverflowError"),
        (change(CARD, mark_ids={"a": 1}), "is damaged (KeyError"),
        (change(CARD, stride="8"), "stride is '8'"),
        (change(CARD, passages=None), "passages is None"),
    ],
)
def test_cards_that_are_damaged(damage: Damage, message: str, broken: Path) -> None:
    damage(broken)
    assert message in why_refused(broken)


def truncate(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def change_weights(change: Callable[[dict[str, Tensor]], object]) -> Damage:
    def damage(folder: Path) -> None:
        found = load_file(folder / WEIGHTS)
        change(found)
        save_file(found, folder / WEIGHTS)

    return damage


FIRST_B = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
ROWS = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (rewrite(CONFIG, "{"), "cannot be put onto the model: Expecting property name"),
        (rewrite(CONFIG, "[]"), "cannot be put onto the model"),
        (change(CONFIG, peft_type="IA3"), f"{CONFIG} says IA3, expected LORA"),
        (without(CONFIG, "peft_type"), "cannot be put onto the model: 'peft_type' (KeyError)"),
        (without(CONFIG, "r"), "cannot be put onto the model: 'r' (KeyError)"),
        (change(CONFIG, r=0), "cannot be put onto the model"),
        (change(CONFIG, r=8), "cannot be put onto the model: Error(s) in loading state_dict"),
        (change(CONFIG, target_modules=["nonsuch"]), "cannot be put onto the model"),
        (change(CONFIG, target_modules="q_proj"), "cannot be put onto the model"),
        (change(CONFIG, target_modules=["q_proj"]), f"{WEIGHTS} has "),
        (
            change(CONFIG, trainable_token_indices=[7, 8]),
            f"the token rows [7, 8], {CARD} (258, 259)",
        ),
        (change(CONFIG, trainable_token_indices=None), f"the token rows None, {CARD} (258, 259)"),
        (rewrite(WEIGHTS, b""), "cannot be put onto the model: Error while deserializing header"),
        (rewrite(WEIGHTS, b"\x80\x04garbage"), "cannot be put onto the model"),
        (truncate, "cannot be put onto the model"),
        (change_weights(lambda found: found.pop(FIRST_B)), f"{WEIGHTS} lacks {FIRST_B}"),
        (change_weights(lambda found: found.pop(ROWS)), f"{WEIGHTS} lacks {ROWS}"),
        (change_weights(lambda found: found.update(x=torch.ones(1))), f"{WEIGHTS} has x, unlike"),
        (change_weights(lambda found: found[FIRST_B].fill_(torch.nan)), "NaNs detected"),
        (
            change_weights(lambda found: found.update({FIRST_B: torch.ones(3, 3)})),
            "cannot be put onto the model: Error(s) in loading state_dict",
        ),
    ],
)
def test_weights_that_are_damaged(damage: Damage, message: str, broken: Path) -> None:
    damage(broken)
    assert message in why_refused(broken)


def test_folders_that_are_no_adapter(model_folder: Path, tmp_path: Path) -> None:
    assert "no such folder; make it with `flashback train`" in why_refused(tmp_path / "absent")
    assert "no such folder" in why_refused(model_folder / "config.json")
    assert f"no {CARD} in it" in why_refused(model_folder)


def test_an_adapter_of_another_model_is_refused(whole: Path, model_folder: Path) -> None:
    for other in (
        tiny_reader("mistral"),  # of the same shapes
        tiny_reader("gpt2"),
        tiny_reader(model=tiny_model("llama", seed=1)),
        put_on(tiny_reader(), whole),  # once is enough
    ):
        message = why_refused(whole, other)
        assert "was trained on llama (llama, " in message
        assert f"but {other.name} ({other.model.config.model_type}, " in message
        assert "is another model; load the adapter's own" in message


def test_a_tokenizer_with_other_marks_is_refused(whole: Path) -> None:
    reader = tiny_reader()
    reader.tokenizer.add_tokens(["<one more>"], special_tokens=True)
    message = why_refused(whole, reader)
    assert "its marking tokens are (258, 259), but this tokenizer gives them (259, 260)" in message


def test_a_refused_adapter_is_one_line_of_the_command(
    model_folder: Path, whole: Path, broken: Path
) -> None:
    words = ("generate", "--model", model_folder, "--pattern", "none", *SMALL, "x", "--adapter")
    truncate(broken)
    assert "cannot be put onto the model" in refused(*words, broken, code=1)
    assert "no such folder; make it" in refused(*words, "nowhere", code=1)
    unloadable = ("generate", "--model", "./nowhere", "--pattern", "none", "x", "--adapter")
    assert "adapter elsewhere: no such folder" in refused(*unloadable, "elsewhere", code=1)


# Nothing is executed


class Malicious:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self._trace, "executed"))


def test_nothing_in_an_adapter_is_unpickled_or_imported(
    whole: Path, broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = tmp_path / "trace"
    payload = pickle.dumps(Malicious(trace))
    for name in ("adapter_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth"):
        (broken / name).write_bytes(payload)
    (broken / "megatron").mkdir()
    (broken / "megatron" / "__init__.py").write_text(f"open({str(trace)!r}, 'w')")
    monkeypatch.syspath_prepend(broken)  # as if the program ran in that folder
    change(
        CONFIG,
        megatron_config={"a": 1},
        megatron_core="megatron.core",  # which PEFT imports
        auto_mapping={"base_model_class": "Planted", "parent_library": "megatron"},
        init_lora_weights="pissa",
    )(broken)
    expected = fingerprint(put_on(tiny_reader(), whole).model)
    assert fingerprint(put_on(tiny_reader(), broken).model) == expected
    (broken / WEIGHTS).rename(broken / "adapter_model.pkl")
    assert f"no {WEIGHTS} in it" in why_refused(broken)
    (broken / WEIGHTS).write_bytes(payload)
    assert "cannot be put onto the model" in why_refused(broken)
    assert not trace.exists()
    pickle.loads(payload)
    assert trace.exists()  # it would have


# Fingerprints


def test_a_fingerprint_is_the_same_in_every_dtype(model_folder: Path) -> None:
    exact, coarse = (
        fingerprint(load_reader(str(model_folder), dtype=dtype).model)
        for dtype in ("float32", "bfloat16")
    )
    assert exact == coarse == fingerprint(tiny_model("llama"))


def perturb_all(model: PreTrainedModel) -> None:
    for weight in model.parameters():
        weight.add_(0.01 * weight.abs().max() * torch.randn_like(weight))


def perturb_a_norm(model: PreTrainedModel) -> None:
    dict(model.named_parameters())["model.norm.weight"][3] += 0.1


def swap_layers(model: PreTrainedModel) -> None:
    named = dict(model.named_parameters())
    first, second = (named[f"model.layers.{n}.mlp.up_proj.weight"] for n in (0, 1))
    kept = first.clone()
    first.copy_(second)
    second.copy_(kept)


@pytest.mark.parametrize("perturb", [perturb_all, perturb_a_norm, swap_layers])
def test_a_fingerprint_tells_models_apart(perturb: Callable[[PreTrainedModel], None]) -> None:
    model = tiny_model("llama")
    before = fingerprint(model)
    with torch.no_grad():
        perturb(model)
    assert fingerprint(model) != before


def test_weights_of_real_models_have_fingerprints() -> None:
    """More values than float32 can count, as every embedding of some size has."""
    config = GPT2Config(vocab_size=2**20 + 1, n_embd=16, n_layer=1, n_head=1, n_positions=8)
    model = GPT2LMHeadModel(config)
    before = fingerprint(model)
    with torch.no_grad():
        model.transformer.wte.weight[-1, -1] += 1
    assert fingerprint(model) != before


def test_fingerprints_of_families_differ() -> None:
    assert len({fingerprint(tiny_model(family)) for family in FAMILIES}) == len(FAMILIES)


# Warnings


def adapted_generator(adapter: Path, model_folder: Path, index: Path) -> Any:
    return load(str(model_folder), index, adapter=adapter, device="cpu", dtype="float32")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"min_score": 1.0}, None),
        ({"forbid_titles": ("x",)}, None),
        ({"pattern": "prepend"}, "pattern append, not prepend"),
        ({"pattern": "none"}, "pattern append, not none"),
        ({"stride": 4}, "stride 8, not 4"),
        ({"query_tokens": 10}, "query tokens 22, not 10"),
        ({"query_form": QueryForm.SENTENCE}, "query form tokens, not sentence"),
        ({"passage_tokens": 30}, "passage tokens 40, not 30"),
        ({"passages": 2}, "passages 1, not 2"),
        ({"stride": 4, "passages": 2}, "stride 8, not 4; passages 1, not 2"),
        ({"frame": FrameText("[", "]")}, "marking tokens around passages, not a text"),
        ({"frame": FrameText(echo_tokens=9)}, "echo tokens 0, not 9"),
    ],
)
def test_a_warning_says_what_an_adapter_was_not_trained_for(
    change: dict[str, Any], message: str | None, model_folder: Path, index: Path, whole: Path
) -> None:
    generator = adapted_generator(whole, model_folder, index)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        generator.stream("moon", Settings(replace(TRAINED_FOR, **change))).close()
    found = [str(one.message) for one in caught if one.category is FlashBackWarning]
    expected = (
        [] if message is None else [f"the adapter on {model_folder} was trained for {message}"]
    )
    assert found == expected
    assert all(one.filename == __file__ for one in caught)


def test_a_baseline_minds_its_pattern_only(model_folder: Path, index: Path, tmp_path: Path) -> None:
    """Strides and passages mean nothing to what was trained without them."""
    make_adapter(tiny_reader(), tmp_path, Marks.NONE, pattern="none")
    generator = adapted_generator(tmp_path, model_folder, index)
    elsewhere = replace(TRAINED_FOR, pattern="none", stride=4, passage_tokens=9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generator.stream("moon", Settings(elsewhere)).close()
    with pytest.warns(FlashBackWarning, match="pattern none, not append"):
        generator.stream("moon", Settings(TRAINED_FOR)).close()


@pytest.mark.filterwarnings("ignore:.* passages looked at are longer")
def test_the_warning_is_one_line_of_the_command(
    model_folder: Path, notes: Path, tmp_path: Path, whole: Path
) -> None:
    index = tmp_path / "IDX"
    fitting = ("--model", model_folder, "--passage-tokens", "40")
    run("index", notes, "--out", index, *fitting)  # so that nothing is said of its passages
    words = ("generate", "--model", model_folder, "--index", index, "--adapter", whole, *SMALL)
    short = ("--max-new-tokens", "2", "moon")
    assert run(*words, *short).err == ""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", ".* passages looked at are longer")
        err = run(*words, "--passages", "2", *short).err
    assert err == (
        f"flashback: warning: the adapter on {model_folder} was trained for passages 1, not 2\n"
    )


# Automatic


@pytest.fixture
def ships(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An adapter that ships for the reader of the package."""
    folder = tmp_path / f"{MINI}-adapter"
    shutil.copytree(whole, folder)
    monkeypatch.setattr("flashback.readers.adapted.shipped", lambda name: tmp_path / name)
    return folder


def test_auto_is_the_adapter_that_ships_for_the_pattern(ships: Path) -> None:
    assert adapter_folder(MINI, "auto") == ships
    assert adapter_folder(MINI, "auto", "append") == ships
    assert adapter_folder(MINI, "auto", "prepend") is None
    assert adapter_folder(MINI, "auto", "none") is None
    assert adapter_folder("facebook/opt-125m", "auto") is None
    assert adapter_folder(str(ships), "auto", "append") is None


def test_a_reader_whose_pattern_is_not_named_is_loaded_without_what_ships(
    monkeypatch: pytest.MonkeyPatch, ships: Path
) -> None:
    shutil.copytree(ships, ships.parent / "smollm2-adapter")
    monkeypatch.setattr("flashback.readers.adapted.load_reader", lambda *_, **__: tiny_reader())
    assert adapter_folder("smollm2", "auto", "append") == ships.parent / "smollm2-adapter"
    assert load_adapted("smollm2").adapter is None
    for pattern in (AUTO, "slot"):
        assert load_adapted("smollm2", pattern=pattern).adapter is None
    adapted = load_adapted("smollm2", pattern="append").adapter
    assert adapted == read_card(ships)


def test_what_is_given_is_taken_whatever_ships(ships: Path) -> None:
    for pattern in (None, AUTO, *PATTERNS):
        assert adapter_folder(MINI, None, pattern) is None
        assert adapter_folder(MINI, "elsewhere", pattern) == Path("elsewhere")
        assert adapter_folder("m", Path("elsewhere"), pattern) == Path("elsewhere")


def test_an_adapter_that_ships_is_found_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{MINI}-adapter"
    assert name in shipped_adapters()
    assert adapter_folder("m", name) == adapter_path(name) == shipped(name)
    for one in shipped_adapters():
        assert read_card(adapter_path(one)).pattern == "append"
    for other in (MINI, f"../weights/{name}", "elsewhere-adapter"):
        assert adapter_path(other) == Path(other)
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()  # a user's own
    assert adapter_path(name) == Path(name)


def test_auto_is_nothing_where_nothing_ships(ships: Path) -> None:
    shutil.rmtree(ships)
    assert adapter_folder(MINI, "auto", "append") is None


def test_a_shipped_adapter_that_is_damaged_is_not_passed_over(ships: Path) -> None:
    (ships / CARD).write_text("{")
    with pytest.raises(AdapterError, match="damaged"):
        adapter_folder(MINI, "auto", "append")


def test_the_card_of_a_folder_is_what_was_written(whole: Path) -> None:
    assert read_card(whole) == card_of(tiny_reader())


def test_an_adapter_without_retrieval_needs_no_index(tmp_path: Path) -> None:
    retrieval = RetrievalSettings(stride=7)
    for pattern in PATTERNS:
        folder = Path(shutil.copytree(shipped(f"{MINI}-adapter"), tmp_path / pattern))
        record = json.loads((folder / CARD).read_text())
        (folder / CARD).write_text(json.dumps(record | {"pattern": str(pattern), "format": FORMAT}))
        assert as_trained(retrieval, str(folder)) == replace(retrieval, pattern=pattern)
        prepended = replace(retrieval, pattern="prepend")
        assert as_trained(prepended, str(folder)) == prepended
    shipped_one = as_trained(retrieval, f"{MINI}-adapter")
    assert shipped_one == replace(retrieval, pattern="append")
    assert as_trained(retrieval, "auto") == as_trained(retrieval, None) == retrieval


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_card_says_where_passages_stand_and_how_to_write(pattern: str) -> None:
    readme = model_card(replace(card_of(tiny_reader()), pattern=pattern))
    (command,) = (line for line in readme.splitlines() if line.startswith("flashback generate"))
    assert f"--pattern {pattern} " in command
    assert ("--index" in command) == PATTERNS[pattern].retrieves
    assert ("It reads a retrieved passage" in readme) == PATTERNS[pattern].retrieves
    assert ("in a slot" in readme) == (pattern == "slot")
