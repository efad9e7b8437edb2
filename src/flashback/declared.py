"""How a setting is declared, once, and checked when it is made; and implementations by name.

A field is declared by `setting`: its default, what it means, its range and its flag. The command
line takes its options, defaults and help from here.
"""

import dataclasses
import reprlib
from collections.abc import Iterable, Sequence
from enum import StrEnum
from types import UnionType
from typing import Any, TypeVar, get_args

from flashback.errors import SettingsError

T = TypeVar("T")


class Registry(dict[str, T]):
    """Implementations by name, in the order in which they were registered."""

    def __init__(self, kind: str) -> None:
        """Begin without any; `kind` is what they are, for messages."""
        super().__init__()
        self.kind = kind

    def register(self, name: str, item: T) -> None:
        """Add an implementation.

        Raises:
            ValueError: the name is taken.
        """
        if name in self:
            raise ValueError(f"{self.kind} {name!r} is registered already")
        self[name] = item


AUTO = "auto"
"""In place of a name: what suits the rest, such as the pattern or the adapter for the reader."""


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    flag: str | None = None,
    choices: Iterable[str] = (),
    auto: bool = False,
) -> Any:
    """Declare a field of a settings class.

    Args:
        help: one line with the unit; shown by `--help`.
        low, high: the range of a number, both included.
        flag: its name on the command line, if that is not the field's.
        choices: the names that it may take, read whenever it is checked; an enumeration needs none.
        auto: whether it may also be `auto`.
    """
    declared = {"help": help, "low": low, "high": high, "flag": flag}
    metadata = declared | {"choices": choices, "auto": auto}
    return dataclasses.field(default=default, metadata=metadata)


def flag_of(field: "dataclasses.Field[Any]") -> str:
    """The command-line flag of a settings field."""
    return field.metadata.get("flag") or "--" + field.name.replace("_", "-")


def choices_of(field: "dataclasses.Field[Any]") -> list[str]:
    """The names that a settings field may take; empty if it takes any value."""
    declared = field.metadata.get("choices", ())
    auto = [AUTO] if field.metadata.get("auto") else []
    if isinstance(field.default, StrEnum) and not declared:
        declared = type(field.default)
    return auto + [str(name) for name in declared]


class CheckedSettings:
    """Checks every declared field when the settings are made."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = _checked(field, getattr(self, field.name))
            object.__setattr__(self, field.name, value)


def _checked(field: "dataclasses.Field[Any]", value: Any) -> Any:
    """A field's value as its type, or a refusal."""
    flag = flag_of(field) if field.metadata else field.name
    if (low := field.metadata.get("low")) is not None:
        check_number(flag, value, low, field.metadata["high"], whole=field.type is int)
        return float(value) if field.type is float else value  # 1 is as good as 1.0
    if names := choices_of(field):
        return named(flag, value, names, type(field.default))
    if isinstance(field.default, tuple):
        _check_texts(flag, value)
    else:
        check_type(flag, value, field.type)
    return value


def named(flag: str, value: object, names: Sequence[str], kind: type = str) -> Any:
    """One of several names, as its type.

    Raises:
        SettingsError: an unknown name.
    """
    if not isinstance(value, str) or value not in names:
        raise SettingsError(f"{flag}={reprlib.repr(value)}: expected one of {', '.join(names)}")
    return kind(str(value))


def check_type(name: str, value: object, kind: Any) -> None:
    """Refuse a value of another type with a SettingsError; `kind` is a class or a union of some."""
    if isinstance(kind, type | UnionType) and not isinstance(value, kind):
        kinds = get_args(kind) or (kind,)
        names = ("None" if one is type(None) else one.__name__ for one in kinds)
        raise SettingsError(f"{name}={reprlib.repr(value)}: expected {' or '.join(names)}")


def _check_texts(flag: str, value: Any) -> None:
    # A bare string would be taken letter by letter.
    if not isinstance(value, tuple) or not all(isinstance(text, str) for text in value):
        raise SettingsError(f"{flag}={reprlib.repr(value)}: expected a tuple of texts")


def check_number(flag: str, value: Any, low: float, high: float, *, whole: bool = True) -> None:
    """Refuse, with a SettingsError, anything but a number from `low` to `high` (included)."""
    good = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not good or not low <= value <= high:  # NaN is not within any range
        noun = "a whole number" if whole else "a number"
        found = reprlib.repr(value)
        raise SettingsError(f"{flag}={found}: expected {noun} from {_round(low)} to {_round(high)}")


def _round(number: float) -> str:
    return str(int(number)) if number == int(number) else f"{number:g}"
