"""`flashback bench pareto`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flashback.benchmark.bench_settings import ParetoSettings
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
from flashback.cli.reader_options import ReaderOptions, reader_options
from flashback.errors import SettingsError, TrainingError
from flashback.evaluation.bootstrap_settings import BootstrapSettings
from flashback.scoring.window_settings import WindowSettings
from flashback.settings import RetrievalSettings

if TYPE_CHECKING:
    from flashback.benchmark.pareto import Point

_SWEEP = ("s=4,8,16,32", "k=1,2,4")
_SWEPT = ("stride", "passages")


@click.command()
@click.argument("documents", nargs=-1, required=True)
@click.option("--index", type=Path, required=True, help="Index folder that passages come from.")
@click.option("--out", type=Path, required=True, help="Folder for scores, table and figure.")
@click.option(
    "--adapter",
    "adapters",
    type=Path,
    multiple=True,
    help="Add this adapter, with the pattern it was trained for (repeatable).",
)
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
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def pareto(
    documents: tuple[str, ...],
    index: Path,
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
    that the same command goes on where it stopped; then every arm writes on from the same
    beginnings of the documents, in turns, and is timed. Time it on an idle machine.
    """
    from flashback.cli.quiet import quiet_transformers

    quiet_transformers()
    retrieval = take(RetrievalSettings, values)
    windows, bootstrap = take(WindowSettings, values), take(BootstrapSettings, values)
    timing = take(ParetoSettings, values)
    settings = list(combinations(retrieval, sweep))
    for one in settings:
        if replace(one, stride=retrieval.stride, passages=retrieval.passages) != retrieval:
            raise click.UsageError("--sweep: expected s= and k= only; give l and m one value each")
    sources = open_sources(documents, index, retrieves=True)

    from flashback.benchmark.pareto import Speed, in_markdown, points_of, prompts_of
    from flashback.benchmark.record import measured_on
    from flashback.evaluation.adapted_readers import AdaptedReaders
    from flashback.evaluation.arms import arm_of, with_unique_names
    from flashback.evaluation.evaluate import ScoreStore
    from flashback.evaluation.evaluate import evaluate as run_evaluation
    from flashback.readers.card import read_card

    if out.exists() and not out.is_dir():
        raise click.UsageError(f"--out {out}: a file is in the way; choose another")
    cards = {folder: read_card(folder) for folder in adapters}
    readers = AdaptedReaders(options.load_plain)
    arms = with_unique_names(
        [
            *untrained_rows(readers.get(), chosen_patterns(readers.get(), []), shortened=False),
            *(arm_of(folder, card, card.pattern) for folder, card in cards.items()),
        ]
    )
    check_arms(arms, readers, windows, settings)
    out.mkdir(parents=True, exist_ok=True)
    described = {"documents": list(documents), "index": str(index)}
    judged = evaluation_sets(readers.get(), sources, settings, windows, described)
    prompts = prompts_of(judged[0].examples, timing.prompt_tokens, timing.prompts)
    if not prompts:
        raise TrainingError(
            f"no window has the {timing.prompt_tokens} tokens of a prompt; give longer documents, "
            "or lower --prompt-tokens"
        )
    store = ScoreStore(out / "scores")
    with counting("scoring windows") as start:
        tables = run_evaluation(arms, judged, readers, settings=bootstrap, store=store, start=start)
    speed = Speed(arms, options.load_plain, sources.retriever, prompts, timing.new_tokens)
    with counting("writing texts") as start:
        on_text = start(speed.texts(settings, timing.repeats))
        seconds = speed.measure(settings, timing.repeats, on_text)
    points = points_of(arms, tables, settings, seconds)
    record = {"timing": asdict(timing), **tables[0].record()["settings"]}
    record = {
        **measured_on(readers.get().placement.device),
        "settings": {name: value for name, value in record.items() if name not in _SWEPT},
        "tokens": int(tables[0].texts.tokens.sum()),
        "points": [point.record() for point in points],
    }
    _write(points, record, f"{options.model}, {record['tokens']:,} targets", out)
    click.echo(json.dumps(record, indent=2) if as_json else "\n".join(in_markdown(points)))


def _write(points: "Sequence[Point]", record: dict[str, Any], title: str, out: Path) -> None:
    from flashback.benchmark.pareto import in_markdown, plot_pareto
    from flashback.files import write_atomically

    write_atomically(out / "pareto.json", json.dumps(record, indent=2) + "\n")
    lines = [f"# {title}", "", *in_markdown(points), ""]
    write_atomically(out / "pareto.md", "\n".join(lines))
    try:
        plot_pareto(points, title, out / "pareto.png")
    except SettingsError as error:  # the figure is an extra
        notes.print(f"{out / 'pareto.png'} is not drawn: {error}", markup=False)
