"""`flashback reproduce`."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flashback.cli.audit_option import audit_option
from flashback.cli.console import notes, training_progress
from flashback.cli.documents import (
    Sources,
    counting,
    lookup_options,
    open_sources,
    read_and_retrieve,
)
from flashback.cli.options import options_of, take
from flashback.cli.perplexity import evaluation_sets, print_tables, title_of
from flashback.cli.reader_options import ReaderOptions, reader_options
from flashback.cli.retriever_options import Source, required_source_options
from flashback.errors import FlashBackWarning, SettingsError
from flashback.evaluation.bootstrap_settings import BootstrapSettings
from flashback.evaluation.frame_kind import FrameKind
from flashback.patterns.registry import PATTERNS
from flashback.retrieval.guard import GuardSettings
from flashback.scoring.window_settings import WindowSettings
from flashback.settings import RetrievalSettings
from flashback.training.training_settings import TrainingSettings

if TYPE_CHECKING:
    from flashback.evaluation.evaluate import EvaluationSet
    from flashback.evaluation.perplexity import Table
    from flashback.readers.reader import Reader
    from flashback.scoring.examples import Example
    from flashback.training.reproduce import Rows
    from flashback.training.run import Run

_TRAINED = [
    field.name
    for field in fields(TrainingSettings)
    if field.name not in ("marks", "evaluation_steps")
]
"""The training settings of a reproduction, which trains with every kind of marks."""


@dataclass(frozen=True)
class _Request:
    """The command's options, and the settings made of them."""

    settings: TrainingSettings
    retrieval: RetrievalSettings
    guard: GuardSettings
    windows: WindowSettings
    bootstrap: BootstrapSettings
    train_documents: tuple[str, ...]
    documents: tuple[str, ...]
    index: Source
    out: Path
    evaluate_windows: int
    adapter_rows: tuple[str, ...]
    frames: tuple[str, ...]
    bfloat16: bool
    options: ReaderOptions
    audit: bool
    as_json: bool

    @property
    def scored_windows(self) -> WindowSettings:
        """How the documents that are scored are cut."""
        return replace(self.windows, max_windows=self.evaluate_windows)

    @property
    def rows(self) -> "Rows":
        """The rows of the table."""
        from flashback.training.reproduce import NAIVE_FRAMES, Rows

        frames = tuple(FrameKind[name.upper()] for name in self.frames)
        return Rows(self.settings.echo_tokens, self.adapter_rows, frames or NAIVE_FRAMES)

    @property
    def data(self) -> dict[str, Any]:
        """A record of the documents to train on."""
        return {"documents": list(self.train_documents), "index": str(self.index)}

    @property
    def described(self) -> dict[str, Any]:
        """What the table records besides the settings of its windows."""
        training = {name: getattr(self.settings, name) for name in _TRAINED}
        return {
            "documents": list(self.documents),
            "index": str(self.index),
            "resamples": self.bootstrap.resamples,
            "trained_on": list(self.train_documents),
            "training": training
            | {"max_windows": self.windows.max_windows, "bfloat16": self.bfloat16},
        }


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
@required_source_options
@click.option("--out", type=Path, required=True, help="Folder for adapters, scores and the table.")
@click.option(
    "--evaluate-windows",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Windows to score, drawn at random; 0: all.",
)
@click.option(
    "--adapter-row",
    "adapter_rows",
    multiple=True,
    metavar="NAME",
    help="Train and score this adapter only, such as none, prepend-trained, append-trained or "
    "append-trained-echo (repeatable; others can be added later).",
)
@click.option(
    "--frame",
    "frames",
    multiple=True,
    type=click.Choice(["bare", "text", "echo", "eos"]),
    help="Score untrained rows with this frame only (repeatable).",
)
@click.option("--bfloat16", is_flag=True, help="Train in bfloat16 where that is safe.")
@reader_options
@options_of(TrainingSettings, only=_TRAINED)
@lookup_options
@options_of(GuardSettings)
@options_of(WindowSettings)
@options_of(BootstrapSettings)
@audit_option
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def reproduce(**values: Any) -> None:
    """Train and score every row of the paper's table; the same command continues it.

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
    request = _parse(values)
    trained, scored = (
        open_sources(names, request.index, request.guard, retrieves=True)
        for names in (request.train_documents, request.documents)
    )
    table = _table(request, trained, scored)
    try:
        _write_reproduction(table, request.options.model, request.out)
    finally:
        print_tables([table], [""], request.options.model, as_json=request.as_json)


def _parse(values: dict[str, Any]) -> _Request:
    """Check all that can be checked before documents are read and a model is loaded."""
    settings = take(TrainingSettings, values)
    retrieval = take(RetrievalSettings, values, pattern="append")  # every row has its own
    windows, bootstrap = take(WindowSettings, values), take(BootstrapSettings, values)
    guard = take(GuardSettings, values)
    request = _Request(settings, retrieval, guard, windows, bootstrap, **values)
    if request.out == Path():  # what an unset shell variable gives
        raise click.UsageError("--out '': expected a folder's name")
    if "-" in request.train_documents and "-" in request.documents:
        raise click.UsageError("standard input can be read only once: to train on, or to score")
    from flashback.cli.quiet import begin_loading

    begin_loading(request.options.model)
    from flashback.training.reproduce import check_output

    check_output(request.out)
    return request


def _table(request: _Request, trained: Sources, scored: Sources) -> "Table":
    """Train the missing adapters and score the missing rows.

    Args:
        trained: the documents to train on.
        scored: the documents to score.
    """
    from flashback.evaluation.adapted_readers import AdaptedReaders
    from flashback.evaluation.evaluate import ScoreStore, evaluate
    from flashback.training.reproduce import arms, claim, recipes, train_missing
    from flashback.training.run import Run

    out, bootstrap = request.out, request.bootstrap
    readers = AdaptedReaders(request.options.load_plain)
    run = Run(request.settings, request.retrieval, request.windows, request.data)
    _check_positions(readers.get(), run)
    examples, sets = _read(request, readers.get(), trained, scored)
    rows, bfloat16 = request.rows, request.bfloat16
    recipes(readers.get(), rows)  # unknown names are refused before a folder is made
    claim(out, run, readers.get(), examples, bfloat16=bfloat16)
    train_missing(out, readers, examples, run, training_progress, rows=rows, bfloat16=bfloat16)
    scored_rows = arms(out, readers.get(), rows)
    store = ScoreStore(out / "scores")
    with counting("scoring windows") as start:
        return evaluate(scored_rows, sets, readers, settings=bootstrap, store=store, start=start)[0]


def _check_positions(reader: "Reader", run: "Run") -> None:
    """Refuse windows that do not fit, with any frame of the table."""
    from flashback.evaluation.arms import untrained_arms
    from flashback.scoring.windows import check_positions
    from flashback.training.reproduce import NAIVE_FRAMES

    arms = untrained_arms(list(PATTERNS), NAIVE_FRAMES)
    frame = max(reader.frame_tokens(run.settings), *(arm.frame_tokens(reader) for arm in arms))
    check_positions(reader, run.windows, run.retrieval, frame)


def _read(
    request: _Request, reader: "Reader", trained: Sources, scored: Sources
) -> "tuple[list[Example], list[EvaluationSet]]":
    """The windows to train on and those to score."""
    retrieval = request.retrieval
    found = read_and_retrieve(trained, reader, [retrieval], request.windows)[0]
    examples = found.examples(reader, retrieval)
    windows, described = request.scored_windows, request.described
    sets = evaluation_sets(reader, scored, [retrieval], windows, described, audited=request.audit)
    _warn_of_leakage(examples, sets[0].examples)
    return examples, sets


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
