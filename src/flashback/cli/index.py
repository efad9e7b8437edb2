"""`flashback index` and `flashback search`."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from flashback.cli.console import building_progress, notes, print_report, read_standard_input
from flashback.cli.index_changes import add, delete, merge, stats, sync
from flashback.cli.index_output import print_manifest, print_notes, skipped, token_ends_of
from flashback.cli.options import options_of, take
from flashback.cli.retriever_options import combined, combining_options, spec_given
from flashback.corpus.documents import CorpusReport
from flashback.corpus.formats.file_settings import FileSettings
from flashback.retrieval.bm25 import IndexSettings
from flashback.retrieval.guard import GuardSettings, LimitedRetriever
from flashback.retrieval.index_folder import verify as verify_index
from flashback.retrieval.index_settings import DenseSettings
from flashback.retrieval.indexing import index_corpus
from flashback.retrieval.kinds import open_index
from flashback.retrieval.protocol import Hit, ask
from flashback.retrieval.specs import RetrieverSpec, open_source
from flashback.settings import RetrievalSettings

_TOGETHER = 1024
"""Queries in a search."""


class _BuildByDefault(click.Group):
    """`flashback index CORPUS` means `flashback index build CORPUS`."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        return super().resolve_command(ctx, args if args[0] in self.commands else ["build", *args])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # An option of `build` in front of the corpus, as in `flashback index --strict CORPUS`.
        if args and args[0].startswith("-") and args[0] not in ("-h", "--help"):
            args = ["build", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_BuildByDefault)
def index() -> None:
    """Make an index of a corpus, change one, or check one.

    \b
    flashback index notes/ manual.md --out IDX
    flashback index corpus.jsonl.gz --out IDX --strict
    zcat dump.gz | flashback index - --out IDX
    flashback index python-docs --out IDX
    flashback index pile-arxiv:index@FOLDER --out IDX
    flashback index dataset:OWNER/NAME:train --out IDX --text-field body
    flashback index add new/ --index IDX
    flashback index sync notes/ manual.md --index IDX
    flashback index delete notes/old.md --index IDX
    flashback index verify IDX

    A corpus is files, folders of these, '-' for standard input, or one of the names below. Read
    are .txt, .md, .rst, .pdf, .html, .docx, .epub, .ipynb and source code, a document for each
    file, and .jsonl, .csv, .tsv (and these with .gz) and .parquet, a document for each record
    ('title' and 'text', or BEIR's and Pyserini's names, or --text-field). What is left out of a
    folder is listed with its reason.

    \b
    python-docs[:train|base|adapter|evaluation]
        the docstrings of the Python environment FlashBack runs in
    wikitext-2[:train|validation|test]
    pile-arxiv, pile-freelaw, pile-stackexchange[:index|train|evaluation]
        the paper's data sets in the authors' splits, fetched from the Hugging Face hub;
        NAME@FOLDER and NAME:PART@FOLDER read a local copy of the hub's files instead
    dataset:OWNER/NAME[:PART], dataset[:PART]@FOLDER
        any data set of the hub, or a local copy; PART is a split, or CONFIG/SPLIT

    PDF, HTML, DOCX, EPUB and Parquet need the extra 'files': pip install '.[files]'; the paper's
    data sets the extra 'train'. To index a folder that is called like one of the names, write
    ./NAME.
    """


@index.command(short_help="Make an index (the default command).")
@click.argument("corpus", nargs=-1, required=True)
@click.option("--out", type=Path, required=True, help="The index folder to make.")
@click.option("--overwrite", is_flag=True, help="Replace an index that is there.")
@click.option("--strict", is_flag=True, help="Refuse bad records instead of skipping them.")
@click.option("--json", "as_json", is_flag=True, help="Print manifest and skipped files as JSON.")
@click.option(
    "--model",
    default="flashback-mini",
    show_default=True,
    help="The reader whose tokens are counted (see 'flashback generate'); none: a safe estimate.",
)
@click.option("--trust-remote-code", is_flag=True, help="Run code of that reader's folder.")
@options_of(DenseSettings)
@options_of(IndexSettings)
@options_of(FileSettings)
def build(
    corpus: tuple[str, ...],
    out: Path,
    overwrite: bool,
    strict: bool,
    as_json: bool,
    model: str,
    trust_remote_code: bool,
    **values: Any,
) -> None:
    """Read a corpus, cut it into passages and index them (the default command).

    Passages are cut so that the reader can show all of them: at ends of sentences if possible, else
    between words, else between characters. Name the reader that will be written with.

    \b
    flashback index build notes/ --out IDX --model smollm2
    flashback index build a.jsonl b.jsonl.gz --out IDX --overwrite --json
    flashback index build notes/ --out IDX --kind dense --encoder all-MiniLM-L6-v2
    """
    if out == Path():  # what an unset shell variable gives
        raise click.UsageError("--out '': expected a folder's name")
    settings, dense = take(IndexSettings, values), take(DenseSettings, values)
    files = take(FileSettings, values)
    report = CorpusReport(strict=strict)
    with building_progress(settings.kind) as (progress, on_encoding):
        manifest = index_corpus(
            corpus,
            out,
            settings,
            report,
            overwrite=overwrite,
            progress=progress,
            token_ends=token_ends_of(model, trust_remote_code),
            tokens_of=model,
            dense=dense,
            on_encoding=on_encoding,
            files=files,
        )
    print_report(report)
    print_notes(out, manifest)
    print_manifest(out, manifest, as_json, skipped(report))


@index.command(short_help="Check an index against its checksums.")
@click.argument("folder", type=Path)
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def verify(folder: Path, as_json: bool) -> None:
    """Read every byte of an index and compare its checksums.

    \b
    flashback index verify IDX
    """
    manifest = verify_index(folder)
    open_index(folder)
    print_manifest(folder, manifest, as_json)


for command in (add, sync, delete, merge, stats):
    index.add_command(command)


@click.command(short_help="Search an index.")
@click.argument("asked", nargs=-1, required=True, metavar="[FOLDER]... QUERY")
@click.option(
    "--retriever",
    callback=spec_given,
    metavar="SPEC",
    help="Instead of a FOLDER, or beside: where to search, as in 'flashback generate'.",
)
@combining_options
@click.option(
    "-k", "k", type=click.IntRange(1, 1000), default=5, show_default=True, help="Hits per query."
)
@options_of(RetrievalSettings, only=("min_score", "forbid_titles", "forbid_documents"))
@options_of(GuardSettings)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per query.")
def search(
    asked: tuple[str, ...], retriever: RetrieverSpec | None, k: int, as_json: bool, **values: Any
) -> None:
    """Search an index, or several; QUERY '-' reads one query per line of standard input.

    \b
    flashback search IDX "open a file for reading" -k 3
    flashback search WORDS MEANING "open a file for reading" --fusion-weights 1,0.5
    flashback search IDX - --json < queries.txt
    flashback search --retriever http://127.0.0.1:8000 "open a file for reading"
    """
    *folders, query = asked
    source = combined([*map(Path, folders), *([] if retriever is None else [retriever])], values)
    guard = take(GuardSettings, values)
    options = RetrievalSettings(passages=k, **values).search_options
    if source is None:
        raise click.UsageError(f"expected FOLDER and QUERY; found {', '.join(map(repr, asked))}")
    opened = LimitedRetriever(open_source(source), guard)
    queries = _lines(read_standard_input()) if query == "-" else [query]
    for at in range(0, len(queries), _TOGETHER):
        some, failures = queries[at : at + _TOGETHER], opened.failures
        found = ask(opened, some, options)
        failed = opened.failures > failures
        for text, hits in zip(some, found, strict=True):
            if as_json:
                record = {"query": text, "hits": [asdict(hit) for hit in hits]}
                click.echo(json.dumps(record | ({"failed": True} if failed else {})))
                continue
            if query == "-":
                click.echo(f"=== {text}")
            _print_hits(text, hits, failed=failed)


def _print_hits(query: str, hits: Sequence[Hit], *, failed: bool) -> None:
    if not hits and not failed:
        notes.print(f"nothing found for {query!r}", markup=False)
    for rank, hit in enumerate(hits, 1):
        excerpt = " ".join(hit.text.removeprefix(hit.title).split())[:200]
        click.echo(f"{rank}. {hit.source}  [{hit.score:.2f}]  {hit.id}")
        click.echo(f"   {excerpt}")


def _lines(text: str) -> list[str]:
    """Lines as `wc -l` counts them: answers correspond to them, so no other breaks count."""
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []
