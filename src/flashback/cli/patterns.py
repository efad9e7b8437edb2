"""--pattern and the options that depend on it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import click

from flashback.cli.options import Names
from flashback.declared import AUTO
from flashback.errors import SettingsError
from flashback.patterns.registry import PATTERNS
from flashback.readers.shipped import adapter_path
from flashback.settings import RetrievalSettings


def trained_pattern_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where passages stand while an adapter is trained."""
    return click.option(
        "--pattern",
        type=Names(lambda: list(PATTERNS)),
        default="append",
        show_default=True,
        help="Where passages stand; none: nothing is retrieved, an index is not used.",
    )(command)


def as_trained(retrieval: RetrievalSettings, adapter: str | None) -> RetrievalSettings:
    """The pattern of an adapter in place of `auto`; without an adapter, unchanged.

    Raises:
        AdapterError: it is missing or damaged.
    """
    if retrieval.pattern != AUTO or adapter in (None, "auto"):
        return retrieval
    from flashback.readers.card import read_card

    return replace(retrieval, pattern=read_card(adapter_path(str(adapter))).pattern)


def check_frame_before(frame_before: str, pattern: str) -> None:
    """Refuse a text in front of passages for a pattern that has none.

    Raises:
        SettingsError: the pattern does not retrieve.
    """
    if frame_before not in ("", AUTO) and not PATTERNS[pattern].retrieves:
        raise SettingsError(
            f"--frame-before {frame_before!r}: has no effect with --pattern {pattern}; leave it out"
        )


def check_echo(echo_tokens: int, pattern: str) -> None:
    """Refuse an echo for a pattern that uses none.

    Raises:
        SettingsError: the pattern has no echo.
    """
    if echo_tokens and not PATTERNS[pattern].echoes:
        raise SettingsError(
            f"--echo-tokens {echo_tokens}: has no effect with --pattern {pattern}; leave it out"
        )
