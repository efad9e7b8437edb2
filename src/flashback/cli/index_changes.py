"""The commands of `flashback index` that change an index that is there, and what is in it."""

import json
from pathlib import Path
from typing import Any

import click

from flashback.cli.console import indexing_progress, notes, print_report, read_standard_input
from flashback.cli.index_output import print_manifest, skipped, token_ends_of
from flashback.cli.options import options_of, take
from flashback.corpus.documents import CorpusReport
from flashback.corpus.formats.file_settings import FileSettings
from flashback.retrieval.bm25 import BM25Index
from flashback.retrieval.index_folder import read_manifest
from flashback.retrieval.kinds import open_index
from flashback.retrieval.updating import (
    add_documents,
    delete_documents,
    merge_index,
    sync_index,
)

_index = click.option("--index", "folder", type=Path, required=True, help="The index to change.")
_strict = click.option("--strict", is_flag=True, help="Refuse bad records, and change nothing.")
_reading_json = click.option(
    "--json", "as_json", is_flag=True, help="Print manifest and skipped files as JSON."
)
_json = click.option("--json", "as_json", is_flag=True, help="Print a record as JSON.")
_model = click.option(
    "--model",
    help="The reader whose tokens are counted; by default the one that the index was built for.",
)
_trust = click.option("--trust-remote-code", is_flag=True, help="Run code of that reader's folder.")


def _reading(folder: Path, model: str | None, trust_remote_code: bool) -> dict[str, Any]:
    """How documents are cut for an index."""
    name = model or read_manifest(folder).content.tokens_of
    return {"token_ends": token_ends_of(name, trust_remote_code)}


@click.command(short_help="Add documents to an index, or replace them.")
@click.argument("corpus", nargs=-1, required=True)
@_index
@_strict
@_reading_json
@_model
@_trust
@options_of(FileSettings)
def add(
    corpus: tuple[str, ...],
    folder: Path,
    strict: bool,
    as_json: bool,
    model: str | None,
    trust_remote_code: bool,
    **values: Any,
) -> None:
    """Add the documents of a corpus to an index; those whose id is there are replaced.

    Passages are cut as when the index was built. Whoever searches the index meanwhile sees it as it
    was; all changes appear at once, or none.

    \b
    flashback index add new-notes/ --index IDX
    zcat today.jsonl.gz | flashback index add - --index IDX
    """
    report = CorpusReport(strict=strict)
    reading = _reading(folder, model, trust_remote_code) | {"files": take(FileSettings, values)}
    with indexing_progress() as progress:
        manifest = add_documents(corpus, folder, report, progress=progress, **reading)
    print_report(report)
    print_manifest(folder, manifest, as_json, skipped(report))


@click.command(short_help="Make an index follow files and folders.")
@click.argument("corpus", nargs=-1, required=True)
@_index
@_strict
@_reading_json
@_model
@_trust
@options_of(FileSettings)
def sync(
    corpus: tuple[str, ...],
    folder: Path,
    strict: bool,
    as_json: bool,
    model: str | None,
    trust_remote_code: bool,
    **values: Any,
) -> None:
    """Read what is new or changed in files and folders; drop what came from files that are gone.

    A file has changed if its content has; its size and time are looked at first. Documents that
    came from elsewhere stay. Give the same --include, --exclude and other options for files each
    time: what they leave out is dropped.

    \b
    flashback index sync my-texts/ --index IDX
    """
    report = CorpusReport(strict=strict)
    reading = _reading(folder, model, trust_remote_code) | {"files": take(FileSettings, values)}
    with indexing_progress() as progress:
        synced = sync_index(corpus, folder, report, progress=progress, **reading)
    print_report(report)
    if not as_json:
        notes.print(
            f"files: {synced.added:,} new, {synced.changed:,} changed, {synced.removed:,} gone, "
            f"{synced.unchanged:,} as they were"
        )
    print_manifest(folder, synced.manifest, as_json, skipped(report))


@click.command(short_help="Delete documents from an index.")
@click.argument("documents", metavar="ID...", nargs=-1, required=True)
@_index
@_json
def delete(documents: tuple[str, ...], folder: Path, as_json: bool) -> None:
    """Delete documents from an index by their ids; '-' reads one id per line of standard input.

    A text file's id is its name as it was given to 'flashback index'. Passages that other documents
    have, too, stay.

    \b
    flashback index delete notes/old.md --index IDX
    """
    asked = {*documents} if documents != ("-",) else {*read_standard_input().splitlines()}
    before = read_manifest(folder).content.counts
    manifest = delete_documents(asked, folder)
    deleted = before["documents"] - manifest.content.counts["documents"]
    if missing := len(asked) - deleted:
        notes.print(f"documents that were not there: {missing:,}")
    print_manifest(folder, manifest, as_json)


@click.command(short_help="Drop what was deleted for good.")
@click.argument("folder", type=Path)
@_json
def merge(folder: Path, as_json: bool) -> None:
    """Write an index into few files, without what was deleted from it.

    Deleted passages take space and count in scores until then. It takes about as long as building.

    \b
    flashback index merge IDX
    """
    print_manifest(folder, merge_index(folder), as_json)


@click.command(short_help="Show what is in an index.")
@click.argument("folder", type=Path)
@_json
def stats(folder: Path, as_json: bool) -> None:
    """Show an index's counts, settings and size.

    \b
    flashback index stats IDX
    """
    opened = open_index(folder)
    content = opened.manifest.content
    record: dict[str, Any] = dict(content.counts)
    if isinstance(opened, BM25Index):
        record |= {"deleted_passages": opened.deleted, "parts": opened.segments}
    record |= {
        "bytes": opened.manifest.bytes,
        "kind": content.kind,
        "tokens_of": content.tokens_of,
        **content.settings,
        **content.versions,
    }
    if as_json:
        click.echo(json.dumps(record, indent=2))
        return
    for name, value in record.items():
        shown = f"{value:,}" if type(value) is int else value
        click.echo(f"{name.replace('_', ' '):24} {shown}")
