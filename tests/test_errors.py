"""Messages for users: with Python's arguments as text, with flags on the command line."""

import dataclasses
import warnings

import pytest

import flashback
from command_line import refused
from flashback.declared import flag_of
from flashback.errors import FlashBackWarning, SettingsError
from flashback.readers.lora_settings import LoraSettings
from flashback.scoring.window_settings import WindowSettings
from flashback.training.training_settings import TrainingSettings


@pytest.mark.parametrize(
    ("message", "in_python", "on_command_line"),
    [
        ("--stride=0: expected", "stride=0: expected", "--stride 0: expected"),
        ("use --dtype='float32'", "use dtype='float32'", "use --dtype float32"),
        ("use --truncate=True to", "use truncate=True to", "use --truncate to"),
        ("--deduplicate=False", "deduplicate=False", "--no-deduplicate"),
        ("--stop='': expected", "stop='': expected", "--stop '': expected"),
        ("lower --k or --m-n", "lower k or m_n", "lower --k or --m-n"),
        ("see `a --b-c`", "see `a --b-c`", "see `a --b-c`"),
        ("a--b", "a--b", "a--b"),
    ],
)
def test_a_message_has_arguments_or_flags(
    message: str, in_python: str, on_command_line: str
) -> None:
    for told in (SettingsError(message), FlashBackWarning(message)):
        assert str(told) == in_python
        assert told.for_command_line == on_command_line


def test_python_and_the_command_line_say_the_same() -> None:
    with pytest.raises(SettingsError) as found:
        flashback.RetrievalSettings(stride=0)
    assert str(found.value) == "stride=0: expected a whole number from 1 to 1048576"
    said = refused("generate", "--pattern", "none", "--stride", "0", "x")
    assert "--stride 0: expected a whole number from 1 to 1048576" in said


def test_every_flag_has_the_name_of_its_argument() -> None:
    kinds = (
        *(flashback.RetrievalSettings, flashback.SamplingSettings, flashback.StoppingSettings),
        *(flashback.Settings, flashback.IndexSettings),
        *(LoraSettings, TrainingSettings, WindowSettings),
    )
    for kind in kinds:
        for field in dataclasses.fields(kind):
            assert SettingsError(flag_of(field)).argument == field.name


def test_a_shown_warning_has_arguments() -> None:
    with pytest.warns(FlashBackWarning) as caught:
        warnings.warn("raise --passage-tokens", FlashBackWarning, stacklevel=1)
    shown = warnings.formatwarning(caught[0].message, FlashBackWarning, "x.py", 1)
    assert "FlashBackWarning: raise passage_tokens" in shown
