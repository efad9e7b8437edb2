"""`flashback train` and `flashback export`."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flashback.cli.console import is_main_process, notes, training_progress
from flashback.cli.documents import (
    Sources,
    counting,
    lookup_options,
    open_sources,
    read_and_retrieve,
)
from flashback.cli.options import options_of, take
from flashback.cli.patterns import check_echo, check_frame_before, trained_pattern_option
from flashback.cli.reader_options import ReaderOptions, model_options, reader_options
from flashback.cli.retriever_options import Source, source_options
from flashback.declared import AUTO
from flashback.patterns.registry import PATTERNS
from flashback.questions.formats import QuestionFile, read_questions
from flashback.questions.question_settings import QuestionSettings
from flashback.retrieval.guard import GuardSettings, LimitedRetriever
from flashback.retrieval.specs import open_source
from flashback.scoring.window_settings import WindowSettings
from flashback.settings import RetrievalSettings
from flashback.training.training_settings import TrainingSettings

if TYPE_CHECKING:
    from flashback.evaluation.evaluate import EvaluationSet
    from flashback.readers.card import AdapterCard
    from flashback.readers.reader import Reader
    from flashback.retrieval.protocol import Retriever
    from flashback.scoring.examples import Example


@dataclass(frozen=True)
class _Request:
    """The command's options, and the settings made of them."""

    settings: TrainingSettings
    retrieval: RetrievalSettings
    windows: WindowSettings
    guard: GuardSettings
    documents: tuple[str, ...]
    questions: QuestionFile | None
    asking: QuestionSettings
    index: Source | None
    out: Path
    held_out: tuple[str, ...]
    held_out_windows: int
    options: ReaderOptions
    bfloat16: bool
    log_to: tuple[str, ...]
    as_json: bool

    def open(self, names: tuple[str, ...]) -> Sources:
        """Documents by their names, and the index."""
        return open_sources(names, self.index, self.guard, retrieves=self.retrieval.retrieves)

    @property
    def data(self) -> dict[str, Any]:
        """What the adapter records of its documents."""
        index = None if self.index is None else str(self.index)
        return {"documents": list(self.documents), "index": index}


@click.command(short_help="Train an adapter that reads passages.")
@click.argument("documents", nargs=-1)
@source_options
@click.option(
    "--questions",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Train on the right answers of this file, as 'flashback eval qa' takes it, beside "
    "documents or instead of them.",
)
@options_of(QuestionSettings, only=("form", "examples", "oracle"))
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
@lookup_options
@options_of(GuardSettings)
@options_of(WindowSettings, only=("window_tokens", "first_boundary", "max_windows"))
@click.option("--bfloat16", is_flag=True, help="Compute in bfloat16 where that is safe.")
@click.option(
    "--log-to", multiple=True, metavar="NAME", help="tensorboard, wandb or trackio (repeatable)."
)
@click.option("--json", "as_json", is_flag=True, help="Print the adapter's card as JSON.")
def train(**values: Any) -> None:
    """Train LoRA and the marking tokens on DOCUMENTS (corpora, as 'flashback index' takes them).

    \b
    flashback train python-docs:adapter --index IDX --out ADAPTER
    flashback train texts/ --model facebook/opt-125m --index IDX --out ADAPTER --bfloat16
    flashback train --questions dev-v1.1.json --oracle --model MODEL --out ADAPTER
    flashback train texts/ --pattern none --out BASELINE

    The same command continues an interrupted one. On several GPUs:
    torchrun --nproc-per-node 4 -m flashback train ...
    """
    request = _parse(values)
    documents = request.open(request.documents) if request.documents else None
    retriever = _searched_for_questions(request)
    held_out = request.open(request.held_out) if request.held_out else None
    card, scored = _train(request, documents, retriever, held_out)
    if not is_main_process():
        return
    if scored is not None:
        card = _finish(request, card, scored)
    _report(request, card)


def _parse(values: dict[str, Any]) -> _Request:
    """Check all that can be checked before documents are read and a model is loaded."""
    if not values["documents"] and values["questions"] is None:
        raise click.UsageError("expected DOCUMENTS or --questions FILE, found neither")
    settings, asking = take(TrainingSettings, values), take(QuestionSettings, values)
    if values["questions"] is None and asking != QuestionSettings():
        raise click.UsageError("--form, --examples and --oracle are for --questions; give a FILE")
    retrieval = take(RetrievalSettings, values, pattern=values.pop("pattern"))
    windows = take(WindowSettings, values)
    path = values.pop("questions")
    questions = None if path is None else read_questions(path)
    guard = take(GuardSettings, values)
    request = _Request(
        settings, retrieval, windows, guard, questions=questions, asking=asking, **values
    )
    if request.documents or request.index is not None or not asking.oracle:
        retrieval.check_retriever(request.index)
    if "-" in request.documents and "-" in request.held_out:
        raise click.UsageError("standard input can be read only once: to train on, or to score")
    from flashback.cli.quiet import begin_loading

    begin_loading(request.options.model)
    from flashback.training.arguments import loggers
    from flashback.training.run import check_output

    check_echo(settings.echo_tokens, retrieval.pattern)
    check_frame_before(settings.frame_before, retrieval.pattern)
    check_output(request.out)
    loggers(request.log_to)
    return request


def _searched_for_questions(request: _Request) -> "Retriever | None":
    """What questions are looked up in; None: nothing, or their own passages are shown.

    Raises:
        click.UsageError: both are asked for, but questions do not name passages.
    """
    file = request.questions
    if file is None or request.index is None or not request.retrieval.retrieves:
        return None
    searched = bool(request.documents or request.held_out or file.names_passages)
    if request.asking.oracle and not searched:
        raise click.UsageError(
            "expected --index IDX or --oracle, found both, and no question that names its passages"
        )
    return LimitedRetriever(open_source(request.index), request.guard)


def _train(
    request: _Request,
    documents: Sources | None,
    retriever: "Retriever | None",
    held_out: Sources | None,
) -> "tuple[AdapterCard, EvaluationSet | None]":
    """Train; the adapter's card, and the held-out windows, if there are any."""
    from flashback.scoring.windows import check_positions
    from flashback.training.run import Run
    from flashback.training.train import train as run_training

    reader = request.options.load_plain()
    request = replace(request, settings=_framed(request, reader))
    settings, retrieval, windows = request.settings, request.retrieval, request.windows
    reader.check_pattern(retrieval.pattern)
    examples = []
    if documents is not None:
        check_positions(reader, windows, retrieval, reader.frame_tokens(settings))
        found = read_and_retrieve(documents, reader, [retrieval], windows)[0]
        examples += found.examples(reader, retrieval)
    asked, described = _asked_examples(request, retriever, reader)
    examples += asked
    if documents is None:
        longest = max(len(example.window.ids) for example in examples)
        windows = replace(windows, window_tokens=longest)
    run = Run(settings, retrieval, windows, request.data | described)
    scored = None if held_out is None else _held_out_set(request, held_out, reader)
    if notes.is_terminal:
        line = f"{len(examples):,} windows of {request.options.model}, {reader.placement}"
        notes.print(line, style="dim", markup=False)
    with training_progress() as on_step:
        card = run_training(
            reader,
            examples,
            run,
            request.out,
            held_out=() if scored is None else scored.examples,
            log_to=request.log_to,
            on_step=on_step,
            bfloat16=request.bfloat16,
            close=scored is None,
        )
    return card, scored


def _framed(request: _Request, reader: "Reader") -> TrainingSettings:
    """The settings with the text in front of passages that suits what is trained on.

    An appended passage would else stand in the assistant's turn, which has hardly begun.
    """
    from flashback.questions.forms import settled_form
    from flashback.questions.question_settings import Form
    from flashback.readers.chat import turn_behind

    settings, file = request.settings, request.questions
    if settings.frame_before != AUTO:
        return settings
    before = ""
    if file is not None and not request.documents and PATTERNS[request.retrieval.pattern].echoes:
        form = settled_form(request.asking.form, reader, file.questions)
        before = turn_behind(reader)[0] if form is Form.CHAT else ""
    return replace(settings, frame_before=before)


def _asked_examples(
    request: _Request, retriever: "Retriever | None", reader: "Reader"
) -> "tuple[list[Example], dict[str, Any]]":
    """The right answers to the questions, behind their passages; and what the card says of them."""
    from flashback.questions.examples import training_examples
    from flashback.questions.forms import settled_asking
    from flashback.questions.passages import Asked, look_up

    file, own, retrieval = request.questions, request.asking, request.retrieval
    if file is None:
        return [], {}
    questions = file.sample(request.windows.max_windows, request.windows.seed)
    asking = settled_asking(own, file, questions, reader)
    if retrieval.retrieves:
        named = own.oracle and file.names_passages
        searched = retriever if named or not own.oracle else None
        asked = look_up(questions, searched, reader, retrieval, own=named)
    else:
        asked = [Asked(one, (), "") for one in questions]
    frame_tokens = reader.frame_tokens(request.settings)
    described = {"questions": file.name, "sha256": file.sha256, "oracle": own.oracle}
    examples = training_examples(asked, asking, reader, retrieval, frame_tokens)
    return examples, described | {"form": str(asking.form)}


def _held_out_set(request: _Request, sources: Sources, reader: "Reader") -> "EvaluationSet":
    from flashback.evaluation.evaluate import EvaluationSet

    windows = replace(request.windows, max_windows=request.held_out_windows)
    found = read_and_retrieve(sources, reader, [request.retrieval], windows)[0]
    described = {"documents": list(request.held_out), "windows": windows.max_windows}
    examples = tuple(found.examples(reader, request.retrieval))
    reported = {"failed_lookups": sources.failures}
    return EvaluationSet(examples, found.found, windows, described, reported)


def _finish(request: _Request, card: "AdapterCard", held_out: "EvaluationSet") -> "AdapterCard":
    """Score the held-out windows and record the table; the adapter's card with it."""
    from flashback.training.model_card import record_table
    from flashback.training.run import close_run

    table = _measured(request.out, card, held_out, request.options.load_plain)
    card = record_table(request.out, table)
    close_run(request.out)
    return card


def _measured(
    out: Path, card: "AdapterCard", held_out: "EvaluationSet", load: "Callable[[], Reader]"
) -> dict[str, Any]:
    """The table of the reader without and with its new adapter on the held-out windows."""
    from flashback.evaluation.adapted_readers import AdaptedReaders
    from flashback.evaluation.arms import adapter_arms, untrained_arms, usual_frames
    from flashback.evaluation.evaluate import evaluate

    readers = AdaptedReaders(load)
    patterns = list(dict.fromkeys(["none", card.pattern]))
    arms = untrained_arms(patterns, usual_frames(readers.get()))
    arms += adapter_arms(out, [card.pattern])
    with counting("scoring held-out windows") as start:
        return evaluate(arms, [held_out], readers, start=start)[0].record()


def _report(request: _Request, card: "AdapterCard") -> None:
    from flashback.readers.card import card_record

    if request.as_json:
        click.echo(card_record(card), nl=False)
    else:
        click.echo(
            f"{request.out}: trained; mean loss of all steps {card.results['training_loss']:.3f} "
            "nats per target"
        )


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
    from flashback.cli.quiet import begin_loading

    begin_loading(options.model)
    from flashback.readers.adapted import adapter_folder, load_adapted
    from flashback.training.export import check_export
    from flashback.training.export import export as write_export

    model = options.model
    folder = adapter_folder(model, adapter)
    if folder is None:
        raise click.UsageError(f"--adapter {adapter}: none ships for {model}; give a folder")
    check_export(out)
    reader = load_adapted(model, folder, **options.placed)
    write_export(reader, out)
    click.echo(f"{out}: {model} with {adapter} in it, {reader.placement.dtype_name}")
