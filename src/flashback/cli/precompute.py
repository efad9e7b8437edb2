"""`flashback precompute`."""

import sys
from pathlib import Path
from typing import Any

import click

from flashback.cli.console import notes
from flashback.cli.documents import counting
from flashback.cli.generate import frame_of, frame_options
from flashback.cli.options import options_of, take
from flashback.cli.reader_options import ReaderOptions, adapter_option, reader_options
from flashback.retrieval.bm25 import BM25Index
from flashback.settings import RetrievalSettings

_ASKED_FROM = 1 << 30
"""Bytes that are not written without asking."""


@click.command(short_help="Encode an index's passages for the slot, once.")
@click.argument("index", type=Path)
@click.option("--out", type=Path, required=True, help="Folder to make.")
@adapter_option
@reader_options
@options_of(RetrievalSettings, only=["passage_tokens"])
@frame_options
@click.option("--yes", is_flag=True, help="Write more than 1 GB without asking.")
def precompute(
    index: Path,
    out: Path,
    adapter: str | None,
    options: ReaderOptions,
    frame_before: str | None,
    frame_after: str | None,
    yes: bool,
    **values: Any,
) -> None:
    """Write the keys and values of every passage of INDEX to a folder.

    \b
    flashback precompute IDX --out PASSAGES
    flashback generate --index IDX --pattern slot --passages-from PASSAGES "The json module"

    For --pattern slot and small corpora: a passage then costs a read instead of an encoding. The
    size is said before anything is written. Model, adapter, --passage-tokens and frame must be
    those of 'flashback generate'.
    """
    from flashback.cli.quiet import quiet_transformers

    quiet_transformers()
    retriever = BM25Index.open(index)
    settings = take(
        RetrievalSettings,
        values,
        pattern="slot",
        frame=frame_of(frame_before, frame_after),
    )

    from flashback.engines.passage_store import check_free, check_space
    from flashback.precomputation import Precomputation
    from flashback.readers.adapted import load_adapted
    from flashback.readers.inference import for_inference

    check_free(out)
    loaded = load_adapted(options.model, adapter, pattern="slot", **options.placed)
    loaded.check_pattern("slot")
    with notes.status("reading passages"):
        work = Precomputation.of(for_inference(loaded), retriever.texts(), settings)
    click.echo(f"{out}: {len(work.passages):,} passages, {work.bytes / 1e9:.2f} GB")
    check_space(out, work.bytes)
    if work.bytes > _ASKED_FROM and not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("that is more than 1 GB; give --yes to write it")
        click.confirm("Write it?", abort=True)
    with counting("encoding passages") as start:
        work.run(out, start(len(work.passages)))
