"""`flashback index audit`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from flashback.cli.console import notes
from flashback.cli.tables import print_columns
from flashback.errors import SettingsError
from flashback.retrieval.audit import WORDS, Audit, Evidence, Verdict, read_texts
from flashback.retrieval.audit import audit as run_audit
from flashback.retrieval.kinds import open_index
from flashback.retrieval.protocol import Listed

_SHOWN = 20
"""Documents of a table."""


@click.command(short_help="Look in an index for what a reader is evaluated on.")
@click.argument("folder", type=Path)
@click.option(
    "--against",
    type=Path,
    multiple=True,
    required=True,
    metavar="FILE",
    help="Evaluation texts: JSON lines, of which all texts count, or a text file (repeatable).",
)
@click.option(
    "--words",
    type=click.IntRange(1, 100),
    default=WORDS,
    show_default=True,
    help="Words behind one another that an overlap has.",
)
@click.option("--json", "as_json", is_flag=True, help="Print all evidence as JSON.")
def audit(folder: Path, against: tuple[Path, ...], words: int, as_json: bool) -> None:
    """Compare every passage of an index with evaluation texts, and judge each document.

    \b
    flashback index audit IDX --against questions.jsonl
    flashback index audit IDX --against test.jsonl --against test.txt --json

    confirmed: a document has half of the word sequences of one text, or 25 sequences. possible: it
    has fewer, or the title or the id of a text. none: nothing of the kind was found.
    """
    texts = [text for file in against for text in read_texts(file)]
    opened = open_index(folder)
    if not isinstance(opened, Listed):
        kind = opened.manifest.content.kind
        raise SettingsError(f"index {folder}: kind {kind!r} does not list its passages")
    with notes.status("comparing passages"):
        found = run_audit(opened.every(), texts, words)
    if as_json:
        click.echo(json.dumps(record_of(found), indent=2, ensure_ascii=False))
    else:
        _print(found)


def record_of(found: Audit) -> dict[str, Any]:
    """An audit as plain data."""
    return {
        "documents": found.documents,
        "texts": found.texts,
        "verdicts": {str(verdict): found.count(verdict) for verdict in Verdict},
        "found": [asdict(one) | {"verdict": str(one.verdict)} for one in found.found],
    }


def _print(found: Audit) -> None:
    shown = found.found[:_SHOWN]
    if shown:
        columns = [
            ("document", [one.title or one.document_id for one in shown]),
            ("verdict", [str(one.verdict) for one in shown]),
            ("of a\ntext", [f"{one.share:.0%}" for one in shown]),
            ("sequences", [f"{one.sequences:,}" for one in shown]),
            ("for example", [_example(one) for one in shown]),
        ]
        print_columns(columns, f"{len(found.found):,} documents with evidence")
    counts = ", ".join(f"{verdict} {found.count(verdict):,}" for verdict in Verdict)
    click.echo(f"{found.documents:,} documents against {found.texts:,} texts: {counts}")


def _example(one: Evidence) -> str:
    if one.examples:
        return one.examples[0][:60]
    return "same id" if one.same_id else "same title"
