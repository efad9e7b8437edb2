"""How the confidence intervals of an evaluation are computed."""

from dataclasses import dataclass

from flashback.declared import CheckedSettings, setting


@dataclass(frozen=True)
class BootstrapSettings(CheckedSettings):
    """The bootstrap over documents."""

    resamples: int = setting(
        2000, "Resamples of the documents, for the 95 % intervals.", low=10, high=1_000_000
    )
