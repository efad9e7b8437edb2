"""What the command line refuses of --pattern, and its options where `auto` has no meaning."""

from collections.abc import Callable
from typing import Any

import click

from flashback.errors import SettingsError
from flashback.settings import PATTERNS, Pattern


def trained_pattern_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where passages stand while an adapter is trained."""
    return click.option(
        "--pattern",
        type=click.Choice(list(map(str, PATTERNS))),
        default=str(Pattern.APPEND),
        show_default=True,
        help="Where passages stand; none: nothing is retrieved, an index is not used.",
    )(command)


def check_echo(echo_tokens: int, pattern: Pattern) -> None:
    """Refuse an echo where nothing stands behind the context.

    Raises:
        SettingsError: the pattern is not `append`.
    """
    if echo_tokens and pattern is not Pattern.APPEND:
        raise SettingsError(
            f"--echo-tokens {echo_tokens}: has no effect with --pattern {pattern}; leave it out"
        )
