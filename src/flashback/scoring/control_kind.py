"""What can be shown instead of what was found; what shows it is `flashback.scoring.controls`."""

from enum import StrEnum


class Control(StrEnum):
    """What is shown instead of what was found."""

    RANDOM = "random"
    """What was found for a text of another document."""
    ORACLE = "oracle"
    """What is found for the ℓ tokens behind a boundary, in place of those before it."""
