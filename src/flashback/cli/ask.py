"""`flashback ask`."""

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from flashback.cli.console import notes, read_standard_input
from flashback.cli.reader_options import ReaderOptions
from flashback.cli.writing_options import (
    print_summary,
    warn_if_empty,
    writing_options,
    writing_request,
)
from flashback.retrieval.protocol import Hit
from flashback.settings import Weights

if TYPE_CHECKING:
    from flashback.writing.generator import Generation, Writing

_DEFAULTS = {"max_new_tokens": 256}


@click.command(
    short_help="Ask a chat model a question about your texts.",
    context_settings={"default_map": _DEFAULTS},
)
@click.argument("question")
@click.option("--system", help="The system message.")
@writing_options
@click.option("--json", "as_json", is_flag=True, help="Give answer and sources as JSON.")
def ask(
    question: str,
    system: str | None,
    options: ReaderOptions,
    weights: Weights,
    as_json: bool,
    **values: Any,
) -> None:
    """Answer QUESTION ('-': standard input) with the model's chat template, and name the sources.

    \b
    flashback ask --index IDX --model MODEL "Who built the lighthouse?"
    flashback ask --index IDX --model MODEL --passages 3 --json "Who built the lighthouse?"

    Passages are shown in the template's own turns: before the text in the first user message,
    behind it in a user turn of their own. --frame-before and --frame-after replace that.
    """
    from flashback.readers.chat import Conversation

    asked = read_standard_input().strip() if question == "-" else question
    if not asked.strip():
        raise click.UsageError("the question is empty; expected a text")
    request = writing_request(values)
    writer, settings = request.load(options, weights)
    system_turn = [] if system is None else [{"role": "system", "content": system}]
    conversation = Conversation((*system_turn, {"role": "user", "content": asked}))
    prompt = conversation.prompt(writer.reader, settings.retrieval)
    settings = replace(settings, retrieval=prompt.retrieval)
    length = settings.retrieval.query_tokens
    writing = writer.stream(
        prompt.ids,
        settings,
        query=lambda written: conversation.query(writer.reader, written, length),
    )
    if as_json:
        click.echo(json.dumps(_record(asked, writing.finish()), ensure_ascii=False))
    else:
        _print(writing)
    warn_if_empty(writing.result)


def _print(writing: "Writing") -> None:
    """The answer as it is written, then its sources."""
    from flashback.writing.generator import TextPiece

    for event in writing:
        if isinstance(event, TextPiece):
            click.echo(event.text, nl=False)
    click.echo()
    for number, hit in enumerate(_sources(writing.result), start=1):
        click.echo(f"[{number}] {hit.title or hit.id}")
    if notes.is_terminal:
        print_summary(writing.result)


def _sources(answer: "Generation") -> list[Hit]:
    """The passages that were in view, each once."""
    return list({hit.id: hit for stride in answer.strides for hit in stride.passages}.values())


def _record(question: str, answer: "Generation") -> dict[str, Any]:
    return {
        "question": question,
        "answer": answer.text,
        "finish_reason": answer.finish_reason,
        "sources": [
            {"id": hit.id, "title": hit.title, "text": hit.text, "score": hit.score}
            for hit in _sources(answer)
        ],
    }
