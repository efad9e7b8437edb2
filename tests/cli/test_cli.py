"""The command line, end to end: what each command does and prints."""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import flashback
from command_line import NOTES, Outcome, run, start
from flashback.cli.main import app
from flashback.corpus.passages import TokenEnds, estimated_ends
from recompute import TOLERANCE, recomputed_logits

PROMPT = "What pulls at the tides? Moon, moon. Network: "
"""Its words leave the query one by one while the text grows, so that passages change."""
pytestmark = pytest.mark.filterwarnings("ignore:.* passages looked at are longer")
"""The small reader has a token for every byte, and is shown the beginning of a passage."""
EXACT = ("--device", "cpu", "--dtype", "float32")
PATTERNS = ("none", "prepend", "append")
untrained = pytest.mark.filterwarnings("ignore:.* was not trained for append")


class Generate:
    """`flashback generate` with settings that fit the tiny model's 192 positions."""

    def __init__(self, model: Path, index: Path) -> None:
        self._model = model
        self._index = index

    def __call__(
        self, *more: str | Path, prompt: str = PROMPT, input: bytes = b"", indexed: bool = True
    ) -> Outcome:
        index = ("--index", self._index) if indexed else ()
        small = ("--passage-tokens", "40", "--stride", "8", "--query-tokens", "22")
        length = ("--max-new-tokens", "24")
        options = ("--model", self._model, *EXACT, *index, *small, *length, *more)
        return run("generate", *options, "--", prompt, input=input)

    def record(self, *more: str | Path, prompt: str = PROMPT, indexed: bool = True) -> Any:
        return self(*more, "--json", prompt=prompt, indexed=indexed).record


@pytest.fixture
def generate(model_folder: Path, index: Path) -> Generate:
    return Generate(model_folder, index)


# Help


def all_commands(path: tuple[str, ...], command: click.Command) -> list[tuple[str, ...]]:
    """The words of every command, groups included."""
    children = command.commands if isinstance(command, click.Group) else {}
    below = [all_commands((*path, name), child) for name, child in children.items()]
    return [path, *(words for commands in below for words in commands)]


@pytest.mark.parametrize("words", all_commands((), app), ids=" ".join)
def test_every_command_explains_itself_with_an_example(words: tuple[str, ...]) -> None:
    long, short = run(*words, "--help"), run(*words, "-h")
    assert long.out == short.out
    assert long.err == ""
    assert f"\n  {' '.join(('flashback', *words))}" in long.out
    assert "..." not in long.out.partition("\nCommands:")[2]  # no sentence is cut off


def test_the_version_is_printed() -> None:
    assert run("--version").out == f"flashback, version {flashback.__version__}\n"


@pytest.mark.parametrize("words", [(), ("index",)])
def test_no_command_at_all_shows_the_help_as_a_usage_error(words: tuple[str, ...]) -> None:
    outcome = run(*words, code=2)
    assert outcome.out == ""
    assert "\nCommands:" in outcome.err


# Index


def test_an_index_is_made_of_a_folder_and_described_in_a_line(notes: Path, tmp_path: Path) -> None:
    (notes / "picture.png").write_bytes(b"\x89PNG")
    outcome = run("index", notes, "--out", tmp_path / "IDX")
    assert outcome.out.startswith(f"{tmp_path / 'IDX'}: 4 passages of 4 documents (0 repeated")
    assert outcome.out.count("\n") == 1
    assert outcome.err == f"skipped {notes / 'picture.png'}: unknown format '.png'\n"


def test_build_is_the_default_command(notes: Path, tmp_path: Path) -> None:
    default, built, options_first = (
        run("index", notes, "--json", "--out", tmp_path / "1").record,
        run("index", "build", notes, "--json", "--out", tmp_path / "2").record,
        run("index", "--json", "--out", tmp_path / "3", notes).record,
    )
    assert default["content"] == built["content"] == options_first["content"]


def test_the_json_of_an_index_is_its_manifest(notes: Path, tmp_path: Path) -> None:
    (notes / ".hidden.txt").write_text("x", "utf-8")
    (notes / "bad.csv").write_text("a,b", "utf-8")
    outcome = run("index", notes, "--json", "--out", tmp_path / "IDX")
    manifest = json.loads(outcome.out)
    assert [Path(one["file"]).name for one in manifest.pop("skipped_files")] == [".hidden.txt"]
    (bad,) = manifest.pop("bad_records")
    assert bad["reason"].startswith("no column 'text' or 'contents'; found 'a', 'b'")
    assert manifest == json.loads((tmp_path / "IDX" / "flashback-index.json").read_text("utf-8"))
    assert manifest["content"]["counts"]["passages"] == len(NOTES)
    assert run("index", "verify", tmp_path / "IDX", "--json").record == manifest


def test_settings_of_an_index_reach_its_passages(notes: Path, tmp_path: Path) -> None:
    flags = ("--passage-words", "5", "--no-title", "--no-deduplicate")
    manifest = run("index", notes, "--out", tmp_path / "IDX", "--json", *flags).record
    assert manifest["content"]["settings"] == {
        "passage_words": 5,
        "passage_tokens": 128,
        "title": False,
        "language": "english",
        "kind": "bm25",
        "k1": 1.2,
        "b": 0.75,
        "deduplicate": False,
        "drop_near_duplicates": False,
        "overlap": 0,
    }
    hits = run("search", tmp_path / "IDX", "moon", "--json").record["hits"]
    assert [hit["text"] for hit in hits] == ["The tides follow the moon,"]


def test_several_sources_make_one_index(notes: Path, tmp_path: Path) -> None:
    sources = (notes / "net", notes / "moon.md")
    manifest = run("index", *sources, "--out", tmp_path / "IDX", "--json").record
    assert manifest["content"]["counts"]["documents"] == 3


@pytest.mark.parametrize(
    ("input", "title"),
    [
        (b"The tides follow the moon.\n", "standard input"),
        (b'{"id": 7, "title": "Tides", "text": "They follow the moon."}\n', "Tides"),
    ],
)
def test_standard_input_is_a_corpus(input: bytes, title: str, tmp_path: Path) -> None:
    run("index", "-", "--out", tmp_path / "IDX", input=input)
    (hit,) = run("search", tmp_path / "IDX", "moon", "--json").record["hits"]
    assert hit["title"] == title


BAD_RECORDS = b'{"text": "A good record."}\n{"text": 5}\nnot json\n'


def test_bad_records_are_skipped_and_named(tmp_path: Path) -> None:
    (tmp_path / "some.jsonl").write_bytes(BAD_RECORDS)
    outcome = run("index", tmp_path / "some.jsonl", "--out", tmp_path / "IDX")
    assert "1 passages of 1 documents" in outcome.out
    assert [line.partition(": ")[0] for line in outcome.err.splitlines()] == [
        f"skipped {tmp_path / 'some.jsonl'}:{line}" for line in (2, 3)
    ]


def test_an_index_can_be_replaced(notes: Path, tmp_path: Path) -> None:
    run("index", notes, "--out", tmp_path / "IDX")
    (notes / "new.txt").write_text("Volcanoes erupt.", "utf-8")
    run("index", notes, "--out", tmp_path / "IDX", "--overwrite")
    assert "new.txt#0" in run("search", tmp_path / "IDX", "volcanoes").out
    assert "5 passages" in run("index", "verify", tmp_path / "IDX").out


# Search


def test_hits_are_printed_best_first_with_their_text(index: Path) -> None:
    outcome = run("search", index, "socket network json", "-k", "2")
    first, text, second, _ = outcome.out.splitlines()
    assert first.startswith("1. net/socket.txt, line 1  [")
    assert text.strip() == NOTES["net/socket.txt"]
    assert second.startswith("2. net/json.rst, line 1  [")
    assert outcome.err == ""


def test_hits_as_json_hold_everything(index: Path) -> None:
    record = run("search", index, "snow in winter", "--json").record
    assert record["query"] == "snow in winter"
    (hit,) = record["hits"]
    assert hit.pop("score") > 0
    path = str(index.parent / "notes" / "snow.txt")
    assert hit == {
        "id": f"{path}#0",
        "document_id": path,
        "title": "snow.txt",
        "text": f"snow.txt\n{NOTES['snow.txt']}",
        "place": {
            "page": None,
            "last_page": None,
            "heading": None,
            "line": 1,
            "start": 0,
            "end": len(NOTES["snow.txt"]),
        },
    }


def test_hits_can_be_left_out(index: Path) -> None:
    words = ("search", index, "socket moon", "--json")
    path = str(index.parent / "notes" / "moon.md")
    for flags in (("--forbid-title", "moon.md"), ("--forbid-document", path)):
        titles = [hit["title"] for hit in run(*words, *flags).record["hits"]]
        assert titles == ["net/socket.txt"]
    assert run(*words, "--min-score", "1000").record["hits"] == []


def test_finding_nothing_is_no_failure_and_no_output(index: Path) -> None:
    outcome = run("search", index, "zebra")
    assert (outcome.out, outcome.err) == ("", "nothing found for 'zebra'\n")
    assert run("search", index, "zebra", "--json").record == {"query": "zebra", "hits": []}


def test_standard_input_is_one_query_per_line(index: Path) -> None:
    queries = ["moon", "", "snow\u2028winter", "zebra", "socket"]
    lines = "\n".join(queries).encode()
    for ending in (b"", b"\n"):
        outcome = run("search", index, "-", "--json", input=lines + ending)
        records = [json.loads(line) for line in outcome.out.splitlines()]
        assert [record["query"] for record in records] == queries
        assert [len(record["hits"]) for record in records] == [1, 0, 1, 0, 1]
    assert run("search", index, "-", input=b"").out == ""
    plain = run("search", index, "-", input=b"moon\r\nsocket\n").out
    alone = [f"=== {query}\n" + run("search", index, query).out for query in ("moon", "socket")]
    assert plain == "".join(alone)


def test_characters_the_output_cannot_encode_are_escaped(index: Path) -> None:
    assert r"Snow is \u96ea in" in run("search", index, "snow", encoding="latin-1").out


# Generate


def test_only_the_text_is_printed(generate: Generate) -> None:
    outcome = generate()
    assert outcome.out == generate.record()["text"] + "\n"
    assert outcome.err == ""


def test_the_json_of_a_generation_holds_what_recomputing_it_takes(
    generate: Generate, model_folder: Path
) -> None:
    record = generate.record()
    assert list(record) == [
        "model",
        "pattern",
        "settings",
        "versions",
        "prompt_tokens",
        "tokens",
        "text",
        "finish_reason",
        "jumps",
        "strides",
        "totals",
    ]
    for stride in record["strides"]:
        assert list(stride) == [
            "arranged",
            "tokens",
            "text",
            "passages",
            "reused",
            "prefilled",
            "sink",
            "encoded",
            "decoded",
            "seconds",
        ]
        assert list(stride["seconds"]) == ["retrieve", "prefill", "decode", "encode"]
        assert stride["encoded"] == stride["prefilled"]
        assert stride["reused"] + stride["prefilled"] - stride["sink"] == len(stride["arranged"])
        assert stride["decoded"] == len(stride["tokens"]) - 1
        for passage in stride["passages"]:
            assert list(passage) == ["id", "title", "text", "score", "place"]
    assert list(record["totals"]) == [
        "reused",
        "prefilled",
        "encoded",
        "decoded",
        "seconds",
        "tokens_per_second",
    ]
    for count in ("reused", "prefilled", "encoded", "decoded"):
        assert record["totals"][count] == sum(stride[count] for stride in record["strides"])
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    assert record["prompt_tokens"] == tokenizer(PROMPT)["input_ids"]
    assert record["tokens"] == [token for s in record["strides"] for token in s["tokens"]]
    assert record["text"] == "".join(stride["text"] for stride in record["strides"])
    assert record["text"] == tokenizer.decode(record["tokens"])
    assert (record["finish_reason"], len(record["tokens"])) == ("length", 24)
    assert (record["model"], record["pattern"]) == (str(model_folder), "slot")


@untrained
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_stride_is_recomputed_by_plain_transformers(
    pattern: str, generate: Generate, model_folder: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    record = generate.record("--pattern", pattern, indexed=pattern != "none")
    passages = [tuple(hit["id"] for hit in stride["passages"]) for stride in record["strides"]]
    assert len(set(passages)) == (1 if pattern == "none" else 3)
    for stride in record["strides"]:
        ids = [*stride["arranged"], *stride["tokens"][:-1]]
        rows = recomputed_logits(model, ids, len(stride["tokens"]))
        chosen = rows.gather(1, torch.tensor(stride["tokens"])[:, None])[:, 0]
        assert (rows.max(-1).values - chosen).max() <= TOLERANCE


@untrained
def test_appending_reuses_what_prepending_encodes_again(generate: Generate) -> None:
    totals = {name: generate.record("--pattern", name)["totals"] for name in PATTERNS}
    assert totals["none"]["encoded"] < totals["append"]["encoded"] < totals["prepend"]["encoded"]


def test_an_untrained_reader_is_warned_of(generate: Generate, model_folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        err = generate("--pattern", "append").err
    assert err.startswith(
        f"flashback: warning: {model_folder} was not trained for append: it answers worse, and may "
        "copy the text around passages; use slot or an adapter (flashback train)\n"
    )


def test_a_prompt_comes_from_standard_input(generate: Generate) -> None:
    assert generate(prompt="-", input=PROMPT.encode()).out == generate().out


def test_a_prompt_may_look_like_an_option(generate: Generate) -> None:
    assert generate.record(prompt="--help")["prompt_tokens"][1:] != []


def test_no_index_is_needed_without_retrieval(generate: Generate) -> None:
    without = generate.record("--pattern", "none", indexed=False)
    assert without["tokens"] == generate.record("--pattern", "none")["tokens"]
    assert all(stride["passages"] == [] for stride in without["strides"])


def test_an_explanation_shows_passage_and_context_of_every_stride(generate: Generate) -> None:
    record = generate.record()
    shown = generate("--explain").out.split("\n=== stride ")[1:]
    assert len(shown) == len(record["strides"]) == 3
    for number, (text, stride) in enumerate(zip(shown, record["strides"], strict=True), 1):
        assert text.startswith(f"{number}: ")
        assert f"; {len(stride['arranged'])} tokens\n" in text
        assert PROMPT in text
        for passage in stride["passages"]:
            assert f"Reference: {passage['text'][:40]}" in text
        assert f"--- continues\n{stride['text']}" in text
    assert "moon.md" in shown[0].partition("\n")[0]


def test_a_stop_text_ends_the_text_before_it(generate: Generate) -> None:
    whole = generate.record()["text"]
    stop = whole[9:11]
    record = generate.record("--stop", stop, "--stop", "never written")
    assert (record["text"], record["finish_reason"]) == (whole[: whole.index(stop)], "stop")
    assert generate("--stop", stop).out == record["text"] + "\n"


def test_the_same_seed_draws_the_same_text(generate: Generate) -> None:
    first, again, other = (
        generate.record("--temperature", "1.5", "--seed", seed)["tokens"] for seed in "778"
    )
    assert first == again != other


def test_sampling_flags_reach_the_result(generate: Generate) -> None:
    flags = {
        "temperature": 5.0,
        "top_k": 1,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.0,
        "seed": 3,
    }
    words = [x for name, value in flags.items() for x in (f"--{name.replace('_', '-')}", value)]
    record = generate.record(*map(str, words))
    assert record["settings"]["sampling"] == flags
    assert record["tokens"] == generate.record()["tokens"]  # the one most probable token
    penalised = generate.record("--repetition-penalty", "100", "--ignore-eos")["tokens"]
    assert len(set(penalised)) == len(penalised) == 24
    assert not set(penalised) & set(record["prompt_tokens"])


def test_retrieval_and_stopping_flags_reach_the_result(generate: Generate) -> None:
    flags = ("--passages", "2", "--forbid-title", "moon.md", "--forbid-document", "snow.txt")
    record = generate.record(*flags, "--passage-tokens", "20", "--ignore-eos", "--min-score", "0.1")
    retrieval = record["settings"]["retrieval"]
    assert (retrieval["passages"], retrieval["passage_tokens"]) == (2, 20)
    assert (retrieval["forbid_titles"], retrieval["forbid_documents"]) == (
        ["moon.md"],
        ["snow.txt"],
    )
    assert (retrieval["stride"], retrieval["query_tokens"]) == (8, 22)
    assert record["settings"]["stopping"]["ignore_eos"] is True
    found = {hit["title"] for stride in record["strides"] for hit in stride["passages"]}
    assert found
    assert not found & {"moon.md", "snow.txt"}


@untrained
def test_a_frame_of_ones_own_stands_around_passages(generate: Generate, model_folder: Path) -> None:
    flags = ("--frame-before", " <<", "--frame-after", ">> ", "--echo-tokens", "3")
    record = generate.record("--pattern", "append", *flags)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    frame = record["settings"]["frame_tokens"]
    assert frame == {"before": encode(" <<"), "after": encode(">> "), "echo": 3, "sink": [0]}
    stride = record["strides"][0]
    passage = encode(stride["passages"][0]["text"])[:40]
    assert stride["arranged"] == [
        *record["prompt_tokens"],
        *frame["before"],
        *passage,
        *frame["after"],
        *record["prompt_tokens"][-3:],
    ]
    shorter = generate.record("--pattern", "append", "--frame-before", "<")
    alone = shorter["settings"]["frame_tokens"]
    assert alone == {"before": encode("<"), "after": encode("]\n\n"), "echo": 16, "sink": [0]}


@untrained
def test_a_prompt_too_long_is_cut_from_the_left_if_asked(generate: Generate) -> None:
    long = "The moon. " * 40
    record = generate.record("--pattern", "append", "--truncate", prompt=long)
    budget = 192 - (40 + len(" [Reference: ") + len("]\n\n") + 16) - 8
    assert len(record["prompt_tokens"]) == budget
    assert record["prompt_tokens"][0] == 0  # BOS
    short = generate.record("--pattern", "none", prompt=long[-(budget - 1) :])
    assert record["prompt_tokens"] == short["prompt_tokens"]


def test_reader_flags_reach_the_result(generate: Generate) -> None:
    flags = ("--device", "cpu", "--dtype", "bfloat16", "--window", "150")
    settings = generate.record(*flags)["settings"]
    assert (settings["device"], settings["dtype"], settings["window"]) == ("cpu", "bfloat16", 150)


# In a process of its own


def test_a_process_prints_the_result_alone(generate: Generate, model_folder: Path) -> None:
    """Whatever libraries write to either stream, whichever way, would show here."""
    small = ("--pattern", "none", "--max-new-tokens", "8", "--stride", "8")
    words = ("--model", model_folder, *EXACT, *small, "--passage-tokens", "40")
    process = start("generate", *words, "-")
    out, err = process.communicate(PROMPT.encode(), timeout=120)
    assert (process.returncode, err.decode()) == (0, f"loading {model_folder}{os.linesep}")
    assert out.decode() == generate(*small, indexed=False).out.replace("\n", os.linesep)


@pytest.mark.parametrize(
    "piped",
    [
        b"The json module",
        b"The json module\n",
        b"The json module\r\n",
        b"\xef\xbb\xbfThe json module",
        b"\xef\xbb\xbfThe json module\r\n",
    ],
)
def test_piped_text_is_the_text_whatever_program_wrote_it(index: Path, piped: bytes) -> None:
    given = "The json module"
    generate = ("generate", "--index", index, "--pattern", "none", "--max-new-tokens", "4")
    assert run(*generate, "-", input=piped).out == run(*generate, given).out
    search = ("search", index, "--json")
    assert run(*search, "-", input=piped).out == run(*search, given).out


def test_lines_of_piped_text_end_alike(index: Path) -> None:
    generate = ("generate", "--index", index, "--pattern", "none", "--max-new-tokens", "4", "-")
    windows, unix = (run(*generate, input=b"a" + end + b"b" + end) for end in (b"\r\n", b"\n"))
    assert windows.out == unix.out


@pytest.mark.parametrize("trusted", [True, False])
def test_an_index_runs_code_of_the_readers_folder_only_if_asked(
    notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool
) -> None:
    asked: list[tuple[str, bool]] = []

    def ends(name: str, trust_remote_code: bool = False) -> TokenEnds:
        asked.append((name, trust_remote_code))
        return estimated_ends

    monkeypatch.setattr("flashback.readers.load.load_token_ends", ends)
    more = ("--trust-remote-code",) if trusted else ()
    run("index", notes, "--out", tmp_path / "IDX", "--model", "some/model", *more)
    assert asked == [("some/model", trusted)]
