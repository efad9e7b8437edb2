"""`flashback eval swap`."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flashback.cli.answers_file import answers_in
from flashback.cli.documents import counting
from flashback.cli.options import Names, options_of, take
from flashback.cli.perplexity import chosen_patterns
from flashback.cli.reader_options import ReaderOptions, reader_options, weights_option
from flashback.cli.swap_table import print_swaps
from flashback.errors import PromptsError
from flashback.evaluation.bootstrap_settings import BootstrapSettings
from flashback.patterns.registry import PATTERNS
from flashback.questions.swap_cases import CaseFile, read_cases
from flashback.questions.swap_settings import EXCHANGES, USUAL_EXCHANGES, Exchange, SwapSettings
from flashback.readers.weight_settings import Weights
from flashback.settings import RetrievalSettings, Settings, StoppingSettings

if TYPE_CHECKING:
    from flashback.questions.swap_prompts import Asker
    from flashback.questions.swap_run import Swaps
    from flashback.questions.swap_settings import SwapForm
    from flashback.readers.reader import Reader
    from flashback.writing.generator import Generator


@dataclass(frozen=True)
class _Request:
    """The command's options, and the settings made of them."""

    file: CaseFile
    swap: SwapSettings
    retrieval: RetrievalSettings
    bootstrap: BootstrapSettings
    filler: str
    exchanges: tuple[str, ...]
    patterns: tuple[str, ...]
    options: ReaderOptions
    weights: Weights
    out: Path | None


@click.command(short_help="What stays of a passage that was exchanged.")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option(
    "--exchange",
    "exchanges",
    type=click.Choice(EXCHANGES),
    multiple=True,
    help="Exchange these passages, old-new (repeatable; default: all but counterfactual-gold).",
)
@click.option(
    "--pattern",
    "patterns",
    type=Names(lambda: list(PATTERNS)),
    multiple=True,
    help="Ask with this pattern beside prepend (repeatable; default: all that the reader has).",
)
@options_of(SwapSettings)
@click.option(
    "--filler",
    type=click.Path(path_type=Path),
    help="The text between the passages (default: some pages about a walk).",
)
@options_of(RetrievalSettings, only=("passage_tokens",))
@reader_options
@weights_option
@options_of(BootstrapSettings)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write every answer to this file, as JSON lines; an interrupted file is resumed.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the tables as JSON.")
def swap(as_json: bool, **values: Any) -> None:
    """Exchange a passage within a text, ask what it says, and count how often the old one answers.

    \b
    flashback eval swap --model MODEL --limit 40
    flashback eval swap --model MODEL --form text --distance 32,128,512 --recompute-tokens 1,64,all
    flashback eval swap CASES.jsonl --model MODEL --asked before --out ANSWERS.jsonl

    Without FILE, 200 made-up lookups and 200 two-step questions are asked. FILE: JSON lines with
    "question", three passages ("gold", "counterfactual", "unrelated"), "gold_answer" and
    "counterfactual_answer" (a text, or a list whose first is scored), and if wanted "kind", "id"
    and "filler" (the text between).

    A text begins with one passage in view and goes on for some tokens; then the passage is
    exchanged for another one. In a slot, what was computed with the old one is kept, but for the
    last e tokens; other patterns keep nothing of it.
    """
    record = _swapped(_parse(values))
    if as_json:
        click.echo(json.dumps(record, indent=2, ensure_ascii=False))
    else:
        print_swaps(record)


def _parse(values: dict[str, Any]) -> _Request:
    """Check all that can be checked before a model is loaded."""
    from flashback.cli.quiet import begin_loading
    from flashback.evaluation.figures import check_writable
    from flashback.questions.swap_made import made_cases

    swap, bootstrap = take(SwapSettings, values), take(BootstrapSettings, values)
    _ = swap.distances, swap.recomputed
    retrieval = replace(take(RetrievalSettings, values), pattern="none", stride=swap.max_new_tokens)
    filler = _filler(values.pop("filler"))
    if values["out"] is not None:
        check_writable("--out", values["out"])
    path = values.pop("file")
    file = made_cases(swap.seed) if path is None else read_cases(path)
    values["exchanges"] = tuple(dict.fromkeys(values["exchanges"] or USUAL_EXCHANGES))
    begin_loading(values["options"].model)
    return _Request(file, swap, retrieval, bootstrap, filler, **values)


def _filler(path: Path | None) -> str:
    """The text between passages.

    Raises:
        PromptsError: the file is missing, no text, or empty.
    """
    from flashback.questions.swap_made import filler_text

    if path is None:
        return filler_text()
    if not path.is_file():
        raise PromptsError(f"--filler={str(path)!r}: no such file; expected a text")
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptsError(f"--filler={str(path)!r}: not UTF-8 at byte {error.start + 1}") from None
    if not text.strip():
        raise PromptsError(f"--filler={str(path)!r}: found no text; expected some sentences")
    return text


def _swapped(request: _Request) -> dict[str, Any]:
    """The tables as plain data."""
    from flashback.engines.local import LocalEngine
    from flashback.questions.swap_run import Swaps
    from flashback.questions.swap_table import SwapTable
    from flashback.readers.fingerprint import computation_of
    from flashback.readers.inference import check_weights, for_inference
    from flashback.retrieval.protocol import NoRetriever
    from flashback.writing.generator import Generator

    check_weights(request.weights, request.options.device, request.options.dtype)
    reader = for_inference(request.options.load_plain(), weights=request.weights)
    writer = Generator(reader, LocalEngine(reader.model, reader.window), NoRetriever())
    askers, form = _askers(request, writer, reader)
    exchanges = tuple(map(Exchange.named, request.exchanges))
    swap = request.swap
    cases = request.file.first(swap.limit)
    swaps = Swaps(tuple(askers), cases, exchanges, swap.distances, writer)
    swaps.check()
    described = _described(request, swaps, reader, form)
    run = {name: one for name, one in described.items() if name not in ("resamples", "file")}
    run |= {"sha256": request.file.sha256, "computation": computation_of(reader.model)}
    with answers_in(request.out, run) as answers, counting("answering") as start:
        records = swaps.run(answers, start)
    return SwapTable(records, request.bootstrap.resamples, described).record()


def _askers(
    request: _Request, writer: "Generator", reader: "Reader"
) -> "tuple[list[Asker], SwapForm]":
    from flashback.questions.swap_prompts import Asker, settled_swap_form, swap_rows
    from flashback.questions.swap_settings import SwapForm

    swap = request.swap
    form = settled_swap_form(swap.form, reader)
    patterns = chosen_patterns(reader, request.patterns)
    stop = () if form is SwapForm.CHAT else ("\n",)
    stopping = StoppingSettings(max_new_tokens=swap.max_new_tokens, stop=stop)
    settings = Settings(retrieval=request.retrieval, stopping=stopping)
    return [
        Asker(row, writer, form, swap.asked, settings, request.filler, swap.seed)
        for row in swap_rows(patterns, swap.recomputed, form)
    ], form


def _described(
    request: _Request, swaps: "Swaps", reader: "Reader", form: "SwapForm"
) -> dict[str, Any]:
    """What the tables record besides figures."""
    import hashlib

    from flashback.version import versions

    swap = request.swap
    return {
        "file": {"name": request.file.name, "sha256": request.file.sha256},
        "cases": len(swaps.cases),
        "seed": swap.seed,
        "form": str(form),
        "asked": str(swap.asked),
        "distances": list(swap.distances),
        "exchanges": list(request.exchanges),
        "rows": [asker.row.name for asker in swaps.askers],
        "filler": hashlib.sha256(request.filler.encode()).hexdigest(),
        "model": reader.name,
        "device": str(reader.placement.device),
        "dtype": reader.placement.dtype_name,
        "weights": str(reader.placement.weights),
        "window": reader.window,
        "passage_tokens": request.retrieval.passage_tokens,
        "max_new_tokens": swap.max_new_tokens,
        "resamples": request.bootstrap.resamples,
        "versions": versions(),
    }
