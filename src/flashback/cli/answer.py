"""An answer to a question, printed as it is written, with its sources below."""

from typing import TYPE_CHECKING

import click

from flashback.cli.console import notes
from flashback.cli.writing_options import print_summary, warn_if_empty

if TYPE_CHECKING:
    from flashback.writing.generator import Generation, Writing


def print_answer(writing: "Writing") -> None:
    """Print the answer as it is written, then its sources."""
    from flashback.writing.generator import TextPiece

    for event in writing:
        if isinstance(event, TextPiece):
            click.echo(event.text, nl=False)
    click.echo()
    print_sources(writing.result)
    if notes.is_terminal:
        print_summary(writing.result)
    warn_if_empty(writing.result)


def print_sources(answer: "Generation", *, whole: bool = False) -> None:
    """Print the passages of an answer: their titles, or the whole texts."""
    for number, hit in enumerate(answer.sources, start=1):
        click.echo(f"[{number}] {hit.source}")
        if whole:  # a passage often begins with its title
            click.echo(f"    {' '.join(hit.text.removeprefix(hit.title).split())}")
