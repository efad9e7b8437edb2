"""`flashback chat`."""

import contextlib
import json
import os
import signal
import warnings
from collections.abc import Iterator, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from flashback.cli.answer import print_answer, print_sources
from flashback.cli.console import at_terminal, notes, read_lines
from flashback.cli.patterns import check_echo
from flashback.cli.reader_options import ReaderOptions
from flashback.cli.writing_options import WritingRequest, turn_options, writing_request
from flashback.errors import FlashBackError, FlashBackWarning, SettingsError
from flashback.files import rewrite
from flashback.patterns.registry import PATTERNS
from flashback.readers.weight_settings import Weights
from flashback.settings import Settings

if TYPE_CHECKING:
    from flashback.readers.messages import Message
    from flashback.writing.generator import Generation, Generator, Writing

_DEFAULTS = {"max_new_tokens": 256}
_KEPT = {"role", "content", "name"}
"""What a message in a file has."""
_HELP = """\
/new            begin a new conversation; the system message stays
/pattern NAME   where passages stand from the next answer on: {patterns}
/sources        the passages behind the last answer, whole
/help           this list
/quit           end; so does the end of the input
A line is a message; one that begins with a slash needs a space before it. Ctrl-C ends an answer."""


@click.command(
    short_help="Talk with a chat model about your texts.",
    context_settings={"default_map": _DEFAULTS},
)
@click.option("--system", help="The system message.")
@click.option(
    "--file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Keep the conversation in this file; one that is in it goes on.",
)
@turn_options
def chat(
    system: str | None,
    file: Path | None,
    options: ReaderOptions,
    weights: Weights,
    **values: Any,
) -> None:
    """Talk with a model about your texts: a line is a message; sources stand below each answer.

    \b
    flashback chat --index IDX --model MODEL
    flashback chat --index IDX --model MODEL --file talk.json --system "Be brief."

    /new, /pattern NAME, /sources, /help and /quit are commands. A conversation that outgrows the
    window goes on without its oldest messages, and says so.
    """
    request = writing_request(values)
    messages = _begun(file, system)
    writer, settings = request.load(options, weights, always_index=True)
    talk = _Talk(request, writer, replace(settings, truncate=True), messages, file)
    talk.check(talk.settings)
    if at_terminal():
        told = sum(one["role"] == "user" for one in messages)
        so_far = f"{told} question{'s' * (told > 1)} so far; " if told else ""
        notes.print(f"{so_far}/help lists the commands")
    for line in read_lines("> "):
        with _complaining():
            if not line.startswith("/"):
                talk.say(line.strip())
            elif line.split()[0] == "/quit":
                break
            else:
                talk.obey(*line.split())


def _begun(file: Path | None, system: str | None) -> "list[Message]":
    """The messages that the conversation begins with.

    Raises:
        click.UsageError: the file is no conversation, or has another system message.
    """
    kept = [] if file is None else _read(file)
    if system is None:
        return kept
    own = [{"role": "system", "content": system}]
    if not kept:
        return [*own]
    if kept[:1] != own:
        raise click.UsageError(
            f"--system: the conversation in {file} has no such system message; leave it out, or "
            "give another --file"
        )
    return kept


def _read(file: Path) -> "list[Message]":
    if not file.exists():
        if not (folder := Path(os.path.realpath(file)).parent).is_dir():
            raise click.UsageError(f"--file {file}: there is no folder {folder}")
        return []
    if not file.is_file():
        raise click.UsageError(f"--file {file}: found a folder or a device; expected a file")
    try:
        return _messages(file.read_bytes())
    except RecursionError:
        reason = "it is nested too deeply; expected a list of messages"
    except ValueError as error:  # no UTF-8, or no JSON
        reason = str(error)
    except SettingsError as error:
        reason = error.for_command_line
    raise click.UsageError(f"--file {file}: not a kept conversation: {reason}")


def _messages(content: bytes) -> "list[Message]":
    """The messages of a kept conversation, with nothing left out.

    Raises:
        ValueError: it is no JSON, or not Unicode.
        SettingsError: what is no message, or has more than is kept of one.
        RecursionError: it is nested too deeply.
    """
    from flashback.readers.messages import messages_of

    given = json.loads(content)
    messages = messages_of(given)
    for at, one in enumerate(given):
        _check_keys(f"messages.{at}", one, _KEPT)
        parts = one["content"] if isinstance(one["content"], list) else []
        for number, part in enumerate(parts):
            _check_keys(f"messages.{at}.content.{number}", part, {"type", "text"})
        try:
            "".join(messages[at].values()).encode()
        except UnicodeEncodeError:
            raise SettingsError(
                f"messages.{at}: half a character (a lone surrogate); expected Unicode text"
            ) from None
    return list(messages)


def _check_keys(place: str, given: dict[str, Any], known: Set[str]) -> None:
    """Refuse what would be lost when the conversation is written."""
    if unknown := [key for key in given if key not in known]:
        raise SettingsError(
            f"{place}: found {unknown[0]!r}; expected only {', '.join(sorted(known))}"
        )


@contextlib.contextmanager
def _complaining() -> Iterator[None]:
    """At a terminal, what goes wrong in a turn does not end the conversation."""
    try:
        yield
    except FlashBackError as error:
        if not at_terminal():
            raise
        click.echo(f"flashback: {error.for_command_line}", err=True)


@dataclass
class _Talk:
    """A conversation in progress."""

    request: WritingRequest
    writer: "Generator"
    settings: Settings
    messages: "list[Message]"
    file: Path | None
    answer: "Generation | None" = None
    """The last one."""
    left_out: int = field(default=0)
    """Messages that the last prompt left out."""

    def check(self, settings: Settings) -> None:
        """Refuse a reader or settings that no message could be answered with."""
        from flashback.readers.chat import Conversation
        from flashback.readers.messages import message

        question = Conversation((*self._system, message("user", "?")))
        self.writer.turn(question, settings)

    @property
    def _system(self) -> "list[Message]":
        return [one for one in self.messages[:1] if one["role"] == "system"]

    def keep(self) -> None:
        """Write the conversation into its file, if it has one."""
        if self.file is not None:
            rewrite(self.file, json.dumps(self.messages, ensure_ascii=False, indent=1) + "\n")

    def say(self, said: str) -> None:
        """Answer a message; the exchange becomes part of the conversation once it is answered."""
        from flashback.readers.messages import message

        if not said:
            return
        asked = [*self.messages, message("user", said)]
        writing = self.writer.stream_chat(asked, self.settings)
        with _ended_by_interrupt(writing):
            print_answer(writing)
        self.answer = writing.result
        self._say_what_was_cut(self.answer)
        if self.answer.text.strip():
            self.messages = [*asked, message("assistant", self.answer.text)]
            self.keep()

    def _say_what_was_cut(self, answer: "Generation") -> None:
        left_out = 0 if answer.cut is None else answer.cut.messages
        if answer.cut is not None and left_out != self.left_out and answer.strides:
            prefilled = answer.strides[0].usage.prefilled
            notes.print(f"{answer.cut}; {prefilled} tokens were prefilled for this answer")
        self.left_out = left_out

    def obey(self, command: str, *words: str) -> None:
        """Follow a command.

        Raises:
            SettingsError: there is no such command, or it cannot be followed.
        """
        if command == "/pattern" and len(words) <= 1:
            self._choose_pattern(*words)
        elif words or command not in ("/new", "/sources", "/help"):
            raise SettingsError(f"{' '.join((command, *words))}: no such command; see /help")
        elif command == "/new":
            self.messages, self.answer, self.left_out = self._system, None, 0
            self.keep()
            click.echo("a new conversation")
        elif command == "/sources":
            self._show_sources()
        else:
            click.echo(_HELP.format(patterns=", ".join(PATTERNS)))

    def _choose_pattern(self, name: str | None = None) -> None:
        if name is not None:
            self.writer.reader.check_pattern(name)
            check_echo(self.request.frame.echo_tokens or 0, name)
            retrieval = replace(self.settings.retrieval, pattern=name)
            chosen = replace(self.settings, retrieval=retrieval)
            self.check(chosen)
            self.settings = chosen
            if note := self.writer.reader.untrained_for(name):
                warnings.warn(note, FlashBackWarning, stacklevel=2)
        pattern = PATTERNS[self.settings.retrieval.pattern]
        click.echo(f"pattern {pattern}: {pattern.summary}")

    def _show_sources(self) -> None:
        if self.answer is None or not self.answer.sources:
            click.echo("no passage was in view")
        else:
            print_sources(self.answer, whole=True)


@contextlib.contextmanager
def _ended_by_interrupt(writing: "Writing") -> Iterator[None]:
    """Ctrl-C ends the answer at its next token; a second one ends the command."""
    before = signal.getsignal(signal.SIGINT)

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        writing.end_soon()

    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
