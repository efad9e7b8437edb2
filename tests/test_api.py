"""The Python interface: what `import flashback` offers, and that it stays light."""

import subprocess
import sys
from pathlib import Path

import pytest

import flashback
from command_line import index_notes

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
    for refused in (
        lambda: writer.generate("x"),
        lambda: flashback.load("./nowhere"),
        lambda: flashback.load(str(model_folder), index="nowhere"),
        lambda: flashback.RetrievalSettings(stride=0),
    ):
        with pytest.raises(flashback.FlashBackError):
            refused()
