"""Settings by name: `generate(prompt, max_new_tokens=32)`, as people write Python."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from flashback.declared import check_type
from flashback.errors import SettingsError
from flashback.settings import RetrievalSettings, SamplingSettings, Settings, StoppingSettings

_PARTS = {
    "retrieval": RetrievalSettings,
    "sampling": SamplingSettings,
    "stopping": StoppingSettings,
}
_TEXTS = {
    field.name
    for kind in (Settings, *_PARTS.values())
    for field in dataclasses.fields(kind)
    if isinstance(field.default, tuple)
}
"""The settings that are several texts."""


def _names(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def changed(settings: Settings | None, named: Mapping[str, Any]) -> Settings:
    """Settings with some of them, at whatever depth, replaced by name.

    Args:
        settings: None: the defaults.
        named: values by the names of fields of `Settings` and its parts; where a tuple of texts is
            expected, one text or a list will do.

    Raises:
        SettingsError: an unknown name, a wrong type, or a value out of range.
    """
    check_type("settings", settings, Settings | None)
    settings = settings or Settings()
    left = {name: _tuple(value) if name in _TEXTS else value for name, value in named.items()}
    own: dict[str, Any] = {name: left.pop(name) for name in _names(Settings) & left.keys()}
    settings = dataclasses.replace(settings, **own)
    for part, kind in _PARTS.items():
        if found := {name: left.pop(name) for name in _names(kind) & left.keys()}:
            own[part] = dataclasses.replace(getattr(settings, part), **found)
    settings = dataclasses.replace(settings, **own)
    if left:
        raise SettingsError(_unknown(next(iter(left))))
    return settings


def _tuple(value: object) -> object:
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def _unknown(name: str) -> str:
    known = sorted(set().union(*map(_names, (Settings, *_PARTS.values()))))
    close = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(known)}"
    return f"{name}: no such setting; {hint}"
