"""The Python interface: what `import flashback` offers, and that it stays light."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import flashback
from command_line import index_notes, refused, run
from flashback.errors import SettingsError
from flashback.retrieval.frameworks import retriever_of
from flashback.retrieval.protocol import NoRetriever

SETTINGS = flashback.Settings(
    flashback.RetrievalSettings("append", stride=8, passage_tokens=40),
    stopping=flashback.StoppingSettings(max_new_tokens=24),
)


def test_the_public_names_are_sorted_and_all_there_is() -> None:
    lazy = [name for names in flashback._MODULES.values() for name in names]
    assert flashback.__all__ == sorted(lazy)
    assert len(set(lazy)) == len(lazy)


@pytest.mark.parametrize("name", flashback.__all__)
def test_every_public_name_is_there_and_explained(name: str) -> None:
    found = getattr(flashback, name)
    assert found.__name__ == name
    explanation = found.__doc__ or ""
    assert explanation.strip()
    assert not explanation.startswith(f"{name}(")  # which dataclasses write for themselves


def test_other_names_are_missing_as_usual() -> None:
    with pytest.raises(AttributeError, match="module 'flashback' has no attribute 'nonsuch'"):
        _ = flashback.nonsuch
    assert not hasattr(flashback, "torch")


LIGHT = """
import sys
{}
heavy = sorted(sys.modules.keys() & {{"torch", "transformers", "safetensors"}})
sys.exit(f"{{heavy}} were imported" if heavy else 0)
"""
COMMAND = """
from flashback.cli.main import main
sys.argv = ["flashback", *{}]
try:
    main()
except SystemExit as exit:
    assert exit.code == 0
"""


def test_nothing_heavy_is_imported_before_it_is_needed(tmp_path: Path) -> None:
    search = ["search", str(index_notes(tmp_path)), "moon"]
    commands = (["--help"], ["generate", "--help"], search)
    for use in ("import flashback", *map(COMMAND.format, commands)):
        process = subprocess.run([sys.executable, "-c", LIGHT.format(use)], capture_output=True)
        assert (process.returncode, process.stderr) == (0, b"")


def test_ten_lines_write_a_text(model_folder: Path, tmp_path: Path) -> None:
    writer = flashback.load(str(model_folder), index_notes(tmp_path), device="cpu")
    result = writer.generate("What follows the moon? ", SETTINGS)
    assert len(result.tokens) == 24
    assert result.strides[0].passages[0].title == "moon.md"

    events = list(writer.stream("What follows the moon? ", SETTINGS))
    pieces = [event.text for event in events if isinstance(event, flashback.TextPiece)]
    assert len(pieces) > 1
    assert "".join(pieces) == result.text


def test_a_writer_may_stop_listening(model_folder: Path) -> None:
    writer = flashback.load(str(model_folder))
    settings = flashback.Settings(
        flashback.RetrievalSettings(pattern="none", stride=8, passage_tokens=40)
    )
    writing = writer.stream("x", settings)
    assert isinstance(next(iter(writing)), flashback.StrideStart)
    with pytest.raises(RuntimeError, match="not finished"):
        _ = writing.result
    writing.close()
    assert writer.generate("x", settings).finish_reason == "length"


def test_every_refusal_is_a_flashback_error(model_folder: Path) -> None:
    writer = flashback.load(str(model_folder))
    for call in (
        lambda: writer.generate("x"),
        lambda: flashback.load("./nowhere"),
        lambda: flashback.load(str(model_folder), index="nowhere"),
        lambda: flashback.RetrievalSettings(stride=0),
    ):
        with pytest.raises(flashback.FlashBackError):
            call()


def test_the_enumeration_of_patterns_is_deprecated() -> None:
    with pytest.warns(DeprecationWarning, match="settings take a pattern's name"):
        found: object = flashback.Pattern
    with pytest.warns(DeprecationWarning, match="Pattern is deprecated"):
        assert flashback.Pattern is found
    names: Any = found
    assert list(names) == ["auto", "none", "prepend", "append", "slot"]
    assert [name.retrieves for name in names] == [True, False, True, True, True]
    assert flashback.RetrievalSettings(names.SLOT) == flashback.RetrievalSettings("slot")


def test_former_counts_are_deprecated() -> None:
    usage = flashback.Usage(reused=1, prefilled=2, decoded=3, prefill_seconds=0.5)
    stride = flashback.Stride((), (), "", (), usage, 0.0)
    generation = flashback.Generation((), (stride,), "length", (), 1.0)
    with pytest.warns(DeprecationWarning, match=r"Usage.prefilled"):
        assert usage.encoded == 2
    with pytest.warns(DeprecationWarning, match=r"Usage.prefill_seconds"):
        assert usage.encode_seconds == 0.5
    with pytest.warns(DeprecationWarning, match=r"Generation.prefilled"):
        assert generation.encoded == 2


FORMER = [
    ({"quantize": "none"}, "full"),
    ({"quantize": "int8"}, "int8"),
    ({"decode_kernel": "pytorch"}, "full"),
    pytest.param(
        {"decode_kernel": "numba"},
        "numba",
        marks=pytest.mark.skipif(find_spec("numba") is None, reason="needs the extra numba"),
    ),
]
"""Deprecated names of `weights`."""


@pytest.mark.filterwarnings("default::flashback.errors.FlashBackWarning")
@pytest.mark.parametrize(("former", "weights"), FORMER)
def test_former_names_of_weights_warn(former: dict[str, str], weights: str) -> None:
    nowhere = "./nowhere"  # refused after the arguments were checked
    ((name, value),) = former.items()
    with (
        pytest.warns(DeprecationWarning, match=rf"load\({name}=...\).*use weights='{weights}'"),
        pytest.raises(flashback.FlashBackError, match="nowhere"),
    ):
        flashback.load(nowhere, device="cpu", **former)  # type: ignore[arg-type]
    option = "--" + name.replace("_", "-")
    arguments = ("--pattern", "none", "--model", nowhere, "--device", "cpu", "x")
    err = run("generate", option, value, *arguments, code=1).err
    assert f"{option} is deprecated; use --weights {weights}" in err


def test_two_kinds_of_weights_are_refused() -> None:
    with pytest.raises(
        flashback.FlashBackError, match="weights: expected one of them, found int8 and numba"
    ):
        flashback.load(quantize="int8", decode_kernel="numba")
    with pytest.raises(
        flashback.FlashBackError, match="weights: expected one of them, found int8 and numba"
    ):
        flashback.load(weights="numba", quantize="int8")
    both = ("--quantize", "int8", "--decode-kernel", "numba")
    assert "expected one of them" in refused("generate", *both, "--pattern", "none", "x")


def load(**arguments: Any) -> Callable[[], object]:
    return lambda: flashback.load(**arguments)


WRONG: dict[str, Callable[[], object]] = {
    "quantize='int4': expected one of none, int8": load(quantize="int4"),
    "decode_kernel='full': expected one of": load(decode_kernel="full"),
    "weights=3: expected one of full, numba, int8": load(weights=3),
    "pattern='middle': expected one of auto, none": load(pattern="middle"),
    "index=3: expected str or Path or Sequence or None": load(index=3),
    "retriever=3: expected an object with search(queries, options)": load(retriever=3),
    "model=None: expected str": load(model=None),
    "adapter=3: expected str or Path or None": load(adapter=3),
    "window='12': expected int or None": load(window="12"),
    "device=3: expected str": load(device=3),
    "memory_bytes=-1: expected a whole number from 0": load(memory_bytes=-1),
    "frame='x': expected FrameText or None": lambda: flashback.RetrievalSettings(frame="x"),  # type: ignore[arg-type]
    "before=3: expected str or None": lambda: flashback.FrameText(before=3),  # type: ignore[arg-type]
    "ignore_eos='no': expected bool": lambda: flashback.StoppingSettings(ignore_eos="no"),  # type: ignore[arg-type]
    "title='no': expected bool": lambda: flashback.IndexSettings(title="no"),  # type: ignore[arg-type]
    "retrieval='append': expected RetrievalSettings": lambda: flashback.Settings("append"),  # type: ignore[arg-type]
    "names=3: expected str or Path": lambda: flashback.index_corpus(3, "IDX"),  # type: ignore[arg-type]
    "folder=3: expected str or Path": lambda: flashback.index_corpus("x", 3),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_types_and_unknown_names_are_refused(message: str) -> None:
    with pytest.raises(SettingsError) as found:
        WRONG[message]()
    assert str(found.value).startswith(message)


def test_what_is_no_prompt_is_refused(model_folder: Path) -> None:
    writer: Any = flashback.load(model_folder)
    settings = flashback.Settings(
        flashback.RetrievalSettings("none", stride=8, passage_tokens=40),
        stopping=flashback.StoppingSettings(max_new_tokens=2),
    )
    for prompt in (3, None, b"text", [[3.5]], [1.5]):
        with pytest.raises(SettingsError, match="expected a text or token ids"):
            writer.generate(prompt, settings)
    others: tuple[object, ...] = ({}, "none", settings.retrieval)
    for wrong in others:
        with pytest.raises(SettingsError, match="expected Settings or None"):
            writer.generate("x", wrong)
    for size in (0, "8", 1.5):
        with pytest.raises(SettingsError, match=r"batch_size=.* expected a whole number"):
            writer.generate_batch(["x"], settings, batch_size=size)
    with pytest.raises(SettingsError, match="prompts=None: expected Iterable"):
        writer.generate_batch(None, settings)
    assert writer.generate_batch([], settings) == []
    assert isinstance(writer.reader.name, str)


class Strings:
    """A retriever that returns texts."""

    def search(self, queries: Sequence[str], options: flashback.SearchOptions) -> list[list[str]]:
        return [["The moon."] for _ in queries]


class Nothing:
    """A retriever that forgets to return."""

    def search(self, queries: Sequence[str], options: flashback.SearchOptions) -> None:
        pass


def generate(*arguments: Any, **named: Any) -> Callable[[Any], object]:
    return lambda writer: writer.generate(*arguments, **named)


def generate_with(retriever: object) -> Callable[[Any], object]:
    return lambda writer: flashback.Generator(
        writer.reader, writer.engine, retriever_of(retriever)
    ).generate("a")


MISUSED: list[tuple[Callable[[Any], object], str]] = [
    (generate(5), "prompt=5: expected a text or token ids"),
    (generate(["a", 3]), "prompt=3: expected a text or token ids"),
    (generate("a", 32), "settings=32: expected Settings or None"),
    (generate("a", max_new_tokens="many"), "max_new_tokens='many': expected a whole number"),
    (generate("a", temperature=-1), "temperature=-1: expected a number from 0 to 100"),
    (generate("a", pattern="slott"), "pattern='slott': expected one of auto, none, prepend"),
    (generate("a", patern="slot"), "patern: no such setting; did you mean pattern?"),
    (generate("a", lookahead=16), "lookahead=16: expected less than stride=16"),
    (lambda writer: writer.chat("text"), "messages='text': expected a list of {'role': ...,"),
    (
        lambda writer: writer.chat([{"role": "user"}]),
        "messages.0.content=None: expected a text, or a list of",
    ),
    (
        generate_with(Strings()),
        "retriever Strings: search returned [['The moon.']]; expected a list of flashback.Hit for",
    ),
    (generate_with(Nothing()), "retriever Nothing: search returned None; expected a list of"),
]


@pytest.mark.parametrize(("call", "message"), MISUSED)
def test_a_wrong_call_is_told_in_one_line(
    call: Callable[[Any], object], message: str, model_folder: Path
) -> None:
    writer = flashback.load(model_folder, retriever=NoRetriever(), device="cpu")
    with pytest.raises(SettingsError) as found:
        call(writer)
    assert str(found.value).startswith(message)
    assert "\n" not in str(found.value)


def test_one_query_needs_a_list(tmp_path: Path) -> None:
    index: Any = flashback.BM25Index.open(index_notes(tmp_path))
    with pytest.raises(SettingsError, match=r"queries='moon': expected several.*use \[...\]"):
        index.search("moon", flashback.SearchOptions())
    with pytest.raises(SettingsError, match="k=0: expected at least 1 passage"):
        index.search(["moon"], flashback.SearchOptions(k=0))
