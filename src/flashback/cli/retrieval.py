"""`flashback eval retrieval`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from flashback.cli.console import notes
from flashback.cli.documents import counting
from flashback.cli.options import options_of, take
from flashback.cli.reader_options import ReaderOptions, model_options
from flashback.cli.retriever_options import combining_options, specs_given
from flashback.cli.tables import print_columns
from flashback.evaluation.judgements import Judgements, read_judgements
from flashback.evaluation.search_quality import (
    Quality,
    QualitySettings,
    check_measures,
    measure_search,
    run_lines,
)
from flashback.files import write_atomically
from flashback.retrieval.fusion import FusedRetriever, FusionSettings
from flashback.retrieval.kinds import Index
from flashback.retrieval.protocol import Retriever
from flashback.retrieval.rerank import READER, Reranker, RerankSettings, reranked
from flashback.retrieval.specs import RetrieverSpec, open_source


@dataclass(frozen=True)
class _Row:
    """A retriever to measure."""

    name: str
    retriever: Retriever
    bytes: int | None
    """On disk; None: not known."""


@click.command(short_help="How well indexes find judged documents, and how fast.")
@click.argument("qrels", type=click.Path(path_type=Path))
@click.option(
    "--queries",
    type=click.Path(path_type=Path),
    required=True,
    help='JSON lines with "_id" and "text", or lines of id, tab, text.',
)
@click.option("--index", type=Path, multiple=True, help="Index folder (repeatable: a row each).")
@click.option(
    "--retriever",
    multiple=True,
    callback=specs_given,
    metavar="SPEC",
    help="Any other retriever, as in 'flashback generate' (repeatable: a row each).",
)
@click.option("--fused", is_flag=True, help="A row that fuses all of them.")
@combining_options
@options_of(QualitySettings)
@model_options
@click.option("--run", type=Path, metavar="FILE", help="Write the last row's ranking, as TREC has.")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def retrieval(
    qrels: Path,
    queries: Path,
    index: tuple[Path, ...],
    retriever: tuple[RetrieverSpec, ...],
    fused: bool,
    options: ReaderOptions,
    run: Path | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Search for each judged query of QRELS (BEIR's or TREC's) in every index, and compare.

    \b
    flashback eval retrieval qrels/test.tsv --queries queries.jsonl --index WORDS --index MEANING
    flashback eval retrieval qrels/test.tsv --queries queries.jsonl --index WORDS --run run.trec
    flashback eval retrieval qrels/test.tsv --queries queries.jsonl --index WORDS --index MEANING \\
        --fused --reranker reader --model MODEL

    Documents are named by the ids that they were indexed with, and rank by their best passage. With
    --reranker, the last row is ranked anew for a further one. Milliseconds are those of one query.
    """
    fusion, rerank = take(FusionSettings, values), take(RerankSettings, values)
    settings = take(QualitySettings, values)
    sources: list[Path | RetrieverSpec] = [*index, *retriever]
    if not sources:
        raise click.UsageError("there is nothing to search in; give --index or --retriever")
    check_measures(settings.measure)
    if fused:
        fusion.weights(len(sources))
    if run is not None:
        from flashback.evaluation.figures import check_writable

        check_writable("--run", run)
    judgements = read_judgements(queries, qrels)
    rows = _rows(sources, fusion if fused else None)
    if rerank.reranker:
        rows.append(_reranked(rows[-1], rerank, options))
    found = _measured(rows, judgements, settings)
    record = _record(rows, found, judgements) | {
        "settings": asdict(settings) | asdict(fusion) | asdict(rerank)
    }
    try:
        if run is not None:
            write_atomically(run, run_lines(found[-1].run, "flashback"))
    finally:  # what took minutes is not lost to a full disk
        click.echo(json.dumps(record, indent=2)) if as_json else _print(record)


def _rows(sources: Sequence[Path | RetrieverSpec], fusion: FusionSettings | None) -> list[_Row]:
    """A row for each source, and one for all of them."""
    rows = []
    for source in sources:
        opened = open_source(source)
        size = opened.manifest.bytes if isinstance(opened, Index) else None
        rows.append(_Row(str(source), opened, size))
    if fusion is not None:
        sizes = [row.bytes for row in rows]
        size = None if None in sizes else sum(size or 0 for size in sizes)
        rows.append(_Row("fused", FusedRetriever([row.retriever for row in rows], fusion), size))
    return rows


def _reranked(row: _Row, rerank: RerankSettings, options: ReaderOptions) -> _Row:
    reader: Reranker | None = None
    name = f"{row.name}, reranked by {rerank.reranker}"
    if rerank.reranker == READER:
        from flashback.cli.quiet import begin_loading

        begin_loading(options.model)
        from flashback.scoring.reader_reranker import ReaderReranker

        reader = ReaderReranker(options.load_plain())
        name = f"{row.name}, reranked by {options.model}"
    return _Row(name, reranked(row.retriever, rerank, reader), row.bytes)


def _measured(
    rows: Sequence[_Row], judgements: Judgements, settings: QualitySettings
) -> list[Quality]:
    with counting("searching") as start:
        advance = start(len(rows) * len(judgements.queries))
        found = [measure_search(row.retriever, judgements, settings, advance) for row in rows]
    for row, own in zip(rows, found, strict=True):
        judged = judgements.judged
        if not any(set(documents) & set(judged[name]) for name, documents in own.run.items()):
            notes.print(
                f"{row.name}: not one judged document was found; are the ids of the judgements "
                "those that the documents were indexed with?",
                markup=False,
            )
    return found


def _record(
    rows: Sequence[_Row],
    found: Sequence[Quality],
    judgements: Judgements,
) -> dict[str, Any]:
    return {
        "queries": len(judgements.queries),
        "judged": sum(map(len, judgements.judged.values())),
        "rows": [
            {
                "name": row.name,
                "measures": own.values,
                "milliseconds": {"p50": own.milliseconds[0], "p95": own.milliseconds[1]},
                "bytes": row.bytes,
            }
            for row, own in zip(rows, found, strict=True)
        ],
    }


def _print(record: dict[str, Any]) -> None:
    rows = record["rows"]
    columns = [("", [row["name"] for row in rows])]
    columns += [
        (name, [f"{row['measures'][name]:.3f}" for row in rows]) for name in rows[0]["measures"]
    ]
    columns += [
        (f"{name}\nms", [f"{row['milliseconds'][name]:.1f}" for row in rows])
        for name in ("p50", "p95")
    ]
    sizes = ["" if row["bytes"] is None else f"{row['bytes'] / 1e6:.1f}" for row in rows]
    print_columns([*columns, ("MB", sizes)], f"{record['queries']:,} queries")
