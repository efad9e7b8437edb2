"""`flashback bench pareto`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flashback.benchmark.bench_settings import ParetoSettings
from flashback.cli.bench_options import json_option, print_report
from flashback.cli.console import notes
from flashback.cli.documents import counting, lookup_options, open_sources
from flashback.cli.options import options_of, take
from flashback.cli.perplexity import (
    check_arms,
    chosen_patterns,
    combinations,
    evaluation_sets,
    untrained_rows,
)
from flashback.cli.reader_options import ReaderOptions, adapters_option, reader_options
from flashback.cli.retriever_options import Source, required_source_options
from flashback.errors import SettingsError
from flashback.evaluation.bootstrap_settings import BootstrapSettings
from flashback.scoring.window_settings import WindowSettings
from flashback.settings import RetrievalSettings

if TYPE_CHECKING:
    from flashback.benchmark.pareto import Point
    from flashback.benchmark.report import Report
    from flashback.evaluation.adapted_readers import AdaptedReaders
    from flashback.evaluation.arms import Arm

_SWEEP = ("s=4,8,16,32", "k=1,2,4")


@click.command()
@click.argument("documents", nargs=-1, required=True)
@required_source_options
@click.option("--out", type=Path, required=True, help="Folder for scores, table and figure.")
@adapters_option("Add this adapter, with the pattern it was trained for (repeatable).")
@click.option(
    "--sweep",
    multiple=True,
    default=_SWEEP,
    show_default=True,
    metavar="X=A,B,..",
    help="Values of s and k (repeatable: every combination).",
)
@reader_options
@lookup_options
@options_of(WindowSettings)
@options_of(BootstrapSettings)
@options_of(ParetoSettings)
@json_option
def pareto(
    documents: tuple[str, ...],
    index: Source,
    out: Path,
    adapters: tuple[Path, ...],
    sweep: tuple[str, ...],
    options: ReaderOptions,
    as_json: bool,
    **values: Any,
) -> None:
    """Perplexity of DOCUMENTS against seconds per token.

    \b
    flashback bench pareto python-docs:evaluation --index IDX --max-windows 20 --out PARETO
    flashback bench pareto texts/ --index IDX --sweep s=8,16 --adapter ADAPTER --out PARETO

    Every pattern, stride and k. Perplexities as 'flashback eval' finds them, kept in the folder, so
    that the same command resumes where it stopped; then every arm continues the same beginnings of
    the documents, in turns, and is timed. Time it on an idle machine.
    """
    request = _Request(
        documents,
        index,
        out,
        adapters,
        _settings(replace(take(RetrievalSettings, values), pattern="append"), sweep),
        take(WindowSettings, values),
        take(BootstrapSettings, values),
        take(ParetoSettings, values),
    )
    print_report(_run(request, options), as_json=as_json)


@dataclass(frozen=True)
class _Request:
    """What the command line asks for."""

    documents: tuple[str, ...]
    index: Source
    out: Path
    adapters: tuple[Path, ...]
    settings: list[RetrievalSettings]
    """Every combination of the values swept."""
    windows: WindowSettings
    bootstrap: BootstrapSettings
    timing: ParetoSettings


def _settings(retrieval: RetrievalSettings, sweep: tuple[str, ...]) -> list[RetrievalSettings]:
    """Every combination.

    Raises:
        click.UsageError: other settings than s and k are swept.
    """
    settings = list(combinations(retrieval, sweep))
    for one in settings:
        if replace(one, stride=retrieval.stride, passages=retrieval.passages) != retrieval:
            raise click.UsageError("--sweep: expected s= and k= only; give l and m one value each")
    return settings


def _run(request: _Request, options: ReaderOptions) -> "Report":
    """Score and time every arm; write the folder."""
    sources = open_sources(request.documents, request.index, retrieves=True)

    from flashback.cli.quiet import begin_loading

    begin_loading(options.model)
    from flashback.benchmark.pareto import Speed, pareto_report, points_of, prompts_of
    from flashback.evaluation.adapted_readers import AdaptedReaders
    from flashback.evaluation.evaluate import ScoreStore
    from flashback.evaluation.evaluate import evaluate as run_evaluation

    out, settings = request.out, request.settings
    if out.exists() and not out.is_dir():
        raise click.UsageError(f"--out {out}: a file is in the way; choose another")
    readers = AdaptedReaders(options.load_plain)
    arms = _arms(request.adapters, readers)
    check_arms(arms, readers, request.windows, settings)
    out.mkdir(parents=True, exist_ok=True)
    described = {"documents": list(request.documents), "index": str(request.index)}
    sets = evaluation_sets(readers.get(), sources, settings, request.windows, described)
    prompts = prompts_of(sets[0].examples, request.timing)
    with counting("scoring windows") as start:
        store = ScoreStore(out / "scores")
        tables = run_evaluation(
            arms, sets, readers, settings=request.bootstrap, store=store, start=start
        )
    speed = Speed(arms, settings, options.load_plain, sources.retriever, prompts, request.timing)
    with counting("writing texts") as start:
        seconds = speed.measure(start(speed.steps))
    points = points_of(speed, tables, seconds)
    report = pareto_report(points, tables[0], request.timing, readers.get().placement.device)
    _write(points, report, f"{options.model}, {report.record['tokens']:,} targets", out)
    return report


def _arms(adapters: tuple[Path, ...], readers: "AdaptedReaders") -> "list[Arm]":
    """Every pattern untrained, and every adapter with the pattern it was trained for."""
    from flashback.evaluation.arms import arm_of, with_unique_names
    from flashback.readers.card import read_card

    # Before a model is loaded, or even downloaded.
    cards = {folder: read_card(folder) for folder in adapters}
    untrained = untrained_rows(readers.get(), chosen_patterns(readers.get(), []))
    adapted = (arm_of(folder, card, card.pattern) for folder, card in cards.items())
    return with_unique_names([*untrained, *adapted])


def _write(points: "Sequence[Point]", report: "Report", title: str, out: Path) -> None:
    from flashback.benchmark.pareto import plot_pareto
    from flashback.files import write_atomically

    write_atomically(out / "pareto.json", json.dumps(report.record, indent=2) + "\n")
    write_atomically(out / "pareto.md", "\n".join([f"# {title}", "", *report.notes, ""]))
    try:
        plot_pareto(points, title, out / "pareto.png")
    except SettingsError as error:  # the figure is an extra
        notes.print(f"{out / 'pareto.png'} is not drawn: {error}", markup=False)
