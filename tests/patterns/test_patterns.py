"""Which pattern is meant by `auto`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from families import FAMILIES, SLOTTED
from flashback.declared import AUTO
from flashback.engines.local import LocalEngine
from flashback.errors import FlashBackWarning, SettingsError
from flashback.patterns.registry import PATTERNS
from flashback.readers.adapted import adapter_folder
from flashback.readers.load import MINI
from flashback.scoring.window_settings import WindowSettings
from flashback.settings import RetrievalSettings, Settings
from flashback.training.run import Run
from flashback.training.training_settings import TrainingSettings
from flashback.writing.generator import Generator
from tiny_readers import tiny_reader


def writer(family: str = "llama", adapter: Any = None, **options: Any) -> Generator:
    reader = replace(tiny_reader(family, **options), adapter=adapter)
    return Generator(reader, LocalEngine(reader.model, reader.window, self_check=False), None)


class Card:
    """Of an adapter."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern


def chosen(writer: Generator, pattern: str = AUTO) -> str:
    settings = Settings(RetrievalSettings(pattern, stride=7), truncate=True)
    found = writer.settled(settings)
    assert found == replace(
        settings, retrieval=replace(settings.retrieval, pattern=found.retrieval.pattern)
    )
    return found.retrieval.pattern


def test_auto_is_what_settings_say_that_say_nothing() -> None:
    assert RetrievalSettings().pattern == AUTO
    assert AUTO not in PATTERNS
    assert list(PATTERNS) == ["none", "prepend", "append", "slot"]


@pytest.mark.parametrize("family", FAMILIES)
def test_passages_stand_in_a_slot_where_there_can_be_one(family: str) -> None:
    if family in SLOTTED:
        assert chosen(writer(family)) == "slot"
        return
    with pytest.warns(FlashBackWarning, match="does not support a slot"):
        assert chosen(writer(family)) == "prepend"  # untrained, an appended passage is misread


def test_an_engine_without_a_slot_has_passages_prepended() -> None:
    engine = writer().engine
    assert isinstance(engine, LocalEngine)
    engine.capabilities = replace(engine.capabilities, slot=False)
    with pytest.warns(FlashBackWarning, match="does not support a slot"):
        assert chosen(Generator(tiny_reader(), engine, None)) == "prepend"


@pytest.mark.parametrize("pattern", PATTERNS)
def test_an_adapter_decides_unless_something_is_said(pattern: str) -> None:
    adapted = writer(adapter=Card(pattern))
    assert chosen(adapted) == pattern
    assert chosen(adapted, "prepend") == "prepend"
    assert chosen(writer(), pattern) == pattern


def test_a_checkpoint_with_marks_was_trained_to_read_behind_the_text() -> None:
    assert chosen(writer(marks=True)) == "append"


def test_what_ships_is_taken_for_its_own_pattern() -> None:
    assert adapter_folder(MINI, AUTO, AUTO) is None
    assert adapter_folder(MINI, AUTO, "slot") is None
    assert adapter_folder(MINI, AUTO, "append") is not None
    assert adapter_folder(MINI, "FOLDER", AUTO) == Path("FOLDER")


def test_a_training_must_say_where_passages_stand() -> None:
    with pytest.raises(SettingsError, match=r"pattern='auto': .* expected one of none, prepend"):
        Run(TrainingSettings(), RetrievalSettings(), WindowSettings())
