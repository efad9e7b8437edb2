"""Command-line options made from settings classes, and settings made from options."""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import click

from flashback.declared import choices_of, flag_of

Command = Callable[..., Any]
SettingsT = TypeVar("SettingsT")


class Names(click.Choice[str]):
    """A choice among names that may be registered later."""

    def __init__(self, names: Callable[[], Collection[str]]) -> None:
        """Take a function that gives the names known now."""
        self._names = names
        super().__init__([])

    @property
    def choices(self) -> tuple[str, ...]:
        """The names known now."""
        return tuple(self._names())

    @choices.setter
    def choices(self, _: object) -> None:
        """Ignored: the names are looked up."""


def options_of(settings: type, only: Collection[str] = ()) -> Callable[[Command], Command]:
    """A decorator that adds one option for every declared field of a settings class.

    Args:
        only: the names of the fields wanted; none: all.
    """

    def add(command: Command) -> Command:
        for field in reversed(_declared(settings)):
            if only and field.name not in only:
                continue
            command = click.option(*_names(field), field.name, **_behaviour(field))(command)
        return command

    return add


def take(settings: type[SettingsT], values: dict[str, Any], **more: Any) -> SettingsT:
    """Build `settings` from the option values, removing from `values` what was used.

    Fields that are no options of the command keep their defaults.
    """
    names = [field.name for field in _declared(settings) if field.name in values]
    used = {name: values.pop(name) for name in names}
    return settings(**used, **more)


def _declared(settings: type) -> list["dataclasses.Field[Any]"]:
    return [field for field in dataclasses.fields(settings) if "help" in field.metadata]


def _names(field: "dataclasses.Field[Any]") -> tuple[str, ...]:
    flag = flag_of(field)
    # A switch that is on by default needs a way to turn it off.
    return (f"{flag}/--no-{flag[2:]}",) if field.default is True else (flag,)


def _behaviour(field: "dataclasses.Field[Any]") -> dict[str, Any]:
    default: Any = field.default
    common = {"help": field.metadata["help"], "default": default}
    if isinstance(default, bool):
        return common | {"is_flag": True, "show_default": default}
    if isinstance(default, tuple):
        return common | {"multiple": True, "show_default": False, "metavar": "TEXT"}
    if choices_of(field):
        known = Names(lambda: choices_of(field))
        return common | {"type": known, "default": str(default), "show_default": True}
    return common | {"type": type(default), "show_default": True}
