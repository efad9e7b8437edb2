"""`flashback ask`."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from flashback.cli.answer import print_answer
from flashback.cli.console import read_standard_input
from flashback.cli.reader_options import ReaderOptions
from flashback.cli.writing_options import (
    warn_if_empty,
    writing_options,
    writing_request,
)
from flashback.readers.weight_settings import Weights

if TYPE_CHECKING:
    from flashback.writing.generator import Generation

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
    asked = read_standard_input().strip() if question == "-" else question
    if not asked.strip():
        raise click.UsageError("the question is empty; expected a text")
    request = writing_request(values)
    writer, settings = request.load(options, weights)
    system_turn = [] if system is None else [{"role": "system", "content": system}]
    messages = [*system_turn, {"role": "user", "content": asked}]
    writing = writer.stream_chat(messages, settings)
    if as_json:
        click.echo(json.dumps(_record(asked, writing.finish()), ensure_ascii=False))
        warn_if_empty(writing.result)
    else:
        print_answer(writing)


def _record(question: str, answer: "Generation") -> dict[str, Any]:
    return {
        "question": question,
        "answer": answer.text,
        "finish_reason": answer.finish_reason,
        "sources": [
            {
                "id": hit.id,
                "title": hit.title,
                "text": hit.text,
                "score": hit.score,
                "place": None if hit.place is None else asdict(hit.place),
            }
            for hit in answer.sources
        ],
    }
