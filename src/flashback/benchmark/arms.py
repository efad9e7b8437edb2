"""The arms of the run-time test: every context pattern, and variants of some."""

from dataclasses import dataclass

from flashback.errors import SettingsError
from flashback.patterns.pattern import ContextPattern
from flashback.patterns.registry import PATTERNS


@dataclass(frozen=True)
class RuntimeArm:
    """One way to run the test."""

    pattern: str
    cached: bool = False
    """The keys and values of all passages are in the passage cache from the start."""
    every_logit: bool = False
    """Logits are computed at every position, as the authors' code does."""

    @property
    def context_pattern(self) -> ContextPattern:
        """The pattern's object."""
        return PATTERNS[self.pattern]

    @property
    def title(self) -> str:
        """In figures."""
        cached = ", passages cached" if self.cached else ""
        logits = ", logits everywhere" if self.every_logit else ""
        return f"{self.context_pattern.title}{cached}{logits}"

    def __str__(self) -> str:
        """As `--pattern` takes it."""
        return f"{'authors_' * self.every_logit}{self.pattern}{'_cached' * self.cached}"


def all_arms() -> dict[str, RuntimeArm]:
    """Every arm, by name."""
    arms = []
    for name, pattern in PATTERNS.items():
        arms += [RuntimeArm(name, cached=True)] if pattern.isolated else []
        arms.append(RuntimeArm(name))
    arms.append(RuntimeArm("prepend", every_logit=True))
    return {str(arm): arm for arm in arms}


def arm_named(name: str) -> RuntimeArm:
    """The arm of this name.

    Raises:
        SettingsError: there is none.
    """
    arms = all_arms()
    if name not in arms:
        raise SettingsError(f"--pattern={name!r}: expected one of {', '.join(arms)}")
    return arms[name]
