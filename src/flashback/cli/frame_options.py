"""The options for the text around passages, as one value."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from flashback.settings import FrameText

Command = Callable[..., Any]


@dataclass(frozen=True)
class FrameOptions:
    """The options of a command that choose the text around passages."""

    before: str | None
    after: str | None
    echo_tokens: int | None

    @property
    def text(self) -> FrameText | None:
        """The frame that was asked for, if any was."""
        given = {"before": self.before, "after": self.after, "echo_tokens": self.echo_tokens}
        changed: dict[str, Any] = {name: one for name, one in given.items() if one is not None}
        return FrameText(**changed) if changed else None


def frame_options(command: Command) -> Command:
    """The options for the text around a passage; given as `frame`."""

    @functools.wraps(command)
    def run(
        frame_before: str | None, frame_after: str | None, echo_tokens: int | None, **values: Any
    ) -> Any:
        return command(frame=FrameOptions(frame_before, frame_after, echo_tokens), **values)

    for option in (
        click.option(
            "--echo-tokens",
            type=int,
            help="Repeat this many of the context's last tokens behind an appended passage "
            "(default: 16, or as the adapter was trained; in a chat, tokens of the answer only).",
        ),
        click.option("--frame-after", help="Text after a passage; likewise."),
        click.option(
            "--frame-before",
            help="Text before a passage, special tokens included; replaces marks, 'Reference: ' "
            "(appended: ' [Reference: ') and, in a chat, the template's turns.",
        ),
    ):
        run = option(run)
    return run
