"""All context patterns. A new one is a file beside this one and a line here."""

from collections.abc import Callable

from flashback.declared import Registry
from flashback.errors import SettingsError
from flashback.patterns.append import Append
from flashback.patterns.none import NoPassages
from flashback.patterns.pattern import ContextPattern
from flashback.patterns.prepend import Prepend
from flashback.patterns.slot import Slot
from flashback.settings import PATTERNS as _PATTERNS

PATTERNS: Registry[ContextPattern] = _PATTERNS
"""By name. Settings name a pattern; `PATTERNS[name]` is the object."""

PATTERNS.register(NoPassages.name, NoPassages())
PATTERNS.register(Prepend.name, Prepend())
PATTERNS.register(Append.name, Append())
PATTERNS.register(Slot.name, Slot())

_UNTRAINED = (Slot.name, Prepend.name)
"""What `auto` means for a reader without adapter or marking tokens: the first that is possible."""


def best_untrained(possible: Callable[[ContextPattern], bool]) -> str:
    """The name of the pattern that an untrained reader reads best, among the possible ones.

    Raises:
        SettingsError: none is possible.
    """
    for name in _UNTRAINED:
        if possible(PATTERNS[name]):
            return name
    raise SettingsError(f"--pattern='auto': expected one of {', '.join(PATTERNS)}")
