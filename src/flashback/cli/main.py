"""The command line: parse, call, print. Errors are one line; exit codes 0, 1 failure, 2 usage."""

import os
import sys

import click

from flashback import __version__
from flashback.cli.demo import demo
from flashback.cli.generate import generate
from flashback.cli.index import index, search
from flashback.errors import FlashBackError

INTERRUPTED = 130
"""The shell's convention for Ctrl-C."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="flashback")
def app() -> None:
    """Retrieval-augmented writing that does not waste the KV cache (arXiv 2405.04065).

    \b
    flashback demo                                   see it work, with what is installed
    flashback index FOLDER --out IDX                 make an index of your texts
    flashback generate --index IDX "Once upon"       write, retrieving every 16 tokens
    """


for command in (index, search, generate, demo):
    app.add_command(command)


def main() -> None:
    """Run the command line and exit."""
    sys.exit(_run())


def _run() -> int:
    try:
        app(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        return _fail(error.format_message().replace("\n", " "), error.exit_code)
    except FlashBackError as error:
        return _fail(str(error).replace("\n", " "), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return _fail(f"{name}{error.strerror or error}", 1)
    except MemoryError:
        return _fail("out of memory; use a smaller model, --dtype bfloat16 or a smaller window", 1)
    return 0


def _fail(message: str, code: int) -> int:
    click.echo(f"flashback: {message}", err=True)
    return code
