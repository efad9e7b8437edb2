"""Every setting of an evaluation but what is scored, typed, checked when it is made."""

from dataclasses import dataclass

from flashback.settings import CheckedSettings, setting


@dataclass(frozen=True)
class BootstrapSettings(CheckedSettings):
    """How intervals are made."""

    resamples: int = setting(
        2000, "Resamples of the documents, for the 95 % intervals.", low=10, high=1_000_000
    )
