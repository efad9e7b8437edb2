"""`flashback eval`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flashback.cli.audit_option import audit_option
from flashback.cli.documents import counting, lookup_options, open_sources
from flashback.cli.options import Names, options_of, take
from flashback.cli.perplexity import (
    check_arms,
    chosen_patterns,
    combinations,
    evaluation_sets,
    print_tables,
    swept_name,
    title_of,
    untrained_rows,
    with_controls,
)
from flashback.cli.reader_options import (
    ReaderOptions,
    adapters_option,
    reader_options,
    weights_option,
)
from flashback.cli.retriever_options import Source, source_options
from flashback.errors import SettingsError
from flashback.evaluation.bootstrap_settings import BootstrapSettings
from flashback.patterns.registry import PATTERNS
from flashback.readers.weight_settings import Weights
from flashback.retrieval.guard import GuardSettings
from flashback.scoring.control_kind import Control
from flashback.scoring.window_settings import WindowSettings
from flashback.settings import RetrievalSettings

if TYPE_CHECKING:
    from flashback.evaluation.adapted_readers import AdaptedReaders
    from flashback.evaluation.arms import Arm
    from flashback.evaluation.perplexity import Table
    from flashback.readers.reader import Reader


@dataclass(frozen=True)
class _Request:
    """The command's options, and the settings made of them."""

    settings: tuple[RetrievalSettings, ...]
    """One for each combination of the sweep."""
    windows: WindowSettings
    bootstrap: BootstrapSettings
    guard: GuardSettings
    documents: tuple[str, ...]
    index: Source | None
    adapters: tuple[Path, ...]
    patterns: tuple[str, ...]
    shortened: bool
    slot_block: int
    controls: tuple[Control, ...]
    sweep: tuple[str, ...]
    options: ReaderOptions
    weights: Weights
    scores: Path | None
    per_document: Path | None
    plot: Path | None
    audit: bool
    as_json: bool

    @property
    def retrieves(self) -> bool:
        """Whether any of the patterns has passages."""
        return self.settings[0].retrieves

    @property
    def names(self) -> list[str]:
        """Of the tables."""
        return [swept_name(one, self.sweep) for one in self.settings]

    @property
    def described(self) -> dict[str, Any]:
        """What the tables record besides settings."""
        return {
            "documents": list(self.documents),
            "index": None if self.index is None else str(self.index),
            "resamples": self.bootstrap.resamples,
        }


class _Evaluations(click.Group):
    """A group whose command `perplexity` needs no name: that is what the group once was."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the name in, where there is neither a name nor a plea for help."""
        if args and args[0] not in {*self.commands, *ctx.help_option_names}:
            args = ["perplexity", *args]
        return super().parse_args(ctx, args)


@click.group(
    "eval", cls=_Evaluations, short_help="Perplexity, answers to questions, what is found."
)
def evaluate() -> None:
    """Compare the context patterns, and indexes.

    \b
    flashback eval perplexity texts/ --index IDX     perplexity of texts
    flashback eval qa FILE --index IDX               answers to questions
    flashback eval swap --model MODEL                what stays of a passage that was exchanged
    flashback eval retrieval QRELS --queries FILE --index IDX    what is found

    Without a command, perplexity is meant: 'flashback eval texts/ --index IDX'.
    """


@evaluate.command(short_help="Perplexity of the context patterns.")
@click.argument("documents", nargs=-1, required=True)
@source_options
@adapters_option("Score this adapter, too (repeatable).")
@click.option(
    "--pattern",
    "patterns",
    type=Names(lambda: list(PATTERNS)),
    multiple=True,
    help="Score this pattern (repeatable; default: all that the reader can have).",
)
@click.option("--shortened", is_flag=True, help="Add the paper's baseline with shorter contexts.")
@click.option(
    "--slot-block",
    type=click.IntRange(1, 1 << 12),
    default=1,
    help="Add a row: an untrained slot made of blocks of so many tokens, as one in vLLM is.",
)
@click.option(
    "--control",
    "controls",
    type=click.Choice([str(one) for one in Control]),
    multiple=True,
    help="Add rows with other passages (repeatable). random: those of another document. oracle: "
    "what is found for the tokens to come.",
)
@click.option(
    "--sweep",
    multiple=True,
    metavar="X=A,B,..",
    help="Score several values of s, l, m, k or q, the query form (repeatable: all of them).",
)
@reader_options
@weights_option
@lookup_options
@options_of(GuardSettings)
@options_of(WindowSettings)
@options_of(BootstrapSettings)
@audit_option
@click.option(
    "--scores",
    type=Path,
    help="Keep what is scored in this folder: the same command goes on after an interruption.",
)
@click.option("--per-document", type=Path, help="Write a JSON line per document to this file.")
@click.option("--plot", type=Path, help="Write the figure to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def perplexity(**values: Any) -> None:
    """Score DOCUMENTS (corpora, as 'flashback index' takes them) with every pattern.

    \b
    flashback eval perplexity python-docs:evaluation --index IDX --adapter ADAPTER
    flashback eval perplexity texts/ --index IDX --sweep s=4,8,16,32 --sweep k=1,2 --plot sweep.png
    flashback eval perplexity texts/ --index IDX --protocol sliding --window-tokens 1024 --stride 4

    All rows have the same targets and share what was retrieved. Passages of a document's own, of
    its title, and copies of it are never used.
    """
    request = _parse(values)
    tables = _score(request)
    try:
        _write_files(tables, request)
    finally:  # what took minutes is not lost to a full disk
        print_tables(tables, request.names, request.options.model, as_json=request.as_json)


def _parse(values: dict[str, Any]) -> _Request:
    """Check all that can be checked before documents are read and a model is loaded."""
    wanted = values["patterns"] or ("append",)  # without one, all are scored: some retrieve
    retrieving = (name for name in wanted if PATTERNS[name].retrieves)
    retrieval = replace(take(RetrievalSettings, values), pattern=next(retrieving, "none"))
    windows, bootstrap = take(WindowSettings, values), take(BootstrapSettings, values)
    values["controls"] = tuple(map(Control, dict.fromkeys(values["controls"])))
    settings, guard = tuple(combinations(retrieval, values["sweep"])), take(GuardSettings, values)
    retrieval.check_retriever(values["index"])
    if values["controls"] and not retrieval.retrieves:
        raise click.UsageError("--control: no pattern with passages is scored; add one")
    _check_files(values["scores"], values["per_document"], values["plot"])
    return _Request(settings, windows, bootstrap, guard, **values)


def _score(request: _Request) -> "list[Table]":
    sources = open_sources(
        request.documents, request.index, request.guard, retrieves=request.retrieves
    )

    from flashback.cli.quiet import begin_loading

    begin_loading(request.options.model)
    from flashback.evaluation.adapted_readers import AdaptedReaders
    from flashback.evaluation.evaluate import ScoreStore
    from flashback.evaluation.evaluate import evaluate as run_evaluation
    from flashback.readers.card import read_card
    from flashback.readers.inference import check_weights

    for adapter in request.adapters:  # before a model is loaded, or even downloaded
        read_card(adapter)
    check_weights(request.weights, request.options.device, request.options.dtype)
    readers = AdaptedReaders(request.options.load_plain, _finish(request.weights))
    arms = _arms(request, readers)
    settings, windows = request.settings, request.windows
    check_arms(arms, readers, windows, settings)
    sets = evaluation_sets(
        readers.get(),
        sources,
        settings,
        windows,
        request.described,
        audited=request.audit,
        controls=request.controls,
    )
    store = None if request.scores is None else ScoreStore(request.scores)
    with counting("scoring windows") as start:
        return run_evaluation(
            arms, sets, readers, settings=request.bootstrap, store=store, start=start
        )


def _arms(request: _Request, readers: "AdaptedReaders") -> "list[Arm]":
    from flashback.evaluation.arms import adapter_arms

    patterns = chosen_patterns(readers.get(), request.patterns)
    if request.slot_block > 1 and not any(PATTERNS[name].isolated for name in patterns):
        raise click.UsageError("--slot-block: no slot is scored; add --pattern slot")
    adapted = [arm for adapter in request.adapters for arm in adapter_arms(adapter, patterns)]
    shortened, block = request.shortened, request.slot_block
    untrained = untrained_rows(readers.get(), patterns, shortened=shortened, block=block)
    return with_controls([*untrained, *adapted], request.controls)


def _finish(weights: Weights) -> "Callable[[Reader], Reader] | None":
    """What lays a reader's weights out before it scores; None: they stay as they are."""
    from flashback.readers.inference import for_inference

    return None if weights is Weights.FULL else partial(for_inference, weights=weights)


def _check_files(scores: Path | None, per_document: Path | None, plot: Path | None) -> None:
    """Refuse files that cannot be written, before minutes of scoring."""
    from flashback.evaluation.figures import check_plot, check_writable

    if scores is not None:
        _make_folder("--scores", scores)
    if plot is not None:
        check_plot(plot)
    if per_document is not None:
        check_writable("--per-document", per_document)


def _make_folder(flag: str, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"{flag}={str(folder)!r}: {error.strerror}; expected the name of a folder"
        ) from error


def _write_files(tables: "Sequence[Table]", request: _Request) -> None:
    from flashback.evaluation.report import plot_sweep, plot_table, write_documents

    title = title_of(request.options.model, tables[0])
    if request.per_document is not None:
        write_documents(tables, request.per_document)
    if request.plot is not None and len(tables) > 1:
        plot_sweep(tables, request.names, title, request.plot)
    elif request.plot is not None:
        plot_table(tables[0], title, request.plot)
