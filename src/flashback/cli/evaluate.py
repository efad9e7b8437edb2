"""`flashback eval` and `flashback reproduce`."""

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table as Printed

from flashback.cli.documents import prepare_documents
from flashback.cli.generate import reader_options
from flashback.cli.options import options_of, take
from flashback.cli.train import RETRIEVED, training_progress
from flashback.finetuning.settings import TrainingSettings
from flashback.packing.settings import WindowSettings
from flashback.settings import Pattern, RetrievalSettings

if TYPE_CHECKING:
    from flashback.evaluation.evaluate import OnWindow
    from flashback.evaluation.perplexity import Row, Table
    from flashback.reader import Reader

_SWEPT = {"s": "stride", "l": "query_tokens", "m": "passage_tokens", "k": "passages"}


@click.command("eval", short_help="Perplexity of the context patterns.")
@click.argument("documents", nargs=-1, required=True)
@click.option("--index", type=Path, help="Index folder that passages come from.")
@click.option(
    "--adapter", "adapters", type=Path, multiple=True, help="Score this adapter, too (repeatable)."
)
@click.option(
    "--pattern",
    "patterns",
    type=click.Choice([str(pattern) for pattern in Pattern]),
    multiple=True,
    help="Score this pattern (repeatable; default: all).",
)
@click.option("--shortened", is_flag=True, help="Add the paper's baseline with shorter contexts.")
@click.option(
    "--sweep",
    multiple=True,
    metavar="X=A,B,..",
    help="Score several values of s, l, m or k (repeatable: every combination).",
)
@reader_options
@options_of(RetrievalSettings, only=RETRIEVED[1:])
@options_of(WindowSettings)
@click.option(
    "--resamples",
    type=click.IntRange(10, 1_000_000),
    default=2000,
    show_default=True,
    help="Resamples of the documents, for the intervals.",
)
@click.option("--per-document", type=Path, help="Write a JSON line per document to this file.")
@click.option("--plot", type=Path, help="Write the figure to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def evaluate(
    documents: tuple[str, ...],
    index: Path | None,
    adapters: tuple[Path, ...],
    patterns: tuple[str, ...],
    shortened: bool,
    sweep: tuple[str, ...],
    model: str,
    device: str,
    dtype: str,
    window: int | None,
    trust_remote_code: bool,
    resamples: int,
    per_document: Path | None,
    plot: Path | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Score DOCUMENTS (corpora, as 'flashback index' takes them) with every pattern.

    \b
    flashback eval python-docs:evaluation --index IDX --adapter ADAPTER --max-windows 100
    flashback eval texts/ --index IDX --sweep s=4,8,16,32 --sweep k=1,2 --plot sweep.png
    flashback eval texts/ --index IDX --protocol sliding --window-tokens 1024 --stride 4

    All rows have the same targets and share what was retrieved. Passages of a document's own, of
    its title, and copies of it are never used.
    """
    from flashback.cli.quiet import quiet_transformers

    quiet_transformers()
    wanted = [Pattern(pattern) for pattern in patterns] or list(Pattern)
    retrieval = take(RetrievalSettings, values)
    windows = take(WindowSettings, values)
    settings = list(_combinations(retrieval, sweep))
    if all(not pattern.retrieves for pattern in wanted):
        settings = [replace(one, pattern=Pattern.NONE) for one in settings]
    settings[0].check_retriever(index)
    _check_files(per_document, plot)

    from flashback.evaluation.arms import Arm, FrameKind, adapter_arms, untrained_arms
    from flashback.evaluation.evaluate import Judged
    from flashback.evaluation.evaluate import evaluate as run_evaluation
    from flashback.evaluation.report import plot_sweep, plot_table, write_documents

    arms = untrained_arms(wanted, [FrameKind.TEXT])
    if shortened:
        arms.append(Arm(Pattern.NONE, shortened=True))
    arms += [arm for adapter in adapters for arm in adapter_arms(adapter, wanted)]
    load = _loader(model, device, dtype, window, trust_remote_code)
    reader = load()
    _check_positions(reader, windows, settings)
    prepared = prepare_documents(documents, reader, index, settings, windows)
    tables = []
    for one, own in zip(settings, prepared, strict=True):
        judged = Judged(tuple(own.examples(reader, one)), own.found, windows)
        with _scoring_progress(len(arms) * len(judged.examples)) as on_window:
            tables.append(
                run_evaluation(
                    arms,
                    judged,
                    load,
                    _described(reader, one, windows, documents, index),
                    resamples=resamples,
                    on_window=on_window,
                )
            )
    if per_document is not None:
        write_documents(tables, per_document)
    if plot is not None and len(tables) > 1:
        plot_sweep(tables, [_swept_name(one, sweep) for one in settings], plot)
    elif plot is not None:
        plot_table(tables[0], f"{model}, {int(tables[0].texts.tokens.sum()):,} targets", plot)
    if as_json:
        records = [table.record() for table in tables]
        click.echo(json.dumps(records[0] if not sweep else {"tables": records}, indent=2))
        return
    for one, table in zip(settings, tables, strict=True):
        print_table(table, f"{model} {_swept_name(one, sweep)}".strip())


def _combinations(settings: RetrievalSettings, sweep: Sequence[str]) -> Iterator[RetrievalSettings]:
    choices = []
    for text in sweep:
        name, _, values = text.partition("=")
        if name not in _SWEPT or not values:
            raise click.UsageError(
                f"--sweep {text}: expected s=, l=, m= or k= and numbers, such as s=4,8,16"
            )
        try:
            choices.append([(_SWEPT[name], int(value)) for value in values.split(",")])
        except ValueError:
            raise click.UsageError(f"--sweep {text}: expected whole numbers") from None
    for chosen in itertools.product(*choices):
        changed: dict[str, Any] = dict(chosen)
        yield replace(settings, **changed)


def _swept_name(settings: RetrievalSettings, sweep: Sequence[str]) -> str:
    names = [text.partition("=")[0] for text in sweep]
    return " ".join(f"{name}={getattr(settings, _SWEPT[name])}" for name in names)


def _check_files(per_document: Path | None, plot: Path | None) -> None:
    """Now, not after minutes of scoring."""
    if plot is not None:
        from flashback.benchmark.plot import check_plot

        check_plot(plot)
    if per_document is not None and not per_document.absolute().parent.is_dir():
        raise click.UsageError(f"--per-document {per_document}: no such folder")


def _check_positions(
    reader: "Reader", windows: WindowSettings, settings: Sequence[RetrievalSettings]
) -> None:
    from flashback.finetuning.training import check_positions

    for one in settings:
        check_positions(reader, windows, one)


def _loader(
    model: str, device: str, dtype: str, window: int | None, trust_remote_code: bool
) -> "Callable[[], Reader]":
    from flashback.reader import load_reader

    return lambda: load_reader(
        model, device=device, dtype=dtype, window=window, trust_remote_code=trust_remote_code
    )


def _described(
    reader: "Reader",
    retrieval: RetrievalSettings,
    windows: WindowSettings,
    documents: Sequence[str],
    index: Path | None,
) -> dict[str, Any]:
    from flashback.records import versions

    return {
        "model": reader.name,
        "device": str(reader.placement.device),
        "dtype": reader.placement.dtype_name,
        "documents": list(documents),
        "index": None if index is None else str(index),
        "stride": retrieval.stride,
        "query_tokens": retrieval.query_tokens,
        "passage_tokens": retrieval.passage_tokens,
        "passages": retrieval.passages,
        **asdict(windows),
        "versions": versions(),
    }


@contextlib.contextmanager
def _scoring_progress(total: int) -> "Iterator[OnWindow]":
    from flashback.cli.documents import counting

    with counting("scoring windows") as start:
        advance = start(total)
        yield lambda _: advance()


def print_table(table: "Table", title: str) -> None:
    """For people."""
    printed = Printed(title=title)
    printed.add_column("pattern")
    for heading in ("perplexity", "95 %", "against the first", "per word", "bits/byte"):
        printed.add_column(heading, justify="right")
    for row in table.rows:
        printed.add_row(*_cells(table, row))
    console = Console(highlight=False)
    console.print(printed)
    close = table.contamination
    console.print(
        f"{int(table.texts.tokens.sum()):,} targets of {len(table.texts.ids):,} documents. First "
        f"passages: {_percent(close.from_document, close.cuts)} of the document itself, "
        f"{_percent(close.overlapping, close.cuts)} with 8 words in a row in common with it, "
        f"{_percent(close.empty, close.cuts)} none; {close.copies_left_out:,} copies left out."
    )


def _cells(table: "Table", row: "Row") -> list[str]:
    ratio = table.against(row, table.rows[0])
    return [
        row.arm.name,
        f"{row.perplexity.value:.3f}",
        f"{row.perplexity.low:.2f} to {row.perplexity.high:.2f}",
        f"{ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f})",
        f"{row.word_perplexity:.1f}",
        f"{row.bits_per_byte:.3f}",
    ]


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "0 %"


@click.command(short_help="The paper's table on a reader of yours.")
@click.option(
    "--train",
    "train_documents",
    multiple=True,
    required=True,
    metavar="CORPUS",
    help="Documents to train on (repeatable).",
)
@click.option(
    "--evaluate",
    "documents",
    multiple=True,
    required=True,
    metavar="CORPUS",
    help="Documents to score (repeatable).",
)
@click.option("--index", type=Path, required=True, help="Index folder that passages come from.")
@click.option("--out", type=Path, required=True, help="Folder for adapters, scores and the table.")
@click.option(
    "--evaluate-windows",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Windows to score, drawn at random; 0: all.",
)
@reader_options
@options_of(TrainingSettings)
@options_of(RetrievalSettings, only=RETRIEVED[1:])
@options_of(WindowSettings)
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def reproduce(
    train_documents: tuple[str, ...],
    documents: tuple[str, ...],
    index: Path,
    out: Path,
    evaluate_windows: int,
    model: str,
    device: str,
    dtype: str,
    window: int | None,
    trust_remote_code: bool,
    as_json: bool,
    **values: Any,
) -> None:
    """Train and score every row of the paper's table; the same command goes on where it stopped.

    \b
    flashback reproduce --train python-docs:adapter --evaluate python-docs:evaluation \\
        --index IDX --out TABLE
    flashback reproduce --model facebook/opt-125m --train wikitext-2:train \\
        --evaluate wikitext-2:test --index WIKIPEDIA --out TABLE --device cuda

    No retrieval; prepended and appended naively (bare, in a text frame, behind an end-of-text
    token); with LoRA; with LoRA and frozen marks; with LoRA and trained marks (FlashBack).
    """
    from flashback.cli.quiet import quiet_transformers

    quiet_transformers()
    settings = take(TrainingSettings, values)
    retrieval = take(RetrievalSettings, values)
    windows = take(WindowSettings, values)
    from flashback.evaluation import reproduce as table_of
    from flashback.evaluation.evaluate import Judged, ScoreStore
    from flashback.evaluation.evaluate import evaluate as run_evaluation
    from flashback.evaluation.report import plot_table, write_documents
    from flashback.files import write_atomically
    from flashback.finetuning.training import Run, check_positions

    load = _loader(model, device, dtype, window, trust_remote_code)
    reader = load()
    check_positions(reader, windows, retrieval)
    out.mkdir(parents=True, exist_ok=True)
    trained = prepare_documents(train_documents, reader, index, [retrieval], windows)[0]
    few = replace(windows, max_windows=evaluate_windows)
    judged_on = prepare_documents(documents, reader, index, [retrieval], few)[0]
    data = {"documents": list(train_documents), "index": str(index)}
    table_of.train_missing(
        out,
        load,
        trained.examples(reader, retrieval),
        Run(settings, retrieval, windows, data),
        training_progress,
    )
    judged = Judged(tuple(judged_on.examples(reader, retrieval)), judged_on.found, few)
    arms = table_of.arms(out)
    described = _described(reader, retrieval, few, documents, index)
    with _scoring_progress(len(arms) * len(judged.examples)) as on_window:
        table = run_evaluation(
            arms, judged, load, described, store=ScoreStore(out / "scores"), on_window=on_window
        )
    write_atomically(out / "table.json", json.dumps(table.record(), indent=2) + "\n")
    write_documents([table], out / "documents.jsonl")
    with contextlib.suppress(ImportError):
        plot_table(table, f"{model}, {int(table.texts.tokens.sum()):,} targets", out / "table.png")
    if as_json:
        click.echo(json.dumps(table.record(), indent=2))
    else:
        print_table(table, model)
