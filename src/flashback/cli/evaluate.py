"""`flashback eval`."""

import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flashback.cli.documents import Sources, counting, open_sources, prepare_sources
from flashback.cli.options import options_of, take
from flashback.cli.reader_options import ReaderOptions, reader_options, weights_option
from flashback.cli.tables import print_table
from flashback.cli.train import RETRIEVED
from flashback.evaluation.bootstrap_settings import BootstrapSettings
from flashback.patterns.registry import PATTERNS
from flashback.scoring.window_settings import Protocol, WindowSettings
from flashback.settings import RetrievalSettings, Weights

if TYPE_CHECKING:
    from flashback.evaluation.adapted import Readers
    from flashback.evaluation.arms import Arm
    from flashback.evaluation.evaluate import Judged
    from flashback.evaluation.perplexity import Table
    from flashback.readers.reader import Reader

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
    type=click.Choice(list(PATTERNS)),
    multiple=True,
    help="Score this pattern (repeatable; default: all that the reader can have).",
)
@click.option("--shortened", is_flag=True, help="Add the paper's baseline with shorter contexts.")
@click.option(
    "--ablation",
    is_flag=True,
    help="Add the way from append to slot step by step, sinks, gaps, passages side by side.",
)
@click.option(
    "--sweep",
    multiple=True,
    metavar="X=A,B,..",
    help="Score several values of s, l, m or k (repeatable: every combination).",
)
@reader_options
@weights_option
@options_of(RetrievalSettings, only=RETRIEVED)
@options_of(WindowSettings)
@options_of(BootstrapSettings)
@click.option("--per-document", type=Path, help="Write a JSON line per document to this file.")
@click.option("--plot", type=Path, help="Write the figure to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def evaluate(
    documents: tuple[str, ...],
    index: Path | None,
    adapters: tuple[Path, ...],
    patterns: tuple[str, ...],
    shortened: bool,
    ablation: bool,
    sweep: tuple[str, ...],
    options: ReaderOptions,
    weights: Weights,
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
    wanted = list(patterns)
    retrieves = ablation or not wanted or any(PATTERNS[pattern].retrieves for pattern in wanted)
    retrieval = replace(take(RetrievalSettings, values), pattern="append" if retrieves else "none")
    windows = take(WindowSettings, values)
    bootstrap = take(BootstrapSettings, values)
    settings = list(combinations(retrieval, sweep))
    retrieval.check_retriever(index)
    _check_files(per_document, plot)
    sources = open_sources(documents, index, retrieves=retrieves)

    from flashback.evaluation.adapted import Readers
    from flashback.evaluation.arms import adapter_arms, slot_ablation
    from flashback.evaluation.evaluate import evaluate as run_evaluation
    from flashback.readers.card import read_card
    from flashback.readers.inference import check_weights

    for adapter in adapters:  # before a model is loaded, or even downloaded
        read_card(adapter)
    check_weights(weights, options.device, options.dtype)
    readers = Readers(options.load_plain, _finish(weights))
    wanted = chosen_patterns(readers.get(), wanted)
    adapted = [arm for adapter in adapters for arm in adapter_arms(adapter, wanted)]
    arms = [*untrained_rows(readers.get(), wanted, shortened), *adapted]
    if ablation:
        _check_ablation(windows)
        arms += slot_ablation(readers.get(), max(one.passages for one in settings))
    check_arms(arms, readers, windows, settings)
    described = {
        "documents": list(documents),
        "index": None if index is None else str(index),
        "resamples": bootstrap.resamples,
    }
    judged = judge_sources(readers.get(), sources, settings, windows, described)
    with counting("scoring windows") as start:
        tables = run_evaluation(arms, judged, readers, settings=bootstrap, start=start)
    names = [_swept_name(one, sweep) for one in settings]
    try:
        _write_files(tables, names, options.model, per_document, plot)
    finally:  # what took minutes is not lost to a full disk
        print_tables(tables, names, options.model, as_json=as_json)


def _finish(weights: Weights) -> "Callable[[Reader], Reader] | None":
    """What is done to a reader before it scores: nothing, unless its weights are rounded."""
    from flashback.readers.inference import for_inference

    return None if weights is Weights.FULL else partial(for_inference, weights=weights)


def combinations(settings: RetrievalSettings, sweep: Sequence[str]) -> Iterator[RetrievalSettings]:
    choices: dict[str, list[int]] = {}
    for text in sweep:
        name, _, values = text.partition("=")
        if name not in _SWEPT or not values:
            raise click.UsageError(
                f"--sweep {text}: expected s=, l=, m= or k= and numbers, such as s=4,8,16"
            )
        if name in choices:
            raise click.UsageError(f"--sweep {text}: {name} is swept already; name it once")
        try:
            choices[name] = list(dict.fromkeys(int(value) for value in values.split(",")))
        except ValueError:
            raise click.UsageError(f"--sweep {text}: expected whole numbers") from None
    for chosen in itertools.product(*choices.values()):
        changed: dict[str, Any] = {
            _SWEPT[name]: value for name, value in zip(choices, chosen, strict=True)
        }
        yield replace(settings, **changed)


def _swept_name(settings: RetrievalSettings, sweep: Sequence[str]) -> str:
    names = [text.partition("=")[0] for text in sweep]
    return " ".join(f"{name}={getattr(settings, _SWEPT[name])}" for name in names)


def _check_files(per_document: Path | None, plot: Path | None) -> None:
    """Now, not after minutes of scoring."""
    if plot is not None:
        from flashback.evaluation.figures import check_plot

        check_plot(plot)
        _check_writable("--plot", plot)
    if per_document is not None:
        _check_writable("--per-document", per_document)


def _check_writable(flag: str, path: Path) -> None:
    folder = path.absolute().parent
    if not folder.is_dir():
        raise click.UsageError(f"{flag} {path}: no such folder as {path.parent}")
    if path.exists() and not path.is_file():  # a folder, or a device, which would be replaced
        raise click.UsageError(f"{flag} {path}: is no file, but there; expected a file's name")
    if not os.access(folder, os.W_OK):
        raise click.UsageError(f"{flag} {path}: {path.parent} is not writable")


def _check_ablation(windows: WindowSettings) -> None:
    if windows.protocol is not Protocol.WINDOWS:
        raise click.UsageError("--ablation needs --protocol windows, whose strides share a context")


def chosen_patterns(reader: "Reader", wanted: Sequence[str]) -> list[str]:
    """What was asked for, or all that the reader can have."""
    for pattern in wanted:
        reader.check_pattern(pattern)
    return list(wanted) or [name for name, pattern in PATTERNS.items() if reader.can_have(pattern)]


def untrained_rows(reader: "Reader", patterns: Sequence[str], shortened: bool) -> "list[Arm]":
    from flashback.evaluation.arms import Arm, untrained_arms, usual_frames

    arms = untrained_arms(patterns, usual_frames(reader))
    return [*arms, Arm("none", shortened=True)] if shortened else arms


def check_arms(
    arms: "Sequence[Arm]",
    readers: "Readers",
    windows: WindowSettings,
    settings: Sequence[RetrievalSettings],
) -> None:
    """Refuse adapters of other readers and windows that do not fit, before anything is read."""
    from flashback.training.run import check_positions

    readers.check(arm.adapter for arm in arms if arm.adapter is not None)
    reader = readers.get()
    frame = max(arm.frame_tokens(reader) for arm in arms)
    for one in settings:
        check_positions(reader, windows, one, frame)


def judge_sources(
    reader: "Reader",
    sources: Sources,
    settings: Sequence[RetrievalSettings],
    windows: WindowSettings,
    described: dict[str, Any],
) -> "list[Judged]":
    from flashback.evaluation.evaluate import Judged

    prepared = prepare_sources(sources, reader, settings, windows)
    return [
        Judged(
            tuple(own.examples(reader, one)),
            own.found,
            windows,
            _described(reader, one, windows, described),
        )
        for one, own in zip(settings, prepared, strict=True)
    ]


def _described(
    reader: "Reader",
    retrieval: RetrievalSettings,
    windows: WindowSettings,
    more: dict[str, Any],
) -> dict[str, Any]:
    from flashback.writing.records import versions

    return {
        "model": reader.name,
        "device": str(reader.placement.device),
        "dtype": reader.placement.dtype_name,
        "weights": str(reader.placement.weights),
        **more,
        "stride": retrieval.stride,
        "query_tokens": retrieval.query_tokens,
        "passage_tokens": retrieval.passage_tokens,
        "passages": retrieval.passages,
        "lookahead": retrieval.lookahead,
        "min_score": retrieval.min_score,
        "forbid_titles": list(retrieval.forbid_titles),
        "forbid_documents": list(retrieval.forbid_documents),
        "window_tokens": windows.window_tokens,
        "first_boundary": windows.first_boundary,
        "protocol": str(windows.protocol),
        "max_windows": windows.max_windows,
        "window_seed": windows.seed,
        "versions": versions(),
    }


def _write_files(
    tables: "Sequence[Table]",
    names: Sequence[str],
    model: str,
    per_document: Path | None,
    plot: Path | None,
) -> None:
    from flashback.evaluation.report import plot_sweep, plot_table, write_documents

    if per_document is not None:
        write_documents(tables, per_document)
    if plot is not None and len(tables) > 1:
        plot_sweep(tables, names, title_of(model, tables[0]), plot)
    elif plot is not None:
        plot_table(tables[0], title_of(model, tables[0]), plot)


def title_of(model: str, table: "Table") -> str:
    """What a figure is of."""
    return f"{model}, {int(table.texts.tokens.sum()):,} targets"


def print_tables(
    tables: "Sequence[Table]", names: Sequence[str], model: str, *, as_json: bool
) -> None:
    """Tables on the terminal, a name above each, or as JSON."""
    records = [table.record() for table in tables]
    if as_json:
        click.echo(json.dumps({"tables": records} if names[0] else records[0], indent=2))
        return
    for name, record in zip(names, records, strict=True):
        print_table(record, f"{model} {name}".strip())
