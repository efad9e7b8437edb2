"""`flashback generate`."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flashback.cli.console import notes, read_standard_input
from flashback.cli.options import options_of, take
from flashback.cli.patterns import as_trained, check_echo
from flashback.cli.prompts import ManyPrompts, many_prompts, prompts_options, write_prompts
from flashback.cli.reader_options import (
    ReaderOptions,
    adapter_option,
    reader_options,
    weights_option,
)
from flashback.settings import (
    AUTO,
    FrameText,
    RetrievalSettings,
    SamplingSettings,
    Settings,
    StoppingSettings,
    Weights,
)

if TYPE_CHECKING:
    from flashback.writing.generator import Generation, Generator, Writing


def frame_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options for the text around a passage."""
    after = click.option("--frame-after", help="Text after a passage; likewise.")
    before = click.option(
        "--frame-before", help="Text before a passage; replaces marks or ' [Reference: '."
    )
    return before(after(command))


def frame_of(before: str | None, after: str | None, echo: int | None = None) -> FrameText | None:
    """The frame that was asked for, if any was."""
    given = {"before": before, "after": after, "echo_tokens": echo}
    changed: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return FrameText(**changed) if changed else None


@dataclass(frozen=True)
class _Request:
    """A checked command line."""

    text: str
    many: ManyPrompts | None
    """Instead of one text."""
    settings: Settings
    index: Path | None
    adapter: str | None
    echo_tokens: int


@click.command(short_help="Write on from a prompt.")
@click.argument("prompt", required=False)
@click.option("--index", type=Path, help="Index folder made by 'flashback index'.")
@adapter_option
@reader_options
@weights_option
@options_of(RetrievalSettings)
@frame_options
@click.option(
    "--echo-tokens",
    type=int,
    help="Repeat this many of the context's last tokens behind an appended passage (default: 16, "
    "or as the adapter was trained).",
)
@options_of(StoppingSettings)
@options_of(SamplingSettings)
@options_of(Settings)
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
    writer = _load(request, options, weights)
    settings = writer.settled(request.settings)
    check_echo(request.echo_tokens, settings.retrieval.pattern)
    if notes.is_terminal:
        adapted = " with an adapter" if writer.reader.adapter is not None else ""
        shown = f"{options.model}{adapted}, pattern {settings.retrieval.pattern}"
        notes.print(f"{shown}: {writer.reader.runs_on}", style="dim")
    if request.many is not None:
        write_prompts(writer, settings, request.many)
    else:
        _write(writer, request.text, settings, as_json=as_json, explain=explain)


def _parse(prompt: str | None, as_json: bool, values: dict[str, Any]) -> _Request:
    """Check everything that can be checked before a model is loaded, or even downloaded."""
    many = many_prompts(
        prompt, values.pop("prompts"), values.pop("out"), values.pop("batch_size"), as_json
    )
    index, adapter = values.pop("index"), values.pop("adapter")
    echo_tokens = values.pop("echo_tokens")
    frame = frame_of(values.pop("frame_before"), values.pop("frame_after"), echo_tokens)
    settings = take(
        Settings,
        values,
        retrieval=take(RetrievalSettings, values, frame=frame),
        sampling=take(SamplingSettings, values),
        stopping=take(StoppingSettings, values),
    )
    if settings.retrieval.pattern != AUTO:
        check_echo(echo_tokens or 0, settings.retrieval.pattern)
    settings = replace(settings, retrieval=as_trained(settings.retrieval, adapter))
    settings.retrieval.check_retriever(index)
    # A pipe ends its text with a line break that is not part of it.
    text = read_standard_input().removesuffix("\n") if prompt == "-" else prompt or ""
    return _Request(text, many, settings, index, adapter, echo_tokens or 0)


def _load(request: _Request, options: ReaderOptions, weights: Weights) -> "Generator":
    from flashback.cli.quiet import quiet_transformers

    quiet_transformers()
    from flashback.loading import load

    retrieval = request.settings.retrieval
    return load(
        options.model,
        request.index if retrieval.retrieves else None,
        adapter=request.adapter,
        pattern=retrieval.pattern,
        weights=weights,
        **options.placed,
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
        _print_summary(writing.result)


def _print_stream(writing: "Writing", show: Callable[[Sequence[int]], str], explain: bool) -> None:
    from flashback.writing.generator import StrideStart, TextPiece

    for event in writing:
        if isinstance(event, TextPiece):
            click.echo(event.text, nl=False)
        elif isinstance(event, StrideStart) and explain:
            titles = ", ".join(hit.title or hit.id for hit in event.passages) or "no passage"
            click.echo(f"\n=== stride {event.number + 1}: {titles}; {len(event.arranged)} tokens")
            click.echo(f"{show(event.arranged)}\n--- continues")
    click.echo()


def _print_summary(result: "Generation") -> None:
    jumps = f", context jumped at {', '.join(map(str, result.jumps))}" if result.jumps else ""
    notes.print(
        f"{len(result.tokens)} tokens in {result.seconds:.2f} s "
        f"({result.tokens_per_second:.1f} tokens/s); prompt tokens prefilled {result.prefilled:,}, "
        f"reused {result.reused:,}; ended by {result.finish_reason}{jumps}",
        style="dim",
    )
