"""`flashback generate --prompts`: many texts from a file, into a file."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flashback.cli.console import notes, read_standard_input, texts_progress
from flashback.errors import FlashBackError
from flashback.settings import Settings
from flashback.writing.prompts import PromptFile, read_prompts

if TYPE_CHECKING:
    from flashback.writing.generator import Generator

BATCH_SIZE = 8


@dataclass(frozen=True)
class ManyPrompts:
    """What `--prompts` and its companions asked for."""

    file: PromptFile
    out: Path
    batch_size: int
    full: bool
    """Write everything about each text."""


def prompts_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options for many texts."""
    for option in (
        click.option(
            "--out",
            type=click.Path(dir_okay=False, path_type=Path),
            help="Results of --prompts, as JSON lines; an interrupted file is resumed.",
        ),
        click.option(
            "--batch-size",
            type=click.IntRange(1, 4096),
            help=f"Prompts of --prompts that are written at a time (default: {BATCH_SIZE}).",
        ),
        click.option(
            "--prompts",
            type=click.Path(path_type=Path),
            help="Write on from every prompt of this file of JSON lines ('-': standard input).",
        ),
    ):
        command = option(command)
    return command


def many_prompts(
    prompt: str | None,
    prompts: Path | None,
    out: Path | None,
    batch_size: int | None,
    full: bool,
) -> ManyPrompts | None:
    """Check that one of PROMPT and --prompts was given, and what belongs to it.

    Raises:
        click.UsageError: both, neither, or something that belongs to the other.
        PromptsError: a line of the file is no prompt.
    """
    if (prompt is None) == (prompts is None):
        found = "neither" if prompt is None else "both"
        raise click.UsageError(f"expected PROMPT or --prompts FILE, found {found}")
    if prompts is None:
        for flag, value in (("--out", out), ("--batch-size", batch_size)):
            if value is not None:
                raise click.UsageError(f"{flag} goes with --prompts; what PROMPT gives is printed")
        return None
    checked = _checked_out(out)
    return ManyPrompts(_read(prompts), checked, batch_size or BATCH_SIZE, full)


def _checked_out(out: Path | None) -> Path:
    """Where the results go."""
    if out is None:
        raise click.UsageError("--prompts needs --out FILE for the results")
    if str(out) == "-":
        raise click.UsageError("--out -: expected a file's name; results are added to a file")
    if not out.parent.is_dir():
        raise click.UsageError(f"--out {out}: there is no folder {out.parent}")
    return out


def _read(prompts: Path) -> PromptFile:
    """The file, or standard input."""
    if str(prompts) == "-":
        return read_prompts("standard input", read_standard_input().encode())
    if not prompts.is_file():
        found = "a folder" if prompts.is_dir() else "no such file"
        raise click.UsageError(f"--prompts {prompts}: found {found}; expected JSON lines")
    return read_prompts(str(prompts), prompts.read_bytes())


def write_prompts(writer: "Generator", settings: Settings, many: ManyPrompts) -> None:
    """Write every text that is not among the results yet.

    Raises:
        FlashBackError: a prompt that cannot be written on from, or results of another run.
    """
    from flashback.writing.records import short_record, text_record
    from flashback.writing.results import open_results

    record = text_record if many.full else short_record
    _check_prompts(writer, settings, many.file)
    with open_results(many.out, _run_record(writer, settings, many)) as results:
        left = [prompt for prompt in many.file.prompts if prompt.line not in results.done]
        tokens, began = 0, time.perf_counter()
        with texts_progress(len(many.file.prompts), len(results.done)) as on_text:
            size = min(many.batch_size, max(len(left), 1))
            texts = writer.stream_batch((one.text for one in left), settings, batch_size=size)
            for number, generation in texts:
                prompt = left[number]
                head = {"line": prompt.line, "id": prompt.id, "prompt": prompt.text}
                results.append(head | record(generation))
                tokens += len(generation.tokens)
                on_text(tokens / (time.perf_counter() - began))
    if notes.is_terminal:
        seconds = time.perf_counter() - began
        kept = f"; {len(results.done)} texts were there" if results.done else ""
        notes.print(f"{len(left)} texts, {tokens} tokens in {seconds:.1f} s{kept}", style="dim")


def _check_prompts(writer: "Generator", settings: Settings, file: PromptFile) -> None:
    """Refuse a prompt now rather than after hours of writing."""
    for prompt in file.prompts:
        try:
            writer.check(prompt.text, settings)
        except FlashBackError as error:
            raise type(error)(f"{file.name} line {prompt.line}: {error.for_command_line}") from None


def _run_record(writer: "Generator", settings: Settings, many: ManyPrompts) -> dict[str, Any]:
    """What decides the results; in float32, how many are written at a time does not."""
    from flashback.readers.fingerprint import computation_of
    from flashback.readers.reader import Reader
    from flashback.retrieval.protocol import identity_of
    from flashback.version import versions
    from flashback.writing.records import settings_record
    from flashback.writing.results import NOTED

    decided = settings_record(writer.reader, settings)
    decided.pop("placement", None)  # device and dtype, again, and why they were chosen
    reader = writer.reader
    return {
        "prompts": {"sha256": many.file.sha256, "count": len(many.file.prompts)},
        "model": reader.name,
        "weights": computation_of(reader.model) if isinstance(reader, Reader) else None,
        "index": identity_of(writer.retriever),
        "settings": decided,
        "json": many.full,
        NOTED: versions(),
    }
