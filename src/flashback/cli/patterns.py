"""The option --pattern of commands that write, and what it means when nobody says anything."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import click

from flashback.errors import SettingsError
from flashback.settings import Pattern, RetrievalSettings

if TYPE_CHECKING:
    from flashback.generation import Generator

AUTO = "auto"
RETRIEVAL_OPTIONS = [
    field.name
    for field in fields(RetrievalSettings)
    if "help" in field.metadata and field.name != "pattern"
]
"""The fields that are options as they are declared."""


def pattern_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where passages stand."""
    return click.option(
        "--pattern",
        type=click.Choice([AUTO, *map(str, Pattern)]),
        default=AUTO,
        show_default=True,
        help="Where passages stand. auto: as --adapter was trained; without one in a slot, or "
        "appended if the model can have none or has marking tokens. none: nothing is retrieved, an "
        "index is not used.",
    )(command)


@dataclass(frozen=True)
class Choice:
    """What --pattern and --adapter say."""

    pattern: str
    adapter: str

    @property
    def likely(self) -> Pattern:
        """The pattern, as far as it is known before a model is loaded."""
        return Pattern.SLOT if self.pattern == AUTO else Pattern(self.pattern)

    @property
    def adapter_for(self) -> Pattern | None:
        """The pattern for which an adapter that ships is wanted; None: the adapter decides."""
        return None if self._adapter_decides else self.likely

    def of(self, writer: "Generator") -> Pattern:
        """The pattern that a loaded writer is to have."""
        if self.pattern != AUTO:
            return Pattern(self.pattern)
        card = writer.reader.adapter
        if card is not None:
            return card.pattern
        if writer.reader.marks is not None:  # an exported checkpoint, trained to read them
            return Pattern.APPEND
        slot = writer.engine.capabilities.slot and writer.reader.can_have_slot
        return Pattern.SLOT if slot else Pattern.APPEND

    @property
    def _adapter_decides(self) -> bool:
        return self.pattern == AUTO and self.adapter not in (AUTO, "none")


def check_echo(echo_tokens: int, pattern: Pattern) -> None:
    """Refuse an echo where nothing stands behind the context.

    Raises:
        SettingsError: the pattern is not `append`.
    """
    if echo_tokens and pattern is not Pattern.APPEND:
        raise SettingsError(
            f"--echo-tokens {echo_tokens}: has no effect with --pattern {pattern}; leave it out"
        )
