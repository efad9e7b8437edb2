"""`flashback reproduce`."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flashback.cli.console import notes
from flashback.cli.documents import Sources, counting, open_sources, prepare_sources
from flashback.cli.evaluate import judge_sources, print_tables, title_of
from flashback.cli.options import options_of, take
from flashback.cli.reader_options import ReaderOptions, reader_options
from flashback.cli.train import RETRIEVED, training_progress
from flashback.errors import FlashBackWarning, SettingsError
from flashback.evaluation.bootstrap_settings import BootstrapSettings
from flashback.patterns.registry import PATTERNS
from flashback.scoring.window_settings import WindowSettings
from flashback.settings import RetrievalSettings
from flashback.training.training_settings import TrainingSettings

if TYPE_CHECKING:
    from flashback.evaluation.perplexity import Table
    from flashback.readers.reader import Reader
    from flashback.scoring.examples import Example
    from flashback.training.run import Run

_TRAINED = [
    field.name
    for field in fields(TrainingSettings)
    if field.name not in ("marks", "evaluation_steps")
]
"""The training settings of a reproduction, which trains with every kind of marks."""


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
@options_of(TrainingSettings, only=_TRAINED)
@options_of(RetrievalSettings, only=RETRIEVED)
@options_of(WindowSettings)
@options_of(BootstrapSettings)
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def reproduce(
    train_documents: tuple[str, ...],
    documents: tuple[str, ...],
    index: Path,
    out: Path,
    evaluate_windows: int,
    options: ReaderOptions,
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
    token); with LoRA; with LoRA and frozen marks; with LoRA and trained marks (FlashBack). Not the
    paper's: rows with an echo, an untrained one and with --echo-tokens a trained one; and, for
    readers that can have one, passages in a slot, untrained and with LoRA.
    """
    from flashback.cli.quiet import quiet_transformers

    quiet_transformers()
    run_settings = take(TrainingSettings, values)
    retrieval = take(RetrievalSettings, values, pattern="append")  # every row has its own
    windows = take(WindowSettings, values)
    bootstrap = take(BootstrapSettings, values)
    if out == Path():  # what an unset shell variable gives
        raise click.UsageError("--out '': expected a folder's name")
    if "-" in train_documents and "-" in documents:
        raise click.UsageError("standard input can be read only once: to train on, or to score")
    from flashback.evaluation.adapted import Readers
    from flashback.evaluation.evaluate import ScoreStore
    from flashback.evaluation.evaluate import evaluate as run_evaluation
    from flashback.training import reproduce as table_of
    from flashback.training.run import Run

    table_of.check_output(out)
    sources = [open_sources(names, index, retrieves=True) for names in (train_documents, documents)]
    readers = Readers(options.load_plain)
    data = {"documents": list(train_documents), "index": str(index)}
    run = Run(run_settings, retrieval, windows, data)
    few = replace(windows, max_windows=evaluate_windows)
    described = {
        "documents": list(documents),
        "index": str(index),
        "resamples": bootstrap.resamples,
        "trained_on": list(train_documents),
        "training": {name: getattr(run_settings, name) for name in _TRAINED}
        | {"max_windows": windows.max_windows},
    }
    _check_reproduction(readers.get(), run)
    examples = _training_examples(readers.get(), sources[0], retrieval, windows)
    judged = judge_sources(readers.get(), sources[1], [retrieval], few, described)
    _warn_of_leakage(examples, judged[0].examples)
    table_of.claim(out, run, readers.get(), examples)
    table_of.train_missing(out, readers, examples, run, training_progress)
    arms = table_of.arms(out, run_settings.echo_tokens, readers.get().can_have(PATTERNS["slot"]))
    with counting("scoring windows") as start:
        (table,) = run_evaluation(
            arms, judged, readers, settings=bootstrap, store=ScoreStore(out / "scores"), start=start
        )
    try:
        _write_reproduction(table, options.model, out)
    finally:
        print_tables([table], [""], options.model, as_json=as_json)


def _check_reproduction(reader: "Reader", run: "Run") -> None:
    """Refuse windows that do not fit, with any frame of the table."""
    from flashback.evaluation.arms import untrained_arms
    from flashback.training.reproduce import NAIVE_FRAMES
    from flashback.training.run import check_positions

    arms = untrained_arms(list(PATTERNS), NAIVE_FRAMES)
    frame = max(run.settings.frame_tokens, *(arm.frame_tokens(reader) for arm in arms))
    check_positions(reader, run.windows, run.retrieval, frame)


def _training_examples(
    reader: "Reader", sources: Sources, retrieval: RetrievalSettings, windows: WindowSettings
) -> "list[Example]":
    return prepare_sources(sources, reader, [retrieval], windows)[0].examples(reader, retrieval)


def _warn_of_leakage(trained: "Sequence[Example]", scored: "Sequence[Example]") -> None:
    known = {example.window.document.text for example in trained}
    texts = {example.window.document.text for example in scored}
    if leaked := len(known & texts):
        warnings.warn(
            f"{leaked:,} of the {len(texts):,} documents to score are trained on, too; rows with "
            "LoRA say nothing of other texts",
            FlashBackWarning,
            stacklevel=2,
        )


def _write_reproduction(table: "Table", model: str, out: Path) -> None:
    from flashback.evaluation.markdown import in_markdown
    from flashback.evaluation.report import plot_table, write_documents
    from flashback.files import write_atomically

    record = table.record()
    write_atomically(out / "table.json", json.dumps(record, indent=2) + "\n")
    write_atomically(out / "table.md", in_markdown(record, model))
    write_documents([table], out / "documents.jsonl")
    try:
        plot_table(table, title_of(model, table), out / "table.png")
    except SettingsError as error:  # the figure is an extra
        notes.print(f"{out / 'table.png'} is not drawn: {error}", markup=False)
