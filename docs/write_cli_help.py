"""Write docs/cli.md from the commands' own help; `--check` only says whether it is current."""

import sys
from pathlib import Path

import click

from flashback.cli.main import app

PAGE = Path(__file__).parent / "cli.md"
_INTRODUCTION = """# Command line

Written by `make docs` from the commands' own help; a test keeps it current.

Results go to standard output, notes and progress to standard error. `-` reads standard input where
a text or a corpus is expected. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""


def render() -> str:
    """The page as it should be."""
    root = click.Context(app, info_name="flashback", terminal_width=100, **app.context_settings)
    return "\n".join([_INTRODUCTION, *map(_section, _contexts(root))])


def _section(context: click.Context) -> str:
    return f"## {context.command_path}\n\n```text\n{context.get_help().rstrip()}\n```\n"


def _contexts(context: click.Context) -> list[click.Context]:
    """Every command as it is met on the command line, below its groups."""
    found = [context]
    command = context.command
    if isinstance(command, click.Group):
        for name, child in sorted(command.commands.items()):
            own = click.Context(child, info_name=name, parent=context, **child.context_settings)
            found += _contexts(own)
    return found


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(PAGE.read_text("utf-8") != render() and "docs/cli.md is stale; run `make docs`")
    PAGE.write_text(render(), "utf-8")
