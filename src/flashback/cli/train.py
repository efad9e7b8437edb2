"""`flashback train` and `flashback export`."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from flashback.cli.console import notes
from flashback.cli.options import options_of, take
from flashback.cli.patterns import check_echo, trained_pattern_option
from flashback.cli.reader_options import ReaderOptions, model_options, reader_options
from flashback.scoring.window_settings import WindowSettings
from flashback.settings import RetrievalSettings
from flashback.training.training_settings import TrainingSettings

if TYPE_CHECKING:
    from flashback.cli.documents import Sources
    from flashback.evaluation.evaluate import Judged
    from flashback.readers.card import AdapterCard
    from flashback.readers.reader import Reader
    from flashback.training.trainer import OnStep

RETRIEVED = (
    "stride",
    "query_tokens",
    "passage_tokens",
    "passages",
    "lookahead",
    "min_score",
    "forbid_titles",
    "forbid_documents",
)
"""A training's retrieval settings, but for its pattern; what is around passages is `--marks`."""


@click.command(short_help="Train an adapter that reads passages.")
@click.argument("documents", nargs=-1, required=True)
@click.option("--index", type=Path, help="Index folder that passages come from.")
@click.option("--out", type=Path, required=True, help="The adapter folder to make.")
@click.option(
    "--held-out", multiple=True, metavar="CORPUS", help="Documents to evaluate on (repeatable)."
)
@click.option(
    "--held-out-windows",
    type=click.IntRange(1),
    default=50,
    show_default=True,
    help="How many windows of them.",
)
@reader_options
@options_of(TrainingSettings)
@trained_pattern_option
@options_of(RetrievalSettings, only=RETRIEVED)
@options_of(WindowSettings, only=("window_tokens", "first_boundary", "max_windows"))
@click.option("--bfloat16", is_flag=True, help="Compute in bfloat16 where that is safe.")
@click.option(
    "--log-to", multiple=True, metavar="NAME", help="tensorboard, wandb or trackio (repeatable)."
)
@click.option("--json", "as_json", is_flag=True, help="Print the adapter's card as JSON.")
def train(
    documents: tuple[str, ...],
    index: Path | None,
    out: Path,
    held_out: tuple[str, ...],
    held_out_windows: int,
    options: ReaderOptions,
    bfloat16: bool,
    log_to: tuple[str, ...],
    pattern: str,
    as_json: bool,
    **values: Any,
) -> None:
    """Train LoRA and the marking tokens on DOCUMENTS (corpora, as 'flashback index' takes them).

    \b
    flashback train python-docs:adapter --index IDX --out ADAPTER
    flashback train texts/ --model facebook/opt-125m --index IDX --out ADAPTER --bfloat16
    flashback train texts/ --pattern none --out BASELINE

    The same command goes on where an interrupted one was. On several GPUs:
    torchrun --nproc-per-node 4 -m flashback train ...
    """
    from flashback.cli.quiet import quiet_transformers

    quiet_transformers()
    settings = take(TrainingSettings, values)
    retrieval = take(RetrievalSettings, values, pattern=pattern)
    windows = take(WindowSettings, values)
    retrieval.check_retriever(index)
    if "-" in documents and "-" in held_out:
        raise click.UsageError("standard input can be read only once: to train on, or to score")
    from flashback.cli.documents import open_sources, prepare_sources
    from flashback.readers.card import card_record
    from flashback.training.model_card import record_table
    from flashback.training.run import (
        Run,
        check_output,
        check_positions,
        close_run,
        loggers,
    )
    from flashback.training.run import (
        train as run_training,
    )

    check_echo(settings.echo_tokens, retrieval.pattern)
    check_output(out)
    loggers(log_to)  # now, not after minutes of looking up
    retrieves = retrieval.retrieves
    sources = open_sources(documents, index, retrieves=retrieves)
    held_out_sources = open_sources(held_out, index, retrieves=retrieves) if held_out else None
    reader = options.load_plain()
    reader.check_pattern(retrieval.pattern)
    data = {"documents": list(documents), "index": None if index is None else str(index)}
    run = Run(settings, retrieval, windows, data)
    check_positions(reader, windows, retrieval, settings.frame_tokens)
    prepared = prepare_sources(sources, reader, [retrieval], windows)[0]
    examples = prepared.examples(reader, retrieval)
    few = replace(windows, max_windows=held_out_windows)
    judged = (
        None
        if held_out_sources is None
        else _judged(held_out, held_out_sources, reader, retrieval, few)
    )
    if notes.is_terminal:
        line = f"{len(examples):,} windows of {options.model}, {reader.placement}"
        notes.print(line, style="dim", markup=False)
    with training_progress() as on_step:
        card = run_training(
            reader,
            examples,
            run,
            out,
            held_out=judged.examples if judged is not None else (),
            log_to=log_to,
            on_step=on_step,
            bfloat16=bfloat16,
            close=judged is None,
        )
    if not _speaks():
        return
    if judged is not None:
        del reader  # there is one model in memory at a time
        card = record_table(out, _measured(out, card, judged, options.load_plain))
        close_run(out)
    if as_json:
        click.echo(card_record(card), nl=False)
    else:
        click.echo(
            f"{out}: trained; mean loss of all steps {card.results['training_loss']:.3f} nats per "
            "target"
        )


def _judged(
    held_out: Sequence[str],
    sources: "Sources",
    reader: "Reader",
    retrieval: RetrievalSettings,
    windows: WindowSettings,
) -> "Judged":
    """Held-out documents, to be scored."""
    from flashback.cli.documents import prepare_sources
    from flashback.evaluation.evaluate import Judged

    found = prepare_sources(sources, reader, [retrieval], windows)[0]
    described = {"documents": list(held_out), "windows": windows.max_windows}
    return Judged(tuple(found.examples(reader, retrieval)), found.found, windows, described)


def _measured(
    out: Path, card: "AdapterCard", judged: "Judged", load: "Callable[[], Reader]"
) -> dict[str, Any]:
    """The reader without and with its new adapter on the held-out windows."""
    from flashback.cli.documents import counting
    from flashback.evaluation.adapted import Readers
    from flashback.evaluation.arms import adapter_arms, untrained_arms, usual_frames
    from flashback.evaluation.evaluate import evaluate

    readers = Readers(load)
    patterns = list(dict.fromkeys(["none", card.pattern]))
    arms = untrained_arms(patterns, usual_frames(readers.get()))
    arms += adapter_arms(out, [card.pattern])
    with counting("scoring held-out windows") as start:
        return evaluate(arms, [judged], readers, start=start)[0].record()


def _speaks() -> bool:
    """Whether this process is the one of a `torchrun` that prints."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def training_progress(title: str = "training") -> "Iterator[OnStep]":
    """A bar of optimizer steps with the loss, targets per second and the time left."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}, {task.fields[rate]:,.0f} targets/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    shown = notes.is_terminal and _speaks()
    with Progress(*columns, console=notes, disable=not shown) as progress:
        task = progress.add_task(title, total=None, loss=float("nan"), rate=0.0)
        began = time.perf_counter()

        def on_step(state: Any) -> None:
            rate = state.targets / (time.perf_counter() - began)
            progress.update(
                task, completed=state.step, total=state.steps, loss=state.loss, rate=rate
            )

        yield on_step


@click.command(short_help="Write a reader and its adapter as a plain checkpoint.")
@click.option("--adapter", type=Path, required=True, help="Made by 'flashback train'.")
@click.option("--out", type=Path, required=True, help="The model folder to make.")
@model_options
def export(
    adapter: Path,
    out: Path,
    options: ReaderOptions,
) -> None:
    """Merge an adapter into its reader: a folder for transformers, vLLM and others.

    \b
    flashback export --model facebook/opt-125m --adapter ADAPTER --out MERGED
    """
    from flashback.cli.quiet import quiet_transformers

    quiet_transformers()
    from flashback.readers.adapted import adapter_folder, load_adapted
    from flashback.training.export import check_export
    from flashback.training.export import export as write_export

    model = options.model
    if adapter_folder(model, adapter) is None:
        raise click.UsageError(f"--adapter {adapter}: none ships for {model}; give a folder")
    check_export(out)
    reader = load_adapted(model, adapter, **options.placed)
    write_export(reader, out)
    click.echo(f"{out}: {model} with {adapter} in it, {reader.placement.dtype_name}")
