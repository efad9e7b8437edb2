"""The command line refuses: one line for people, the right exit code, nothing half-written."""

import io
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from command_line import refused, run, start, without_progress
from tiny_readers import byte_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.* passages looked at are longer")
"""The small reader has a token for every byte, and is shown the beginning of a passage."""
SMALL = ("--passage-tokens", "40", "--stride", "8", "--max-new-tokens", "24")
DEADLINE = 120
"""Seconds a process may take to get anywhere, on a busy machine."""


@pytest.fixture
def broken(model_folder: Path, tmp_path: Path) -> Path:
    """A copy of a good model folder, to be broken."""
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


# Usage


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nonsuch"], "No such command 'nonsuch'; see 'flashback --help'"),
        (["--nonsuch"], "No such option '--nonsuch'; see 'flashback --help'"),
        (["generate", "--nonsuch"], "; see 'flashback generate --help'"),
        (["generate", "--strid", "3", "x"], "'--stride'"),
        (
            ["generate"],
            "expected PROMPT or --prompts FILE, found neither; see 'flashback generate --help'",
        ),
        (["generate", "x", "y"], "unexpected extra argument (y)"),
        (["generate", "x", "--stride"], "'--stride' requires an argument"),
        (["index", "notes"], "Missing option '--out'; see 'flashback index build --help'"),
        (["index", "--out", "IDX"], "Missing argument 'CORPUS...'"),
        (["index", "verify"], "Missing argument 'FOLDER'"),
        (["search"], "Missing argument '[FOLDER]... QUERY'"),
        (["search", "IDX"], "expected FOLDER and QUERY; found 'IDX'"),
        (["demo", "extra"], "unexpected extra argument (extra)"),
        (["generate", "--json", "--explain", "--pattern", "none", "x"], "--json"),
        (["search", "IDX", "caf\udce9"], r"'caf\udce9' is not UTF-8"),
        (["generate", "--pattern", "none", "caf\udce9"], "is not UTF-8"),
        (["serve", "--lookahead", "16", "--index", "IDX"], "--lookahead 16"),
        (["export", "--window", "9"], "No such option '--window'"),
    ],
)
def test_wrong_usage(words: list[str], message: str) -> None:
    assert message in refused(*words)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        *((flag, "0") for flag in ("--stride", "--query-tokens", "--passage-tokens")),
        *((flag, "0") for flag in ("--passages", "--max-new-tokens", "--top-p")),
        *((flag, "-1") for flag in ("--stride", "--passages", "--max-new-tokens", "--top-k")),
        *((flag, "-1") for flag in ("--seed", "--temperature", "--min-p", "--min-score")),
        *((flag, "1e30") for flag in ("--stride", "--seed", "--temperature", "--min-score")),
        *((flag, "9" * 30) for flag in ("--stride", "--passages", "--top-k", "--seed")),
        *((flag, "nan") for flag in ("--temperature", "--top-p", "--min-p", "--min-score")),
        *((flag, "abc") for flag in ("--stride", "--temperature", "--window", "--seed")),
        *((flag, "inf") for flag in ("--temperature", "--repetition-penalty")),
        ("--top-p", "2"),
        ("--min-p", "1.5"),
        ("--repetition-penalty", "0"),
        ("--stride", "2.5"),
        ("--stride", ""),
    ],
)
def test_numbers_out_of_range(flag: str, value: str) -> None:
    message = refused("generate", flag, value, "--pattern", "none", "x")
    assert flag in message
    assert value in message or str(float(value)) in message


@pytest.mark.parametrize(
    ("flag", "value"),
    [("-k", "0"), ("-k", "-1"), ("-k", "abc"), ("-k", "9" * 12), ("-k", "9" * 30)]
    + [("--min-score", value) for value in ("nan", "-1", "abc", "1e30")],
)
def test_numbers_out_of_range_of_a_search(flag: str, value: str, index: Path) -> None:
    assert flag in refused("search", index, "moon", flag, value)


@pytest.mark.parametrize("value", ["0", "-1", "1e30", "abc", "9" * 30])
def test_numbers_out_of_range_of_an_index(value: str, notes: Path, tmp_path: Path) -> None:
    flags = ("--out", tmp_path / "IDX", "--passage-words", value)
    assert "--passage-words" in refused("index", notes, *flags)
    assert not (tmp_path / "IDX").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--pattern", "sideways"], "'sideways' is not one of 'auto', 'none', 'prepend', 'append'"),
        (["--stop", ""], "--stop '': expected a text that is not empty"),
        (["--pattern", "append"], "--pattern append retrieves, but there is no index"),
        ([], "give an --index (or a --retriever), or use --pattern none"),
        (["--pattern", "none", "--device", "toaster"], "--device toaster: expected auto, cpu"),
        (["--pattern", "none", "--device", "cpu:x"], "--device cpu:x: expected auto, cpu"),
        (["--pattern", "none", "--device", "cuda:999"], "--device cuda:999: this machine has"),
        (["--pattern", "none", "--dtype", "float8"], "expected auto, float32 or bfloat16"),
        (["--pattern", "none", "--echo-tokens", "4"], "--echo-tokens 4: has no effect with"),
    ],
)
def test_settings_that_are_not_to_be_had(flags: list[str], message: str) -> None:
    """Found before a model is looked for: this one does not exist."""
    assert message in refused("generate", "--model", "./nowhere", *flags, "x")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there() -> None:
    message = refused("generate", "--pattern", "none", "--device", "cuda", "x")
    assert "--device cuda: this machine has none; use --device cpu" in message


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ("0", "--window 0: expected 1 to 192"),
        ("-1", "--window -1: expected 1 to 192"),
        ("193", "--window 193: expected 1 to 192"),
        ("60", "lower --passage-tokens, --passages or --stride"),
    ],
)
def test_windows_that_do_not_fit(
    window: str, message: str, model_folder: Path, index: Path
) -> None:
    words = ("--model", model_folder, "--index", index, *SMALL, "--window", window)
    assert message in refused("generate", *words, "x")


def test_an_index_that_is_not_used_need_not_be_there(model_folder: Path) -> None:
    words = ("--index", "nowhere", "--pattern", "none", *SMALL, "--max-new-tokens", "2")
    assert run("generate", "--model", model_folder, *words, "x").code == 0


# Models


def generate_with(model: str | Path, prompt: str = "x") -> str:
    """The line that refuses a model."""
    return refused("generate", "--model", model, "--pattern", "none", *SMALL, prompt, code=1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "found nothing there; expected a model's folder"),
        ("nowhere/", "found nothing there"),
        ("a/folder/of/folders", "found nothing there"),
        ("two words", "found nothing there"),
        ("", "model '': found nothing there"),
        ("/etc/hostname", "found a file there"),
        (
            "someone/no-such-model",
            "found no such folder, no downloaded configuration of that name, and no connection",
        ),
        (
            "no-such-model",
            "found no such folder, no downloaded configuration of that name, and no connection",
        ),
    ],
)
def test_models_that_are_not_there(name: str, message: str) -> None:
    assert message in generate_with(name)


def rewrite(name: str, content: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return damage


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def truncate_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size // 2)


def widen(folder: Path) -> None:
    """Make the configuration one of a larger model."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("config.json"), "the folder has no config.json and no GGUF file; expected a model"),
        (rewrite("config.json", b"{{ garbage"), "its configuration cannot be loaded: "),
        (rewrite("config.json", b"[]"), "its configuration cannot be loaded: "),
        (rewrite("config.json", b'{"model_type": "x"}'), "its configuration cannot be loaded: "),
        (
            remove("tokenizer.json"),
            "tokenizer.json is missing in its folder, and so is every other",
        ),
        (rewrite("tokenizer.json", b"{"), "its tokenizer cannot be loaded: "),
        (remove("model.safetensors"), "its weights cannot be loaded: "),
        (truncate_weights, "its weights cannot be loaded: "),
        (widen, "weights do not fit its config.json, such as lm_head.weight: found (300, 32)"),
    ],
)
def test_model_folders_that_are_broken(
    damage: Callable[[Path], None], message: str, broken: Path
) -> None:
    damage(broken)
    assert message in generate_with(broken)


def tiny_t5() -> PreTrainedModel:
    sizes: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(vocab_size=300, **sizes))


def tiny_bart() -> PreTrainedModel:
    each = {"layers": 1, "attention_heads": 2, "ffn_dim": 16}
    sizes: dict[str, Any] = {
        f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in each.items()
    }
    return BartForConditionalGeneration(BartConfig(vocab_size=300, d_model=16, **sizes))


def tiny_mamba() -> PreTrainedModel:
    return MambaForCausalLM(
        MambaConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, state_size=4)
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (tiny_t5, "is an encoder-decoder (t5); expected a decoder-only language model"),
        (tiny_bart, "is an encoder-decoder (bart); expected a decoder-only language model"),
        (tiny_mamba, "(mamba) keeps no key-value cache"),
    ],
)
def test_models_whose_cache_cannot_be_cut_back(
    make: Callable[[], PreTrainedModel], message: str, tmp_path: Path
) -> None:
    make().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    assert message in generate_with(tmp_path)


# Prompts


def test_a_prompt_over_the_budget_names_the_way_out(model_folder: Path) -> None:
    message = generate_with(model_folder, prompt="x" * 150)
    assert "the prompt has 151 tokens, but only 131 fit" in message
    assert "--truncate" in message


def test_an_empty_prompt_to_a_model_without_a_beginning_of_text(broken: Path) -> None:
    tokenizer = byte_tokenizer(bos=False)
    tokenizer.bos_token = None
    tokenizer.save_pretrained(broken)
    words = ("generate", "--model", broken, "--pattern", "none", *SMALL)
    assert "the prompt is empty" in refused(*words, "")
    assert "the prompt is empty" in refused(*words, "-", input=b"")


@pytest.mark.parametrize(
    ("input", "message"),
    [(b"caf\xe9 good", "standard input is not UTF-8 at byte 4"), (None, "input is closed")],
)
def test_standard_input_that_is_no_text(input: bytes | None, message: str, index: Path) -> None:
    assert message in refused("generate", "--pattern", "none", "-", input=input)
    assert message in refused("search", index, "-", input=input)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    ],
)
def test_running_out_of_memory(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("flashback.loading.load", load)
    message = refused("generate", "--pattern", "none", "x", code=1)
    assert "out of memory; use a smaller model" in message


def test_a_bug_of_ours_is_not_dressed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise RuntimeError("an illegal memory access")

    monkeypatch.setattr("flashback.loading.load", load)
    with pytest.raises(RuntimeError):
        run("generate", "--pattern", "none", "x")


# Corpora and indexes


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("absent.txt", None, "no such file or folder"),
        ("paper.xls", b"x", "unknown format; expected one of .txt, .rst, .md, .markdown, .jsonl"),
        ("paper.pdf", b"%PDF", "paper.pdf: no readable PDF: "),
        (
            "columns.csv",
            b"a,b\n1,2\n",
            "columns.csv: no column 'text' or 'contents'; found 'a', 'b'",
        ),
        ("empty.txt", b"", "empty.txt:1: no text in this file"),
        ("binary.txt", b"\x00\x01\x02", "binary.txt:1: binary data; expected UTF-8 text"),
        ("latin.txt", b"caf\xe9 good\n", "latin.txt:1: not UTF-8 at byte 4"),
        ("list.jsonl", b"[1]\n", "list.jsonl:1: expected a JSON object, found list"),
        ("cut.jsonl.gz", b"\x1f\x8b\x08\x00", "cut.jsonl.gz:1: damaged gzip data"),
    ],
)
@pytest.mark.parametrize("strict", [[], ["--strict"]])
def test_corpora_without_a_passage_leave_no_index(
    file: str, content: bytes | None, message: str, strict: list[str], tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / file).write_bytes(content)
    out = tmp_path / "made" / "IDX"
    assert message in refused("index", tmp_path / file, "--out", out, *strict, code=1)
    assert not out.exists()


def test_an_empty_folder_and_empty_standard_input_are_empty_corpora(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for corpus in ("-", tmp_path / "empty"):
        message = refused("index", corpus, "--out", tmp_path / "IDX", code=1)
        assert "the corpus is empty: no passage was found" in message
    assert not (tmp_path / "IDX").exists()


def test_a_file_that_comes_late_leaves_no_folder_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread of the search library may still write while the unfinished index is removed."""
    removed: list[Path] = []
    remove = shutil.rmtree

    def emptied(folder: Path, ignore_errors: bool = False) -> None:
        remove(folder, ignore_errors=ignore_errors)
        if not removed:
            folder.mkdir()
            (folder / "late").write_text("")
        removed.append(folder)

    monkeypatch.setattr(shutil, "rmtree", emptied)
    refused("index", "-", "--out", tmp_path / "IDX", code=1)
    assert len(removed) == 2
    assert not (tmp_path / "IDX").exists()


def test_a_bad_record_is_refused_in_strict_mode(notes: Path, tmp_path: Path) -> None:
    (notes / "bad.jsonl").write_text('{"text": "Good."}\n{"text": 5}\n')
    message = refused("index", notes, "--out", tmp_path / "IDX", "--strict", code=1)
    assert "bad.jsonl:2: no text" in message
    assert "leave out --strict" in message
    assert not (tmp_path / "IDX").exists()


def test_an_index_is_not_replaced_unasked(notes: Path, index: Path) -> None:
    before = sorted(index.rglob("*"))
    message = refused("index", notes, "--out", index, code=1)
    assert "exists already; use --overwrite to replace it" in message
    assert sorted(index.rglob("*")) == before


def test_a_failed_replacement_leaves_the_index(notes: Path, tmp_path: Path) -> None:
    run("index", notes, "--out", tmp_path / "IDX")
    before = sorted((tmp_path / "IDX").rglob("*"))
    refused("index", "-", "--out", tmp_path / "IDX", "--overwrite", input=b"\x00", code=1)
    assert sorted((tmp_path / "IDX").rglob("*")) == before
    run("index", "verify", tmp_path / "IDX")


def test_something_else_is_never_overwritten(notes: Path) -> None:
    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in notes.rglob("*") if path.is_file()}

    before = contents()
    words = ("index", notes / "moon.md", "--overwrite", "--out")
    assert "not empty and no FlashBack index" in refused(*words, notes, code=1)
    assert "a file is in the way" in refused(*words, notes / "moon.md", code=1)
    assert "cannot be written" in refused(*words, notes / "moon.md" / "IDX", code=1)
    assert contents() == before


@pytest.mark.parametrize("words", [["search", "@", "x"], ["index", "verify", "@"]])
def test_folders_that_are_no_index(words: list[str], notes: Path, tmp_path: Path) -> None:
    def refuse(folder: Path) -> str:
        return refused(*(str(folder) if word == "@" else word for word in words), code=1)

    assert "no such folder; make it with `flashback index`" in refuse(tmp_path / "absent")
    assert "no such folder" in refuse(notes / "moon.md")
    assert "this is no FlashBack index" in refuse(notes)


def test_an_index_that_is_missing_is_found_before_a_model_is_loaded(notes: Path) -> None:
    words = ("generate", "--model", "./nowhere", "x", "--index")
    assert "index nowhere: no such folder" in refused(*words, "nowhere", code=1)
    assert "this is no FlashBack index" in refused(*words, notes, code=1)


def test_a_changed_index_is_found_by_verifying(notes: Path, tmp_path: Path) -> None:
    run("index", notes, "--out", tmp_path / "IDX")
    (store,) = (tmp_path / "IDX").glob("*/*.store")
    data = bytearray(store.read_bytes())
    data[0] ^= 1
    store.write_bytes(data)
    message = refused("index", "verify", tmp_path / "IDX", code=1)
    assert store.name in message
    assert "has changed since it was written" in message


def test_a_cache_folder_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert "/dev/null/flashback" in run("demo", code=1).err


# Output that goes nowhere


class Full(io.StringIO):
    """A standard output on a full device."""

    def write(self, _: str) -> int:
        raise OSError(28, "No space left on device")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("command", ["search", "index"])
def test_a_full_device_is_named_in_one_line(
    command: str, index: Path, notes: Path, tmp_path: Path
) -> None:
    words = {
        "search": ("search", index, "moon"),
        "index": ("index", notes, "--out", tmp_path / "IDX"),
    }[command]
    with open("/dev/full", "wb") as full:
        process = start(*words, stdout=full)
        _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 1
    assert err.splitlines()[-1] == b"flashback: standard output: No space left on device"
    assert len(err.splitlines()) == (2 if command == "index" else 1)  # it says what it loads


def test_a_full_device_ends_a_generation(
    model_folder: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flashback.cli.main import _run

    err = io.StringIO()
    monkeypatch.setattr("sys.stdout", Full())
    monkeypatch.setattr("sys.stderr", err)
    for more in ([], ["--json"], ["--explain"]):
        words = ["generate", "--model", str(model_folder), "--index", str(index), *SMALL, *more]
        monkeypatch.setattr("sys.argv", ["flashback", *words, "x"])
        assert _run() == 1
    full = "flashback: standard output: No space left on device"
    assert err.getvalue().splitlines() == [f"loading {model_folder}", full] * 3


def test_a_reader_that_has_left_ends_the_program_quietly(index: Path) -> None:
    process = start("search", index, "-", "--json")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write(b"moon\n" * 1000)
    process.stdin.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(DEADLINE) == 1


# Ctrl-C


def interrupt(process: "subprocess.Popen[bytes]") -> None:
    """Press Ctrl-C; the process must end with 130 and one line."""
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130
    # The line of a terminal's ^C is ended first.
    assert without_progress(err.decode()).splitlines() == ["", "flashback: interrupted"]


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until a process has got somewhere."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("existing", [False, True])
def test_an_interrupted_build_leaves_what_was_there(
    existing: bool, notes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "IDX"
    if existing:
        run("index", notes, "--out", out)
    before = sorted(out.rglob("*"))
    process = start("index", "-", "--out", out, "--overwrite")
    assert process.stdin is not None
    for number in range(2000):
        process.stdin.write(b"Line number %d of a long stream of lines.\n" % number)
    process.stdin.flush()  # and more would come
    wait_for(lambda: len(list(out.rglob("*"))) > len(before) + 1)
    interrupt(process)
    assert sorted(out.rglob("*")) == before
    assert out.exists() == existing
    if existing:
        run("index", "verify", out)


def test_an_interrupted_generation_has_printed_its_beginning(
    model_folder: Path, index: Path
) -> None:
    words = ("--passage-tokens", "100", "--stride", "8", "--ignore-eos", "--explain")
    endless = ("--max-new-tokens", "1000000")
    process = start("generate", "--model", model_folder, "--index", index, *words, *endless, "moon")
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)][1].startswith(b"=== stride 1: moon.md")
    interrupt(process)
