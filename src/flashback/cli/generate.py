"""`flashback generate`."""

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from flashback.cli.console import notes, read_standard_input
from flashback.cli.prompts import ManyPrompts, many_prompts, prompts_options, write_prompts
from flashback.cli.reader_options import ReaderOptions
from flashback.cli.writing_options import (
    WritingRequest,
    print_summary,
    warn_if_empty,
    writing_options,
    writing_request,
)
from flashback.errors import FlashBackWarning
from flashback.readers.weight_settings import Weights
from flashback.settings import Settings

if TYPE_CHECKING:
    from flashback.readers.text_reader import TextReader
    from flashback.writing.generator import Generator, Writing


@dataclass(frozen=True)
class _Request:
    """A checked command line."""

    text: str
    many: ManyPrompts | None
    """Instead of one text."""
    writing: WritingRequest


@click.command(short_help="Write on from a prompt.")
@click.argument("prompt", required=False)
@writing_options
@prompts_options
@click.option("--json", "as_json", is_flag=True, help="Give everything as JSON, ids included.")
@click.option("--explain", is_flag=True, help="Print each stride's arranged prompt as text.")
def generate(
    prompt: str | None,
    options: ReaderOptions,
    weights: Weights,
    as_json: bool,
    explain: bool,
    **values: Any,
) -> None:
    """Write on from PROMPT ('-': standard input), retrieving every few tokens.

    \b
    flashback generate --index IDX "The json module"
    flashback generate --index IDX --model facebook/opt-125m --temperature 0.8 "Once"
    flashback generate --index IDX --model facebook/opt-125m --adapter ADAPTER "Once"
    flashback generate --pattern none "The json module"
    flashback generate --index IDX --explain --max-new-tokens 32 - < draft.txt
    flashback generate --index IDX --prompts FILE.jsonl --batch-size 8 --out RESULTS.jsonl

    A line of --prompts is a JSON string or {"prompt": "...", "id": "..."}; a line of the results is
    a finished text and its passages, in the order in which texts end. What is written at the same
    time changes no text in float32. The same command continues after an interruption.
    """
    if as_json and explain:
        raise click.UsageError("--json holds what --explain shows; give one of them")
    if values["prompts"] is not None and explain:
        raise click.UsageError("--explain prints; --prompts FILE with --json writes the same")
    request = _parse(prompt, as_json, values)
    writer, settings = request.writing.load(options, weights)
    _point_to_ask(writer.reader)
    if request.many is not None:
        write_prompts(writer, settings, request.many)
    else:
        _write(writer, request.text, settings, as_json=as_json, explain=explain)


def _parse(prompt: str | None, as_json: bool, values: dict[str, Any]) -> _Request:
    """Check everything that can be checked before a model is loaded, or even downloaded."""
    many = many_prompts(
        prompt, values.pop("prompts"), values.pop("out"), values.pop("batch_size"), as_json
    )
    writing = writing_request(values)
    # A pipe ends its text with a line break that is not part of it.
    text = read_standard_input().removesuffix("\n") if prompt == "-" else prompt or ""
    return _Request(text, many, writing)


def _point_to_ask(reader: "TextReader") -> None:
    """Say that a chat model is given plain text here."""
    if reader.tokenizer.chat_template:
        warnings.warn(
            "this model has a chat template, which generate does not use; to ask it a question, "
            "use 'flashback ask'",
            FlashBackWarning,
            stacklevel=2,
        )


def _write(
    writer: "Generator", text: str, settings: Settings, *, as_json: bool, explain: bool
) -> None:
    """One text to standard output."""
    from flashback.writing.records import generation_record

    writing = writer.stream(text, settings)
    if as_json:
        record = generation_record(writing.finish(), writer.reader, settings)
        click.echo(json.dumps(record, ensure_ascii=False))
        return
    _print_stream(writing, writer.reader.show, explain)
    if notes.is_terminal:
        print_summary(writing.result)
    warn_if_empty(writing.result)


def _print_stream(writing: "Writing", show: Callable[[Sequence[int]], str], explain: bool) -> None:
    from flashback.writing.generator import StrideStart, TextPiece

    for event in writing:
        if isinstance(event, TextPiece):
            click.echo(event.text, nl=False)
        elif isinstance(event, StrideStart) and explain:
            titles = "; ".join(hit.source for hit in event.passages) or "no passage"
            click.echo(f"\n=== stride {event.number + 1}: {titles}; {len(event.arranged)} tokens")
            click.echo(f"{show(event.arranged)}\n--- continues")
    click.echo()
