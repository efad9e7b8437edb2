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
    sections = [_INTRODUCTION]
    for path, command in _commands((), app):
        name = " ".join(("flashback", *path))
        context = click.Context(command, info_name=name, max_content_width=100, terminal_width=100)
        sections.append(f"## {name}\n\n```text\n{command.get_help(context).rstrip()}\n```\n")
    return "\n".join(sections)


def _commands(
    path: tuple[str, ...], command: click.Command
) -> list[tuple[tuple[str, ...], click.Command]]:
    found = [(path, command)]
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            found += _commands((*path, name), command.commands[name])
    return found


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(PAGE.read_text("utf-8") != render() and "docs/cli.md is stale; run `make docs`")
    PAGE.write_text(render(), "utf-8")
