"""`flashback eval` and `flashback reproduce` as researchers meet them: tables, files, refusals."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import MambaConfig, MambaForCausalLM

from command_line import Outcome, refused, run
from families import tiny_model
from flashback.cli.tables import print_table
from flashback.retrieval.fusion import FusedRetriever
from flashback.training.train import train
from small_corpora import FITS, Corpora
from tiny_readers import byte_tokenizer

TRAINING = ("--steps", "2", "--windows-per-step", "2", "--learning-rate", "0.02")
ROWS = [
    "none",
    "none (shortened)",
    "prepend (bare)",
    "prepend (text)",
    "prepend (eos)",
    "append (bare)",
    "append (text)",
    "append (eos)",
    "append (text, echo)",
    "slot (bare)",
    "slot (text)",
    "slot (eos)",
    "none + LoRA",
    "prepend + LoRA",
    "prepend + LoRA, frozen marks",
    "prepend + LoRA, trained marks",
    "append + LoRA",
    "append + LoRA, frozen marks",
    "append + LoRA, trained marks",
    "slot + LoRA",
    "slot + LoRA, trained marks",
]
"""Of the paper's table, in its order, and of the slot."""
ADAPTERS = [
    "none",
    *(
        f"{pattern}-{marks}"
        for pattern in ("prepend", "append")
        for marks in ("none", "frozen", "trained")
    ),
    "slot-none",
    "slot-trained",
]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Corpora:
    return Corpora(tmp_path_factory.mktemp("corpora"))


class Eval:
    """`flashback eval` with what every call needs."""

    def __init__(self, model: Path, corpora: Corpora) -> None:
        self.words = ("eval", corpora.scored, "--model", model, *FITS)
        self.index: tuple[str | Path, ...] = ("--index", corpora.index)

    def __call__(self, *more: str | Path, code: int = 0) -> Outcome:
        return run(*self.words, *self.index, *more, code=code)

    def record(self, *more: str | Path) -> Any:
        return self(*more, "--json").record

    def refused(self, *more: str | Path, code: int = 2) -> str:
        return refused(*self.words, *self.index, *more, code=code)


@pytest.fixture
def evaluate(model_folder: Path, corpora: Corpora) -> Eval:
    return Eval(model_folder, corpora)


class Reproduce:
    """`flashback reproduce` with what every call needs."""

    def __init__(self, model: Path, corpora: Corpora) -> None:
        self.words = (
            *("reproduce", "--train", corpora.trained, "--evaluate", corpora.scored),
            *("--index", corpora.index, "--model", model, *FITS, *TRAINING),
        )

    def __call__(self, out: str | Path, *more: str | Path, code: int = 0) -> Outcome:
        return run(*self.words, "--out", out, *more, code=code)

    def refused(self, out: str | Path, *more: str | Path, code: int = 1) -> str:
        return refused(*self.words, "--out", out, *more, code=code)


@pytest.fixture(scope="module")
def reproduce(model_folder: Path, corpora: Corpora) -> Reproduce:
    return Reproduce(model_folder, corpora)


@pytest.fixture(scope="module")
def reproduced(
    reproduce: Reproduce, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Outcome]:
    """A finished reproduction and what it printed; not to be changed."""
    out = tmp_path_factory.mktemp("reproduced") / "made" / "TABLE"
    return out, reproduce(out, "--json")


@pytest.fixture
def adapter(reproduced: tuple[Path, Outcome]) -> Path:
    return reproduced[0] / "adapters" / "append-trained"


# Evaluation


def test_the_json_has_a_row_for_every_pattern(evaluate: Eval, adapter: Path) -> None:
    record = evaluate.record("--adapter", adapter)
    assert record.keys() == {
        *("settings", "documents", "tokens", "contamination", "rows"),
        *("failed_lookups", "audit"),
    }
    assert [(row["pattern"], row["training"], row["marks"]) for row in record["rows"]] == [
        ("none", "none", "none"),
        ("prepend", "none", "none"),
        ("append", "none", "none"),
        ("append", "none", "none"),
        ("slot", "none", "none"),
        ("none", "lora", "trained"),
        ("prepend", "lora", "trained"),
        ("append", "lora", "trained"),
        ("slot", "lora", "trained"),
    ]
    for row in record["rows"]:
        assert row.keys() == {
            *("name", "pattern", "training", "marks", "frame", "adapter", "trained_for"),
            *("context", "passages", "perplexity", "low", "high", "tokens", "word_perplexity"),
            *("bits_per_byte", "against_first_row"),
        }
        assert 1 < row["low"] < row["perplexity"] < row["high"]
        assert row["tokens"] == record["tokens"] > 0
        assert row["adapter"] == (str(adapter) if row["training"] == "lora" else None)
    assert len({row["name"] for row in record["rows"]}) == 9
    assert len({row["perplexity"] for row in record["rows"]}) == 9
    assert record["documents"] == 3
    assert record["contamination"]["empty"] == 0
    settings = record["settings"]
    assert (settings["stride"], settings["resamples"], settings["protocol"]) == (8, 50, "windows")


def test_patterns_can_be_chosen_and_the_shortened_baseline_added(evaluate: Eval) -> None:
    words = ("--pattern", "append", "--pattern", "none", "--shortened")
    names = [row["name"] for row in evaluate.record(*words)["rows"]]
    assert names == ["append (text)", "append (text, echo)", "none", "none (shortened)"]


def test_a_slot_made_of_blocks_can_be_added(evaluate: Eval) -> None:
    words = ("--pattern", "none", "--pattern", "slot", "--slot-block", "16")
    rows = evaluate.record(*words)["rows"]
    assert [row["name"] for row in rows] == ["none", "slot (text)", "slot (text, blocks of 16)"]
    assert rows[1]["perplexity"] != rows[2]["perplexity"]
    none_words = ("--pattern", "none", "--slot-block", "16")
    assert "no slot is scored; add --pattern slot" in evaluate(*none_words, code=2).err


def test_two_calls_agree(evaluate: Eval) -> None:
    assert evaluate.record() == evaluate.record()


def test_no_retrieval_needs_no_index(evaluate: Eval, tmp_path: Path) -> None:
    whole = evaluate.record()
    for evaluate.index in ((), ("--index", tmp_path / "nowhere")):
        record = evaluate.record("--pattern", "none")
        (row,) = record["rows"]
        assert row == whole["rows"][0]
        assert "First passages" not in evaluate("--pattern", "none").out


def test_a_reader_with_marks_is_shown_them(
    model_folder: Path, corpora: Corpora, tmp_path: Path
) -> None:
    """As an exported adapter is: it was trained to see them."""
    shutil.copytree(model_folder, tmp_path / "marked")
    byte_tokenizer(marks=True).save_pretrained(tmp_path / "marked")
    record = Eval(tmp_path / "marked", corpora).record()
    assert [row["name"] for row in record["rows"]] == [
        "none",
        *(f"{pattern} (marks)" for pattern in ("prepend", "append", "slot")),
    ]


@pytest.mark.parametrize("protocol", ["windows", "random", "sliding"])
def test_windows_are_drawn_and_contexts_made_as_asked(protocol: str, evaluate: Eval) -> None:
    words = ("--pattern", "none", "--protocol", protocol, "--max-windows", "1")
    found = [evaluate.record(*words, "--window-seed", str(seed)) for seed in range(4)]
    assert [one["settings"]["window_seed"] for one in found] == [0, 1, 2, 3]
    assert {(one["settings"]["protocol"], one["documents"]) for one in found} == {(protocol, 1)}
    assert len({one["rows"][0]["perplexity"] for one in found}) > 1


def test_titles_and_documents_can_be_forbidden(evaluate: Eval, corpora: Corpora) -> None:
    titles = [json.loads(line)["title"] for line in corpora.others.read_text().splitlines()]
    flags = [word for title in titles[1:] for word in ("--forbid-title", title)]
    record = evaluate.record(*flags)
    assert record["settings"]["forbid_titles"] == titles[1:]
    assert record["rows"][1:] != evaluate.record()["rows"][1:]


def test_a_missing_cache_folder_is_no_reason_to_fail(
    evaluate: Eval, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = evaluate.record()["rows"]
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    outcome = evaluate("--json")
    assert json.loads(outcome.out)["rows"] == rows
    assert outcome.err.endswith("lookups are not kept\n")


def test_lookups_in_several_indexes_are_kept(
    evaluate: Eval, corpora: Corpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "OTHER"
    run("index", corpora.trained, "--out", other)
    rows = evaluate.record("--index", other)["rows"]
    monkeypatch.setattr(FusedRetriever, "search", None)
    assert evaluate.record("--index", other)["rows"] == rows


# What is shown


def test_the_audit_says_what_shown_passages_have_in_common_with_the_documents(
    evaluate: Eval, corpora: Corpora, tmp_path: Path
) -> None:
    clean = evaluate.record()["audit"]
    assert clean["verdicts"]["confirmed"] == 0
    assert clean["texts"] == 3
    assert 0 < clean["documents"] <= 12
    leaked = tmp_path / "leaked.jsonl"
    texts = [json.loads(line)["text"].split() for line in corpora.scored.read_text().splitlines()]
    first = " ".join(f"{' '.join(texts[0][at : at + 8])} aside{at}" for at in range(0, 40, 12))
    leaked.write_text(json.dumps({"id": "leak", "title": "Leak", "text": first}) + "\n", "utf-8")
    run("index", corpora.others, leaked, "--out", tmp_path / "LEAKS")
    evaluate.index = ("--index", tmp_path / "LEAKS")
    audit = evaluate.record()["audit"]
    assert sum(audit["verdicts"].values()) == audit["documents"]
    assert [one["document_id"] for one in audit["found"]] == ["leak"]
    assert audit["found"][0]["texts"] == ["scored0"]
    shown = evaluate().out
    assert "each against what it was shown for: none " in " ".join(shown.split())
    assert "the closest: Leak." in " ".join(shown.split())
    assert evaluate.record("--no-audit")["audit"] is None
    assert "Audit" not in evaluate("--no-audit").out
    assert evaluate.record("--pattern", "none")["audit"] is None


def test_a_table_that_was_scored_is_not_scored_again(
    evaluate: Eval, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--pattern", "none", "--pattern", "prepend", "--scores", tmp_path / "scores")
    table = evaluate.record(*words)
    monkeypatch.setattr("flashback.evaluation.evaluate.score", None)
    assert evaluate.record(*words) == table == evaluate.record(*words)


def test_scores_in_the_way_of_a_file_are_refused(evaluate: Eval, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    message = evaluate.refused("--scores", tmp_path / "file")
    assert "--scores" in message
    assert "expected the name of a folder" in message


def test_controls_are_rows_behind_those_of_what_was_found(evaluate: Eval) -> None:
    words = ("--pattern", "none", "--pattern", "prepend", "--control", "random")
    rows = evaluate.record(*words, "--control", "oracle", "--control", "random")["rows"]
    assert [row["name"] for row in rows] == [
        "none",
        "prepend (text)",
        "prepend (text, random passages)",
        "prepend (text, oracle passages)",
    ]
    assert len({row["perplexity"] for row in rows}) == 4
    assert rows[:2] == evaluate.record(*words[:4])["rows"]


def test_controls_without_passages_are_refused(evaluate: Eval) -> None:
    words = ("--pattern", "none", "--control", "random")
    assert "--control: no pattern with passages is scored; add one" in evaluate.refused(*words)


# Sweeps


def test_a_sweep_gives_a_table_for_every_combination(evaluate: Eval) -> None:
    record = evaluate.record("--sweep", "s=4,8", "--sweep", "k=1,2", "--passage-tokens", "20")
    tables = record["tables"]
    assert [(one["settings"]["stride"], one["settings"]["passages"]) for one in tables] == [
        (4, 1),
        (4, 2),
        (8, 1),
        (8, 2),
    ]
    assert len({one["tokens"] for one in tables}) == 1
    none, appended = ([one["rows"][at]["perplexity"] for one in tables] for at in (0, 2))
    assert none == pytest.approx([none[0]] * 4)
    assert len(set(appended)) == 4
    alone = evaluate.record("--passages", "2", "--passage-tokens", "20")
    assert alone["tokens"] == tables[3]["tokens"]
    expected = [row["perplexity"] for row in alone["rows"]]
    assert [row["perplexity"] for row in tables[3]["rows"]] == pytest.approx(expected)


def test_forms_of_queries_are_swept_on_the_same_targets(evaluate: Eval) -> None:
    record = evaluate.record("--sweep", "q=tokens,terms", "--passage-tokens", "20")
    tables = record["tables"]
    assert [one["settings"]["query_form"] for one in tables] == ["tokens", "terms"]
    none, appended = ([one["rows"][at]["perplexity"] for one in tables] for at in (0, 2))
    assert none[0] == none[1]
    assert appended[0] != appended[1]
    alone = evaluate.record("--query-form", "terms", "--passage-tokens", "20")
    assert alone["rows"] == tables[1]["rows"]


def test_a_sweep_of_one_value_is_a_sweep(evaluate: Eval) -> None:
    tables = evaluate.record("--sweep", "m=10,10")["tables"]
    assert [one["settings"]["passage_tokens"] for one in tables] == [10]


def test_a_sweep_is_printed_table_by_table(evaluate: Eval, model_folder: Path) -> None:
    lines = [line.rstrip() for line in evaluate("--sweep", "l=8,22").out.splitlines()]
    assert sum(line.startswith("append (text, echo)  ") for line in lines) == 2
    titles = "".join(lines)  # a long name is broken
    assert titles.count(str(model_folder)) == 2
    assert titles.index("l=8") < titles.index("l=22")


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (["x=1"], "--sweep x=1: expected s=, l=, m= or k= and numbers, such as s=4,8,16"),
        (["s"], "--sweep s: expected s="),
        (["s="], "--sweep s=: expected s="),
        (["s=a"], "--sweep s=a: expected whole numbers"),
        (["q=a"], "--sweep q=a: expected tokens, sentence, terms, message"),
        (["s=4,,8"], "--sweep s=4,,8: expected whole numbers"),
        (["s=4.5"], "expected whole numbers"),
        (["s=4", "s=8"], "--sweep s=8: s is swept already; name it once"),
        (["s=0"], "--stride 0: expected a whole number from 1"),
        (["k=-1"], "--passages -1: expected"),
        (["m=9999999"], "--passage-tokens 9999999: expected"),
        (["m=100"], "need 228 positions, but"),
        (["s=13,17"], "a stride of 221 (a multiple of all strides) do not fit"),
    ],
)
def test_sweeps_that_cannot_be(sweep: list[str], message: str, evaluate: Eval) -> None:
    words = [word for one in sweep for word in ("--sweep", one)]
    assert message in evaluate.refused(*words)


# Files


def test_documents_are_written_a_line_for_each_and_every_table(
    evaluate: Eval, tmp_path: Path
) -> None:
    path = tmp_path / "documents.jsonl"
    tables = evaluate.record("--per-document", path, "--sweep", "m=10,40")["tables"]
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [line["id"] for line in lines] == ["scored0", "scored1", "scored2"] * 2
    for table, own in zip(tables, (lines[:3], lines[3:]), strict=True):
        assert all(line["settings"] == table["settings"] for line in own)
        assert sum(line["tokens"] for line in own) == table["tokens"]
        assert own[0]["nats"].keys() == {row["name"] for row in table["rows"]}


@pytest.mark.parametrize("sweep", [(), ("--sweep", "s=4,8")])
def test_figures_of_tables_and_sweeps_are_drawn(
    sweep: tuple[str, ...], evaluate: Eval, tmp_path: Path
) -> None:
    plot = tmp_path / "figure.svg"
    evaluate("--plot", plot, *sweep)
    text = plot.read_text("utf-8")
    assert "append (text, echo)" in text
    assert ("<!-- s=8 -->" in text) == bool(sweep)


def test_a_table_is_printed_even_if_a_file_cannot_be_written(
    evaluate: Eval, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device", "documents.jsonl")

    monkeypatch.setattr("flashback.evaluation.report.write_documents", fail)
    outcome = evaluate("--per-document", tmp_path / "documents.jsonl", code=1)
    assert "append (text, echo)" in outcome.out
    assert outcome.err == "flashback: documents.jsonl: No space left on device\n"


@pytest.mark.parametrize(
    ("flag", "name", "message"),
    [
        ("--per-document", "nowhere/x.jsonl", "--per-document nowhere/x.jsonl: no such folder"),
        ("--per-document", ".", "exists and is not a file; expected a file's name"),
        ("--per-document", "/dev/null", "exists and is not a file"),
        ("--plot", "nowhere/x.png", "--plot nowhere/x.png: no such folder"),
        ("--plot", "x.jsonl", "expected a name ending in one of"),
        ("--plot", "folder.png", "exists and is not a file"),
    ],
)
def test_outputs_that_cannot_be_written_are_found_before_anything_is_scored(
    flag: str,
    name: str,
    message: str,
    evaluate: Eval,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    evaluate.index = ("--index", "nowhere")  # which is found later
    assert message in evaluate.refused(flag, name)


def test_a_folder_that_is_not_writable_is_found_before_anything_is_scored(
    evaluate: Eval, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # tests may run as root
    message = evaluate.refused("--per-document", tmp_path / "x.jsonl")
    assert f"{tmp_path} is not writable" in message


# What cannot be scored


def test_without_an_index_there_are_no_passages(evaluate: Eval) -> None:
    evaluate.index = ()
    assert "--pattern append retrieves, but there is no index" in evaluate.refused()


def test_what_is_missing_is_found_before_a_model_is_loaded(
    evaluate: Eval, corpora: Corpora, tmp_path: Path
) -> None:
    words = ("eval", "--model", "./nowhere", *FITS, "--index")
    scored = corpora.scored
    assert "index nowhere: no such folder" in refused(*words, "nowhere", scored, code=1)
    assert "no FlashBack index" in refused(*words, tmp_path, scored, code=1)
    assert "corpus nothing: no such file" in refused(*words, corpora.index, "nothing", code=1)
    adapter = ("--adapter", tmp_path / "absent")
    message = refused(*words, corpora.index, scored, *adapter, code=1)
    assert "absent: no such folder; make it with `flashback train`" in message
    assert "model ./nowhere" in refused(*words, corpora.index, scored, code=1)


def test_an_adapter_of_another_model_is_refused_before_documents_are_read(
    adapter: Path, corpora: Corpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("documents were read")

    tiny_model("llama", seed=1).save_pretrained(tmp_path / "other")
    byte_tokenizer().save_pretrained(tmp_path / "other")
    monkeypatch.setattr("flashback.scoring.retrieved_windows.cut_and_retrieve", fail)
    message = Eval(tmp_path / "other", corpora).refused("--adapter", adapter, code=1)
    assert f"adapter {adapter} was trained on " in message
    assert "is another model; load the adapter's own" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--window-tokens", "20"), "--window-tokens 20: a context of 16 tokens and a stride of 8"),
        (("--window-tokens", "7"), "--window-tokens 7: expected a whole number from 8"),
        (("--window-tokens", "150"), "windows of 150 tokens with 1 x 40 passage and 32 frame"),
        (("--first-boundary", "0"), "--first-boundary 0: expected"),
        (("--protocol", "nonsuch"), "'nonsuch' is not one of 'windows', 'random', 'sliding'"),
        (("--protocol", "random", "--stride", "60"), "a context of 69 tokens and a stride of 60"),
        (("--protocol", "sliding", "--stride", "95"), "a context of 2 tokens and a stride of 95"),
        (("--pattern", "nonsuch"), "'nonsuch' is not one of 'none', 'prepend', 'append'"),
        (("--resamples", "1"), "--resamples 1: expected a whole number from 10"),
    ],
)
def test_settings_that_do_not_fit(words: tuple[str, ...], message: str, evaluate: Eval) -> None:
    assert message in evaluate.refused(*words)


def test_documents_that_cannot_be_scored(
    model_folder: Path, corpora: Corpora, tmp_path: Path
) -> None:
    (tmp_path / "short.txt").write_text("Too short.", "utf-8")
    (tmp_path / "bad.txt").write_bytes(b"\x00")
    (tmp_path / "empty").mkdir()

    def refuse(name: str) -> str:
        words = ("--model", model_folder, *FITS, "--index", corpora.index)
        return refused("eval", tmp_path / name, *words, code=1)

    assert "no document has 24 tokens, which a first boundary at 16" in refuse("short.txt")
    assert "the corpus is empty: no document was found; the first bad record: " in refuse("bad.txt")
    assert "the corpus is empty: no document was found\n" in refuse("empty")


@pytest.mark.parametrize("command", ["eval", "train"])
def test_an_index_of_nothing_but_the_documents_themselves(
    command: str, model_folder: Path, corpora: Corpora, tmp_path: Path
) -> None:
    """To score them, and to train on them."""
    run("index", corpora.scored, "--out", tmp_path / "own", "--no-deduplicate")
    fits = FITS[: FITS.index("--resamples")]
    words: list[str | Path] = [command, corpora.scored, "--model", model_folder, *fits]
    if command == "train":
        words += ["--out", tmp_path / "adapter"]
    forbidding = [
        word for number in range(3) for word in ("--forbid-title", f"Title scored{number}")
    ]
    message = refused(*words, "--index", tmp_path / "own", *forbidding, code=1)
    assert "no passage was found for any of " in message
    assert "give an index of other texts" in message
    assert not (tmp_path / "adapter").exists()


def test_models_whose_cache_cannot_be_cut_back_are_refused(
    corpora: Corpora, tmp_path: Path
) -> None:
    """Their padding cannot be masked either."""
    config = MambaConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, state_size=4)
    MambaForCausalLM(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    assert "(mamba) keeps no key-value cache" in Eval(tmp_path, corpora).refused(code=1)


# The printed table


def printed(outcome: Outcome, names: Sequence[str]) -> list[list[str]]:
    """The cells of every row; each must be on a line of its own."""
    lines = outcome.out.splitlines()
    found = []
    for name in names:
        (line,) = (line for line in lines if line.startswith(f"{name}  "))
        cells = line.removeprefix(name).split("  ")
        found.append([cell.strip() for cell in cells if cell.strip()])
    return found


@pytest.mark.parametrize(("width", "cells"), [(80, 3), (100, 4)])
def test_the_papers_table_fits_a_terminal(
    width: int,
    cells: int,
    reproduced: tuple[Path, Outcome],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    record = json.loads(reproduced[1].out)
    print_table(record, "a model")
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    rows = printed(Outcome(0, out, ""), ROWS)
    assert {len(row) for row in rows} == {cells}
    for row, own in zip(rows, record["rows"], strict=True):
        assert row[0].startswith(f"{own['perplexity']:.1f} ({own['low']:.1f}-")
        assert row[1].startswith(f"{own['against_first_row']['value']:.3f} (")
        assert row[2] == f"{own['bits_per_byte']:.3f}"
    assert f"{record['tokens']:,} targets of 3 documents; " in out


def test_long_names_leave_less_important_columns_out(
    evaluate: Eval, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    names = [
        "none",
        "prepend (text)",
        "append (text, echo)",
        "prepend + append LoRA, trained marks",
    ]
    assert {len(row) for row in printed(evaluate("--adapter", adapter), names)} == {2}


def test_names_of_models_are_printed_as_they_are(
    model_folder: Path, corpora: Corpora, tmp_path: Path
) -> None:
    """Also one that would be markup to whoever prints it."""
    shutil.copytree(model_folder, tmp_path / "a[b]:x:[" / "bold]")
    assert "a[b]:x:[/bold]" in "".join(
        line.rstrip() for line in Eval(tmp_path / "a[b]:x:[" / "bold]", corpora)().out.splitlines()
    )


# Reproduction


def test_a_reproduction_has_every_row_in_the_papers_order(
    reproduced: tuple[Path, Outcome],
) -> None:
    out, outcome = reproduced
    record = outcome.record
    assert [row["name"] for row in record["rows"]] == ROWS
    assert sorted(path.name for path in (out / "adapters").iterdir()) == sorted(ADAPTERS)
    assert [
        (row["pattern"], row["training"], row["marks"], row["context"]) for row in record["rows"]
    ] == [
        ("none", "none", "none", "full"),
        ("none", "none", "none", "shortened"),
        *[("prepend", "none", "none", "full")] * 3,
        *[("append", "none", "none", "full")] * 4,
        *[("slot", "none", "none", "full")] * 3,
        ("none", "lora", "none", "full"),
        *(
            (pattern, "lora", marks, "full")
            for pattern in ("prepend", "append")
            for marks in ("none", "frozen", "trained")
        ),
        ("slot", "lora", "none", "full"),
        ("slot", "lora", "trained", "full"),
    ]
    assert len({row["perplexity"] for row in record["rows"]}) == len(ROWS)
    assert record["settings"]["training"]["steps"] == 2
    assert record["settings"]["trained_on"] != record["settings"]["documents"]


def test_a_reproduction_writes_its_table_in_every_form(
    reproduced: tuple[Path, Outcome],
) -> None:
    out, outcome = reproduced
    names = {path.name for path in out.iterdir()}
    assert names == {
        *("adapters", "scores", "run.json", "documents.jsonl"),
        *("table.json", "table.md", "table.png"),
    }
    assert json.loads((out / "table.json").read_text("utf-8")) == outcome.record
    page = (out / "table.md").read_text("utf-8")
    assert [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| ")][1:] == [
        f"| {name}" for name in ROWS
    ]
    assert (out / "table.png").read_bytes().startswith(b"\x89PNG")
    lines = (out / "documents.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["scored0", "scored1", "scored2"]
    assert len(list((out / "scores").iterdir())) == len(ROWS)


def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("flashback.training.reproduce.train", fail)


def test_a_second_call_trains_and_scores_nothing(
    reproduced: tuple[Path, Outcome], reproduce: Reproduce, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("scored again")

    no_training(monkeypatch)
    monkeypatch.setattr("flashback.scoring.targets.TargetScorer.log_probs", fail)
    out, outcome = reproduced
    (out / "table.md").unlink()
    assert reproduce(out, "--json").record == outcome.record
    assert (out / "table.md").exists()


def test_other_documents_are_scored_with_the_same_adapters(
    reproduced: tuple[Path, Outcome],
    reproduce: Reproduce,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    no_training(monkeypatch)
    shutil.copytree(reproduced[0], tmp_path / "TABLE")
    outcome = reproduce(tmp_path / "TABLE", "--evaluate-windows", "2", "--json")
    assert outcome.record["settings"]["max_windows"] == 2
    assert 0 < outcome.record["tokens"] < reproduced[1].record["tokens"]
    assert [row["name"] for row in outcome.record["rows"]] == ROWS


def test_rows_that_are_asked_for_are_trained_and_scored_and_others_later(
    reproduce: Reproduce, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ("--frame", "text", "--train-strides", "2", "--bfloat16")
    outcome = reproduce(tmp_path / "T", "--adapter-row", "none", *few, "--json")
    assert {path.name for path in (tmp_path / "T" / "adapters").iterdir()} == {"none"}
    names = [row["name"] for row in outcome.record["rows"]]
    assert "append (text)" in names
    assert "append (bare)" not in names
    assert names[-1] == "none + LoRA"
    assert outcome.record["settings"]["training"]["strides"] == 2
    card = json.loads((tmp_path / "T" / "adapters" / "none" / "flashback.json").read_text("utf-8"))
    assert card["training"]["strides"] == 2
    assert card["training"]["bfloat16"] is True
    reproduce(tmp_path / "T", "--adapter-row", "append-trained", *few)
    assert {path.name for path in (tmp_path / "T" / "adapters").iterdir()} == {
        *("none", "append-trained")
    }
    no_training(monkeypatch)
    both = reproduce(
        tmp_path / "T",
        *("--adapter-row", "none", "--adapter-row", "append-trained"),
        *few,
        "--json",
    )
    assert [row["name"] for row in both.record["rows"]][-2:] == [
        "none + LoRA",
        "append + LoRA, trained marks",
    ]


def test_a_row_that_is_not_there(reproduce: Reproduce, tmp_path: Path) -> None:
    message = reproduce.refused(tmp_path / "T", "--adapter-row", "append-golden", code=2)
    assert "--adapter-row append-golden: expected one of none, prepend-none," in message
    assert not (tmp_path / "T").exists()


@pytest.mark.parametrize(
    "more", [("--steps", "3"), ("--stride", "4"), ("--window-seed", "1", "--max-windows", "2")]
)
def test_adapters_of_other_settings_do_not_get_into_a_table(
    more: tuple[str, ...], reproduced: tuple[Path, Outcome], reproduce: Reproduce
) -> None:
    message = reproduce.refused(reproduced[0], *more)
    assert f"reproduction {reproduced[0]}: was begun with another model, other settings" in message
    assert "repeat that command to continue it, or choose another --out" in message


def test_an_interrupted_reproduction_goes_on_where_it_was(
    reproduced: tuple[Path, Outcome],
    reproduce: Reproduce,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In its last training but one, behind the first step."""
    out = Path(shutil.copytree(reproduced[0], tmp_path / "TABLE"))
    done, missing = ADAPTERS[:-2], ADAPTERS[-2:]
    for folder in (out / "scores", *(out / "adapters" / name for name in missing)):
        shutil.rmtree(folder)
    for path in (*out.glob("table.*"), out / "documents.jsonl"):
        path.unlink()

    def interrupted(*given: Any, **more: Any) -> None:
        def stop(_: object) -> None:
            raise KeyboardInterrupt

        train(*given, **more | {"on_step": stop})

    before = {path: path.stat().st_mtime_ns for name in done for path in files(out, name)}
    with monkeypatch.context() as patched:
        patched.setattr("flashback.training.reproduce.train", interrupted)
        assert reproduce(out, code=130).err.splitlines() == ["", "flashback: interrupted"]
    assert not (out / "adapters" / missing[0] / "flashback.json").exists()
    assert not (out / "adapters" / missing[1]).exists()
    assert not (out / "table.json").exists()
    resumed = reproduce(out, "--json").record
    after = {path: path.stat().st_mtime_ns for name in done for path in files(out, name)}
    assert after == before
    whole = reproduced[1].record["rows"]
    for row, expected in zip(resumed["rows"], whole, strict=True):
        assert row["name"] == expected["name"]
        assert row["perplexity"] == pytest.approx(expected["perplexity"], rel=1e-6)


def files(out: Path, adapter: str) -> list[Path]:
    return [path for path in (out / "adapters" / adapter).rglob("*") if path.is_file()]


def test_a_table_without_its_figure_is_a_table(
    reproduced: tuple[Path, Outcome],
    reproduce: Reproduce,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where matplotlib is not installed."""
    shutil.copytree(reproduced[0], tmp_path / "TABLE")
    (tmp_path / "TABLE" / "table.png").unlink()
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    outcome = reproduce(tmp_path / "TABLE")
    assert printed(outcome, ROWS)
    assert outcome.err.startswith(f"{tmp_path / 'TABLE' / 'table.png'} is not drawn: ")
    assert "pip install '.[bench]'" in outcome.err
    assert not (tmp_path / "TABLE" / "table.png").exists()


def test_a_table_is_printed_even_if_it_cannot_be_written(
    reproduced: tuple[Path, Outcome], reproduce: Reproduce, tmp_path: Path
) -> None:
    shutil.copytree(reproduced[0], tmp_path / "TABLE")
    (tmp_path / "TABLE" / "table.md").unlink()
    (tmp_path / "TABLE" / "table.md").mkdir()
    outcome = reproduce(tmp_path / "TABLE", code=1)
    assert printed(outcome, ROWS)
    assert outcome.err.count("\n") == 1
    assert "table.md" in outcome.err


@pytest.mark.filterwarnings("default")
def test_scoring_what_was_trained_on_is_warned_of(
    reproduced: tuple[Path, Outcome],
    reproduce: Reproduce,
    corpora: Corpora,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    no_training(monkeypatch)
    shutil.copytree(reproduced[0], tmp_path / "TABLE")
    outcome = reproduce(tmp_path / "TABLE", "--evaluate", corpora.trained)
    assert outcome.err == (
        "flashback: warning: 3 of the 6 documents to score are trained on, too; rows with LoRA "
        "say nothing of other texts\n"
    )


def test_folders_that_are_not_for_a_table(reproduce: Reproduce, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", "utf-8")
    assert "a file is in the way; choose another --out" in reproduce.refused(tmp_path / "file")
    assert "the folder is not empty; choose another --out" in reproduce.refused(tmp_path)
    assert "Not a directory" in reproduce.refused(tmp_path / "file" / "TABLE")
    assert "--out '': expected a folder's name" in reproduce.refused("", code=2)
    assert {path.name for path in tmp_path.iterdir()} == {"file"}


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (("--marks", "none"), 2, "'--marks'"),  # every kind of marks is trained
        (("--pattern", "none"), 2, "'--pattern'"),
        (("--train", "-", "--evaluate", "-"), 2, "standard input can be read only once"),
        (("--index", "nowhere"), 1, "index nowhere: no such folder"),
        (("--train", "nothing"), 1, "corpus nothing: no such file"),
        (("--window-tokens", "20"), 2, "a context of 16 tokens and a stride of 8 do not fit"),
        (("--echo-tokens", "90"), 2, "with 1 x 40 passage and 92 frame tokens need 228 positions"),
        (("--steps", "0"), 2, "--steps 0: expected"),
        (("--min-score", "1000000"), 1, "no passage was found for any of "),
    ],
)
def test_reproductions_that_cannot_begin(
    more: tuple[str, ...], code: int, message: str, reproduce: Reproduce, tmp_path: Path
) -> None:
    out = tmp_path / "TABLE"
    assert message in reproduce.refused(out, *more, code=code)
    assert not out.exists()


def test_a_reader_without_an_end_of_text_is_refused_before_training(
    model_folder: Path, corpora: Corpora, tmp_path: Path
) -> None:
    """One row of the table begins every passage with it."""
    shutil.copytree(model_folder, tmp_path / "model")
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "model")
    message = Reproduce(tmp_path / "model", corpora).refused(tmp_path / "TABLE", code=2)
    assert "has no end-of-text token to put before passages" in message
    assert not (tmp_path / "TABLE").exists()
