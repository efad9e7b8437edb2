"""`flashback demo`."""

import json
import textwrap
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from flashback.cli.console import indexing_progress, notes
from flashback.cli.documents import counting

if TYPE_CHECKING:
    from flashback.cli.demo_reader import Choice
    from flashback.cli.demonstration import Answered, Demo
    from flashback.retrieval.protocol import Hit

_TITLE_WIDTH = 28
_SHOWN = 60
"""Characters of an answer."""


@click.command(short_help="See it work on texts about an island that does not exist.")
@click.option("--json", "as_json", is_flag=True, help="Print one record of all of it as JSON.")
def demo(as_json: bool) -> None:
    """See what looking things up costs, and what it is good for, in about two minutes.

    \b
    flashback demo
    flashback demo --json > demo.json

    Twelve short documents about a made-up island are indexed. A language model then writes behind a
    long text, looking something up every 16 tokens, in four ways that take different times. In the
    end it answers ten questions about the island, without the documents and with them.

    It takes a small chat model, SmolLM2, if that is installed or can be had from the hub, and else
    flashback-mini. No network is needed.
    """
    from flashback.cli.quiet import begin_loading

    begin_loading("a reader")
    from flashback.cli.demo_reader import choose_reader
    from flashback.cli.demonstration import Demo, DemoSettings, open_or_build_index

    began = time.perf_counter()
    console = Console(stderr=as_json, highlight=False, quiet=as_json and not notes.is_terminal)
    with notes.status("looking for a reader"):
        choice = choose_reader()
    if choice.note is not None:
        console.print(choice.note)
    with indexing_progress() as progress:
        index, _ = open_or_build_index(choice.model, progress)
    counts = index.manifest.content.counts
    with notes.status(f"loading {choice.name}"):
        show = Demo.load(choice.model, index, DemoSettings())
    console.print(
        f"[bold]{choice.name}[/] writes. It can look things up in {counts['documents']} short "
        f"documents about Tolmere, an island that does not exist ({counts['passages']} passages)."
    )
    _write(console, show)
    answered = _answer(console, show, choice)
    _print_next(console, choice, show)
    if as_json:
        record = {
            "reader": choice.name,
            "documents": counts["documents"],
            "passages": counts["passages"],
            **show.record(),
            "questions": [one.record() for one in answered],
            "seconds": time.perf_counter() - began,
        }
        click.echo(json.dumps(record, ensure_ascii=False))


def _write(console: Console, show: "Demo") -> None:
    """Write with every pattern, the first one in sight."""
    from flashback.cli.demonstration import WAYS

    console.print("\n[bold]1. The time[/]\n")
    with counting("warming up, so that the times are fair") as start:
        advance = start(len(WAYS))
        for pattern in WAYS:
            show.warm_up(pattern)
            advance()
    shown, *others = WAYS
    _print_written(console, show, shown)
    for pattern in others:
        _write_unseen(show, pattern)
    _print_times(console, show)


def _print_written(console: Console, show: "Demo", pattern: str) -> None:
    """Write with a pattern, with the passages beside the text."""
    from flashback.writing.generator import StrideStart, TextPiece

    task = "is then asked about the island" if show.chats else "continues it"
    console.print(
        f"The reader is given a visitor's diary of {show.diary_tokens:,} tokens, and {task}. It "
        "looks something up every 16 tokens, which is about a line; the title of what it found "
        "stands on the right.\n"
    )
    events = show.run(pattern)
    for question, start in events:
        assert isinstance(start, StrideStart)
        if question:
            console.print(Text(question, style="dim"))
        text = ""
        # Refreshed by hand: a refreshing thread would take time from the reader.
        with Live(console=console, auto_refresh=False) as live:
            for _, event in events:
                if not isinstance(event, TextPiece):
                    break
                text += event.text
                live.update(_stride_row(console, text, start.passages), refresh=True)
        if not console.is_terminal:  # where it prints only the last state, and no line's end
            console.line()


def _stride_row(console: Console, text: str, passages: Sequence["Hit"]) -> Table:
    titles = "\n".join(hit.title for hit in passages)
    row = Table.grid(padding=(0, 3))
    row.add_column(width=max(console.width - _TITLE_WIDTH - 3, 20))
    row.add_column(width=_TITLE_WIDTH, style="dim", overflow="ellipsis", no_wrap=True)
    line = text.strip().partition("\n")[0]  # what is written behind an answer's end is none
    row.add_row(Text(f"{line} …"), titles or "no passage")
    return row


def _write_unseen(show: "Demo", pattern: str) -> None:
    from flashback.writing.generator import TextPiece

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    hidden = not notes.is_terminal
    with Progress(
        *columns, console=notes, auto_refresh=False, transient=True, disable=hidden
    ) as progress:
        task = progress.add_task(f"the same again: {pattern}", total=show.settings.new_tokens)
        for _, event in show.run(pattern):
            if isinstance(event, TextPiece):
                progress.update(task, advance=1, refresh=True)


def _print_times(console: Console, show: "Demo") -> None:
    from flashback.cli.demonstration import WAYS

    console.print(
        f"\nThe same in four ways, {show.settings.new_tokens} tokens each. A model keeps what it "
        "has read (the KV cache), but whatever stands behind a change must be read again. Where "
        "the passage stands in front, that is everything, the whole diary included."
    )
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("pattern")
    table.add_column("what it does")
    for heading in ("seconds", "tokens read\nafter the start", "times as fast\nas prepend"):
        table.add_column(heading, justify="right")
    for row in show.record()["patterns"]:
        table.add_row(
            row["pattern"],
            WAYS[row["pattern"]],
            f"{row['seconds']:.1f}",
            f"{row['read_after_start']:,}",
            f"{row['times_prepend']:.1f}",
        )
    console.print(table)


def _answer(console: Console, show: "Demo", choice: "Choice") -> "list[Answered]":
    """Questions with and without the documents; none if the reader does not chat."""
    from flashback.cli.demonstration import ANSWERING, questions

    console.print("\n[bold]2. The answers[/]\n")
    if not show.chats:
        console.print(f"Left out: {choice.name} has no chat template and answers no questions.")
        return []
    with counting("answering") as start:
        asked = questions()
        answered = list(show.answer(asked, start(len(asked) * len(ANSWERING))))
    _print_answers(console, answered)
    return answered


def _print_answers(console: Console, answered: "list[Answered]") -> None:
    from flashback.cli.demonstration import ANSWERING

    console.print(
        "Questions that no model can have learned the answers to, without and with the documents:"
    )
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("question", "without retrieval", "with the slot"):
        table.add_column(heading, ratio=1)
        if heading != "question":
            table.add_column("")
    for one in answered:
        cells = [one.question.text]
        for pattern in ANSWERING:
            shown = textwrap.shorten(one.written[pattern], _SHOWN, placeholder=" …")
            cells += [shown, "✓" if one.right(pattern) else "✗"]
        table.add_row(*map(Text, cells))
    console.print(table)
    without, within = (sum(one.right(pattern) for one in answered) for pattern in ANSWERING)
    console.print(
        f"Right: [bold]{without} of {len(answered)}[/] without retrieval, "
        f"[bold]{within} of {len(answered)}[/] with the slot."
    )


def _print_next(console: Console, choice: "Choice", show: "Demo") -> None:
    """What to do with a folder of one's own."""
    model = f" --model {choice.name}"
    then = f"chat --index IDX{model}" if show.chats else 'generate --index IDX "Once upon"'
    console.print(f"\nWith a folder of your own: flashback index FOLDER --out IDX{model}")
    console.print(f"and then:                  flashback {then}", soft_wrap=True)
