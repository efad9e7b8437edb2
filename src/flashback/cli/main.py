"""The command line: parse, call, print. Errors are one line; exit codes 0, 1 failure, 2 usage."""

import errno
import io
import logging
import re
import sys
import warnings
from typing import TextIO

import click

from flashback.cli.ask import ask
from flashback.cli.audit import audit
from flashback.cli.bench import bench
from flashback.cli.chat import chat
from flashback.cli.demo import demo
from flashback.cli.evaluate import evaluate
from flashback.cli.generate import generate
from flashback.cli.index import index, search
from flashback.cli.models import models
from flashback.cli.pareto import pareto
from flashback.cli.plan import plan
from flashback.cli.questions import qa
from flashback.cli.replicas import replicas
from flashback.cli.reproduce import reproduce
from flashback.cli.retrieval import retrieval
from flashback.cli.serve import serve
from flashback.cli.swap import swap
from flashback.cli.train import export, train
from flashback.errors import FlashBackError, FlashBackWarning
from flashback.version import __version__

INTERRUPTED = 130
"""The shell's convention for Ctrl-C."""
_NO_MEMORY = re.compile("out of memory|allocate memory|not enough memory")
"""How PyTorch's errors say so, on different devices."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="flashback")
@click.option("-v", "--verbose", is_flag=True, help="Say what is measured and chosen.")
def app(verbose: bool) -> None:
    """Retrieval-augmented writing that does not waste the KV cache (arXiv 2405.04065).

    \b
    flashback demo                                   see it work, with what is installed
    flashback index FOLDER --out IDX                 make an index of your texts
    flashback generate --index IDX "Once upon"       write, retrieving every 16 tokens
    """
    if verbose:
        log = logging.getLogger("flashback")
        handler = logging.StreamHandler()  # to standard error
        handler.setFormatter(logging.Formatter("flashback: %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)


COMMANDS = (
    *(index, search, ask, chat, generate, demo, serve, models),
    *(train, export, evaluate, reproduce, bench, plan),
)
for command in COMMANDS:
    app.add_command(command)
bench.add_command(pareto)
bench.add_command(replicas)
index.add_command(audit)
evaluate.add_command(qa)
evaluate.add_command(retrieval)
evaluate.add_command(swap)


def main() -> None:
    """Run the command line and exit."""
    warnings.showwarning = _show_warning
    if isinstance(sys.stdout, io.TextIOWrapper):  # which may be unable to encode every character
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(_run())


def _run() -> int:
    try:
        _check_arguments(sys.argv[1:])
        # Exits with 1 by itself when the reader of our output has left, as `| head` does.
        app(prog_name="flashback", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        return _fail(_usage_message(error), error.exit_code)
    except FlashBackError as error:
        return _fail(error.for_command_line, error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", INTERRUPTED)
    except OSError as error:
        return _fail(_system_message(error), 1)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _NO_MEMORY.search(str(error)):
            raise
        return _fail("out of memory; use a smaller model, a smaller --window or bfloat16", 1)
    return 0


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Our own warnings, in one line; those of libraries are for developers."""
    if isinstance(message, FlashBackWarning):
        click.echo(f"flashback: warning: {message.for_command_line}", err=True)


def _check_arguments(arguments: list[str]) -> None:
    """Python lets bytes that are no text through; tokenizers and the index do not."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise click.UsageError(f"argument {argument!r} is not UTF-8; expected text") from None


def _usage_message(error: click.ClickException) -> str:
    message = error.format_message()
    context = getattr(error, "ctx", None)
    return f"{message.rstrip('.')}; see '{context.command_path} --help'" if context else message


def _system_message(error: OSError) -> str:
    # Files are opened by name; what is written without one is standard output.
    writing = error.errno in (errno.ENOSPC, errno.EIO)
    name = error.filename or ("standard output" if writing else None)
    return f"{name}: {error.strerror}" if name else str(error)


def _fail(message: str, code: int) -> int:
    click.echo(f"flashback: {' '.join(message.splitlines())}", err=True)
    return code
