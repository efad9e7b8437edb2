"""--pattern: what `auto` means before a model is loaded, what goes with it, and where it is not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from flashback.errors import SettingsError
from flashback.patterns.registry import PATTERNS
from flashback.settings import AUTO, RetrievalSettings


def trained_pattern_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where passages stand while an adapter is trained."""
    return click.option(
        "--pattern",
        type=click.Choice(list(PATTERNS)),
        default="append",
        show_default=True,
        help="Where passages stand; none: nothing is retrieved, an index is not used.",
    )(command)


def as_trained(retrieval: RetrievalSettings, adapter: str | None) -> RetrievalSettings:
    """With the pattern of an adapter's folder in place of `auto`; without one, as it is.

    Raises:
        AdapterError: the folder is missing or damaged.
    """
    if retrieval.pattern != AUTO or adapter in (None, "auto"):
        return retrieval
    from flashback.readers.card import read_card

    return replace(retrieval, pattern=read_card(Path(str(adapter))).pattern)


def check_echo(echo_tokens: int, pattern: str) -> None:
    """Refuse an echo where nothing stands behind the context.

    Raises:
        SettingsError: the pattern is not `append`.
    """
    if echo_tokens and pattern != "append":
        raise SettingsError(
            f"--echo-tokens {echo_tokens}: has no effect with --pattern {pattern}; leave it out"
        )
