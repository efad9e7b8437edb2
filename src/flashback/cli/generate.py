"""`flashback generate`."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flashback.cli.console import notes, read_standard_input
from flashback.cli.options import options_of, take
from flashback.cli.patterns import as_trained, check_echo
from flashback.cli.prompts import many_prompts, prompts_options, write_prompts
from flashback.cli.reader_options import (
    ReaderOptions,
    adapter_option,
    decode_kernel_option,
    quantize_option,
    reader_options,
)
from flashback.settings import (
    AUTO,
    FrameText,
    RetrievalSettings,
    SamplingSettings,
    Settings,
    StoppingSettings,
)

if TYPE_CHECKING:
    from flashback.writing.generator import Generation, Writing


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


@click.command(short_help="Write on from a prompt.")
@click.argument("prompt", required=False)
@click.option("--index", type=Path, help="Index folder made by 'flashback index'.")
@adapter_option
@reader_options
@quantize_option
@decode_kernel_option
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
@click.option(
    "--passages-from",
    type=Path,
    help="Folder made by 'flashback precompute', for --pattern slot.",
)
@prompts_options
@click.option("--json", "as_json", is_flag=True, help="Give everything as JSON, ids included.")
@click.option("--explain", is_flag=True, help="Print each stride's arranged prompt as text.")
def generate(
    prompt: str | None,
    index: Path | None,
    adapter: str | None,
    options: ReaderOptions,
    quantize: str,
    decode_kernel: str,
    frame_before: str | None,
    frame_after: str | None,
    echo_tokens: int | None,
    passages_from: Path | None,
    prompts: Path | None,
    out: Path | None,
    batch_size: int | None,
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
    time changes no text in float32. The same command again goes on after an interruption.
    """
    if as_json and explain:
        raise click.UsageError("--json holds what --explain shows; give one of them")
    if prompts is not None and explain:
        raise click.UsageError("--explain prints; --prompts FILE with --json writes the same")
    many = many_prompts(prompt, prompts, out, batch_size, as_json)
    settings = _settings(values, frame_of(frame_before, frame_after, echo_tokens))
    if settings.retrieval.pattern != AUTO:
        _check_pattern(settings.retrieval.pattern, echo_tokens, passages_from)
    settings = replace(settings, retrieval=as_trained(settings.retrieval, adapter))
    settings.retrieval.check_retriever(index)  # before a model is loaded, or even downloaded
    # A pipe ends its text with a line break that is not part of it.
    text = read_standard_input().removesuffix("\n") if prompt == "-" else prompt or ""

    from flashback.cli.quiet import quiet_transformers

    quiet_transformers()
    from flashback.loading import load
    from flashback.writing.records import generation_record

    writer = load(
        options.model,
        index if settings.retrieval.retrieves else None,
        adapter=adapter,
        pattern=settings.retrieval.pattern,
        passages_from=passages_from,
        quantize=quantize,
        decode_kernel=decode_kernel,
        **options.placed,
    )
    settings = writer.settled(settings)
    _check_pattern(settings.retrieval.pattern, echo_tokens, passages_from)
    if notes.is_terminal:
        adapted = " with an adapter" if writer.reader.adapter is not None else ""
        shown = f"{options.model}{adapted}, pattern {settings.retrieval.pattern}"
        notes.print(f"{shown}: {writer.reader.placement}", style="dim")
    if many is not None:
        write_prompts(writer, settings, many)
        return
    writing = writer.stream(text, settings)
    if as_json:
        record = generation_record(writing.finish(), writer.reader, settings)
        click.echo(json.dumps(record, ensure_ascii=False))
        return
    _print_stream(writing, writer.reader.show, explain)
    if notes.is_terminal:
        _print_summary(writing.result)


def _check_pattern(pattern: str, echo: int | None, passages_from: Path | None) -> None:
    check_echo(echo or 0, pattern)
    if passages_from is not None and pattern != "slot":
        raise click.UsageError("--passages-from has an effect on --pattern slot only")


def _settings(values: dict[str, Any], frame: FrameText | None) -> Settings:
    return take(
        Settings,
        values,
        retrieval=take(RetrievalSettings, values, frame=frame),
        sampling=take(SamplingSettings, values),
        stopping=take(StoppingSettings, values),
    )


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
        f"({result.tokens_per_second:.1f} tokens/s); prompt tokens encoded {result.encoded:,}, "
        f"reused {result.reused:,}; ended by {result.finish_reason}{jumps}",
        style="dim",
    )
