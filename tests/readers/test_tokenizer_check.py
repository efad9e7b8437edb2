"""A model whose tokenizer cannot read plain text is refused when it is loaded, never used."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from command_line import refused
from families import tiny_model
from flashback.errors import FlashBackWarning, ReaderError
from flashback.readers.load import load_reader
from tiny_readers import byte_tokenizer


@pytest.fixture
def without(tmp_path: Path) -> Path:
    """A model's folder as `model.save_pretrained` alone makes it."""
    folder = tmp_path / "opt-125m"
    tiny_model("llama").save_pretrained(folder)
    return folder


def saved(folder: Path, tokenizer: Tokenizer) -> None:
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(folder)


def of_words(*words: str) -> Callable[[Path], None]:
    """A tokenizer that knows these words alone."""

    def save(folder: Path) -> None:
        known = {word: at for at, word in enumerate(["<s>", "<unk>", *words])}
        tokenizer = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        saved(folder, tokenizer)

    return save


def of_letters(alphabet: str) -> Callable[[Path], None]:
    """A tokenizer that knows these characters alone, in one case."""

    def save(folder: Path) -> None:
        known = {one: at for at, one in enumerate(["<s>", "<unk>", *alphabet])}
        tokenizer = Tokenizer(models.BPE(known, [], unk_token="<unk>"))
        tokenizer.normalizer = normalizers.Lowercase()
        saved(folder, tokenizer)

    return save


def config_alone(folder: Path) -> None:
    byte_tokenizer().save_pretrained(folder)
    (folder / "tokenizer.json").unlink()


def without_vocabulary(folder: Path) -> None:
    byte_tokenizer().save_pretrained(folder)
    record = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    record["model"]["vocab"] = {"<s>": 0, "</s>": 1}
    (folder / "tokenizer.json").write_text(json.dumps(record), "utf-8")


LETTERS = "abcdefghijklmnopqrstuvwxyz"
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no files": (lambda folder: None, "tokenizer.json"),
    "a configuration alone": (config_alone, "tokenizer.json"),
    "an empty vocabulary": (without_vocabulary, "damaged"),
    "unknown words": (of_words("hello", "world"), "damaged"),
    "no digits": (of_letters(LETTERS + " "), "digits"),
    "no letters": (of_letters("0123456789 "), "letters"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_tokenizer_that_loses_letters_or_digits_is_refused(without: Path, name: str) -> None:
    spoil, says = BROKEN[name]
    spoil(without)
    with pytest.raises(ReaderError, match=says) as error:
        load_reader(str(without))
    assert "\n" not in str(error.value)


def test_a_tokenizer_of_one_case_is_taken_and_lost_scripts_are_named(without: Path) -> None:
    of_letters(LETTERS + "0123456789 ")(without)
    with pytest.warns(FlashBackWarning, match=r"Cyrillic, Greek, Arabic, Devanagari, Chinese"):
        assert load_reader(str(without)).encode("AbC") == load_reader(str(without)).encode("abc")


def test_every_command_refuses_it(without: Path, index: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The tides follow the moon. " * 40, "utf-8")
    for arguments in (
        ("generate", "--index", index, "--model", without, "The tides"),
        ("ask", "--index", index, "--model", without, "The tides?"),
        ("eval", "perplexity", text, "--index", index, "--model", without),
        ("bench", "runtime", "--shape", without, "--lengths", "32:176", "--stride", "8"),
        ("bench", "batch", "--shape", without),
    ):
        assert "tokenizer.json" in refused(*arguments, code=1)


def test_a_known_shape_is_no_folder_of_that_name(
    without: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder beside is called `./opt-125m`."""
    from flashback.benchmark.shapes import shaped_reader

    monkeypatch.chdir(tmp_path)
    shutil.copytree(without, tmp_path / "gpt2")
    assert shaped_reader("gpt2", device="cpu").model.config.model_type == "gpt2"
    for folder in ("./gpt2", str(tmp_path / "opt-125m"), "../" + tmp_path.name + "/gpt2"):
        with pytest.raises(ReaderError, match=r"tokenizer\.json"):
            shaped_reader(folder, device="cpu")
    byte_tokenizer().save_pretrained(without)
    assert shaped_reader("./opt-125m", device="cpu").model.config.model_type == "llama"
