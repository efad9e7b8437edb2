"""Which pattern a command writes with when --pattern says nothing."""

from dataclasses import replace
from typing import Any

import pytest

from families import FAMILIES, SLIDING
from flashback.cli.patterns import Choice
from flashback.engines.local import LocalEngine
from flashback.generation import Generator
from flashback.settings import Pattern
from readers import tiny_reader


def writer(family: str = "llama", adapter: Any = None, **options: Any) -> Generator:
    reader = replace(tiny_reader(family, **options), adapter=adapter)
    return Generator(reader, LocalEngine(reader.model, reader.window, self_check=False), None)


class Card:
    """Of an adapter."""

    def __init__(self, pattern: Pattern) -> None:
        self.pattern = pattern


@pytest.mark.parametrize("family", FAMILIES)
def test_passages_stand_in_a_slot_where_there_can_be_one(family: str) -> None:
    expected = Pattern.APPEND if family in SLIDING else Pattern.SLOT
    for adapter in ("auto", "none"):
        assert Choice("auto", adapter).of(writer(family)) == expected


@pytest.mark.parametrize("pattern", Pattern)
def test_an_adapter_decides_unless_something_is_said(pattern: Pattern) -> None:
    adapted = writer(adapter=Card(pattern))
    assert Choice("auto", "FOLDER").of(adapted) == pattern
    assert Choice("prepend", "FOLDER").of(adapted) == Pattern.PREPEND
    assert Choice(str(pattern), "none").of(writer()) == pattern


def test_a_checkpoint_with_marks_was_trained_to_read_behind_the_text() -> None:
    assert Choice("auto", "auto").of(writer(marks=True)) == Pattern.APPEND


def test_what_ships_is_asked_for_by_the_likely_pattern() -> None:
    assert Choice("auto", "auto").adapter_for == Pattern.SLOT
    assert Choice("append", "auto").adapter_for == Pattern.APPEND
    assert Choice("auto", "FOLDER").adapter_for is None
