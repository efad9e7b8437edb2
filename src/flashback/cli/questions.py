"""`flashback eval qa`."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flashback.cli.answers_file import answers_in
from flashback.cli.answers_table import print_answers
from flashback.cli.audit_option import audit_option, audit_record, shown_for
from flashback.cli.documents import counting
from flashback.cli.engine_options import EngineOptions, engine_options
from flashback.cli.frame_options import FrameOptions, frame_options
from flashback.cli.options import Names, options_of, take
from flashback.cli.patterns import check_echo
from flashback.cli.perplexity import chosen_patterns
from flashback.cli.question_readers import placement_record, reader_elsewhere, readers_here
from flashback.cli.reader_options import (
    ReaderOptions,
    adapters_option,
    reader_options,
    weights_option,
)
from flashback.cli.retriever_options import Source, source_options
from flashback.errors import FlashBackWarning, SettingsError
from flashback.evaluation.bootstrap_settings import BootstrapSettings
from flashback.patterns.registry import PATTERNS
from flashback.questions.formats import QuestionFile, read_questions
from flashback.questions.question_settings import Form, QuestionSettings
from flashback.readers.weight_settings import Weights
from flashback.retrieval.guard import GuardSettings, LimitedRetriever
from flashback.retrieval.protocol import failures_of, identity_of
from flashback.retrieval.specs import open_source
from flashback.settings import FrameText, QueryForm, RetrievalSettings, Settings, StoppingSettings

if TYPE_CHECKING:
    from flashback.questions.answers import OpenWriter
    from flashback.questions.run import Comparison
    from flashback.readers.text_reader import TextReader
    from flashback.retrieval.protocol import Retriever

_lookup_options = options_of(
    RetrievalSettings,
    only=(
        "query_form",
        "passage_tokens",
        "passages",
        "min_score",
        "min_relative_score",
        "forbid_titles",
        "forbid_documents",
    ),
)


@dataclass(frozen=True)
class _Request:
    """The command's options, and the settings made of them."""

    file: QuestionFile
    questions: QuestionSettings
    retrieval: RetrievalSettings
    bootstrap: BootstrapSettings
    guard: GuardSettings
    frame: FrameText | None
    index: Source | None
    adapters: tuple[Path, ...]
    patterns: tuple[str, ...]
    options: ReaderOptions
    engine: EngineOptions
    weights: Weights
    out: Path | None
    audit: bool

    def open_retriever(self) -> "Retriever | None":
        """What is searched; None: questions have their own passages."""
        if self.index is None:
            return None
        return LimitedRetriever(open_source(self.index), self.guard)


@click.command(short_help="Answers to questions, compared with plain RAG.")
@click.argument("file", type=click.Path(path_type=Path))
@source_options
@adapters_option("Ask with this adapter, too (repeatable).")
@click.option(
    "--pattern",
    "patterns",
    type=Names(lambda: list(PATTERNS)),
    multiple=True,
    help="Ask with this pattern (repeatable; default: all that the reader can have).",
)
@options_of(QuestionSettings)
@reader_options
@engine_options
@weights_option
@_lookup_options
@options_of(GuardSettings)
@frame_options
@options_of(BootstrapSettings)
@audit_option
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write every answer to this file, as JSON lines; an interrupted file is resumed.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def qa(as_json: bool, **values: Any) -> None:
    """Let the reader answer the questions of FILE with every pattern, and with plain RAG.

    \b
    flashback eval qa questions.jsonl --index IDX --model MODEL --limit 200
    flashback eval qa dev-v1.1.json --oracle --model MODEL --passage-tokens 256
    flashback eval qa nq-open.jsonl --index IDX --form few-shot --passages 3 --out ANSWERS.jsonl

    FILE: JSON lines with "question", "answers" or "answer", and if wanted "id", "passage" (for
    --oracle) and "completion" (a text that the answer continues); NQ-open's lines; SQuAD's JSON.
    "messages" in place of the question is a conversation that ends with it; it is asked in a chat,
    and its turns are sent one after the other, which says what each row must prefill. "passages"
    are ids of documents (for --oracle with --index), "support" the sentences that an answer rests
    on. Questions without an answer are left out.

    Answers are greedy. Exact match and F1 are SQuAD's. Substring: a right answer stands, in whole
    words, in what was written. -log p is that of the first right answer behind the same prompt.
    Each question is searched for once, and all rows get the same passages; plain RAG pastes them
    into the prompt. Rows without an adapter have the frame that is printed below the table, rows
    with one the frame that it was trained with.
    """
    record = _answered(_parse(values))
    if as_json:
        click.echo(json.dumps(record, indent=2, ensure_ascii=False))
    else:
        print_answers(record)


def _parse(values: dict[str, Any]) -> _Request:
    """Check all that can be checked before a model is loaded."""
    from flashback.cli.quiet import begin_loading
    from flashback.evaluation.figures import check_writable
    from flashback.questions.metrics import check_metrics

    frame: FrameOptions = values.pop("frame")
    echo = frame.echo_tokens
    retrieval = replace(take(RetrievalSettings, values), pattern="none")
    questions, bootstrap = take(QuestionSettings, values), take(BootstrapSettings, values)
    if values["index"] is None and not questions.oracle:
        raise click.UsageError("expected --index IDX or --oracle, found neither")
    if echo and values["patterns"]:
        echoes = (name for name in values["patterns"] if PATTERNS[name].echoes)
        check_echo(echo, next(echoes, values["patterns"][0]))
    if values["out"] is not None:
        check_writable("--out", values["out"])
    begin_loading(values["options"].model)
    check_metrics()
    file = read_questions(values.pop("file"))
    if values["index"] is not None and questions.oracle and not file.names_passages:
        raise click.UsageError(
            "expected --index IDX or --oracle, found both, and no question that names its passages"
        )
    guard = take(GuardSettings, values)
    return _Request(file, questions, retrieval, bootstrap, guard, frame.text, **values)


def _answered(request: _Request) -> dict[str, Any]:
    """The table as plain data."""
    index = request.open_retriever()

    from flashback.questions.table import AnswerTable

    for adapter in request.adapters:  # before a model is loaded, or even downloaded
        _warn_if_untrained(adapter, request)
    how = request.weights, request.adapters
    if request.engine.is_local:
        readers, open_writer = readers_here(request.options, *how)
    else:
        readers, open_writer = reader_elsewhere(request.options, request.engine, *how)
    comparison = _comparison(request, readers.get(), open_writer, index)
    retrievals = _retrievals(request, comparison)
    rows = _described_rows(comparison, readers.get(), retrievals)
    described = _described(request, comparison, readers.get())
    run = _run_record(request, readers.get(), index, described) | {"rows": rows}
    with answers_in(request.out, run) as answers, counting("answering") as start:
        records = comparison.run(readers, open_writer, answers, retrievals, start)
    resamples = request.bootstrap.resamples
    audited = request.audit and index is not None
    return AnswerTable(rows, records, comparison.asked, resamples, described).record() | {
        "failed_lookups": failures_of(index),
        "audit": audit_record(shown_for(comparison.asked)) if audited else None,
    }


def _warn_if_untrained(adapter: Path, request: _Request) -> None:
    """Say how passages differ from those an adapter was trained with.

    Raises:
        AdapterError: the folder is no adapter.
    """
    from flashback.readers.card import read_card

    card = read_card(adapter)
    # A pattern, a stride and a query as it was trained: in answers, these are what they are.
    trained = replace(
        request.retrieval,
        pattern=card.pattern,
        stride=card.stride,
        query_tokens=card.query_tokens,
        query_form=QueryForm(card.query_form),
    )
    if found := card.differences(trained):
        warnings.warn(
            f"the adapter {adapter} was trained for {'; '.join(found)}",
            FlashBackWarning,
            stacklevel=2,
        )


def _comparison(
    request: _Request, reader: "TextReader", open_writer: "OpenWriter", index: "Retriever | None"
) -> "Comparison":
    """The rows and the questions with their passages."""
    from flashback.questions.forms import settled_asking
    from flashback.questions.passages import look_up
    from flashback.questions.rows import rows_of
    from flashback.questions.run import Comparison
    from flashback.retrieval.protocol import NoRetriever

    own = request.questions
    questions = request.file.sample(own.limit, own.seed)
    asking = settled_asking(own, request.file, questions, reader)
    patterns = chosen_patterns(reader, request.patterns)
    if not (request.engine.is_local or request.patterns):
        writer = open_writer(reader, NoRetriever())
        patterns = [name for name in patterns if writer.supports(PATTERNS[name])]
    talks = any(one.history for one in questions)
    rows = rows_of(patterns, request.adapters, conversations=talks)
    titled = asking.form is Form.IN_CONTEXT_RALM
    asked = look_up(questions, index, reader, request.retrieval, own=own.oracle, titled=titled)
    if not any(one.shown for one in asked):
        raise SettingsError("not one passage was found for the questions; give another --index")
    stopping = StoppingSettings(max_new_tokens=own.max_new_tokens, stop=own.stops(asking.form))
    settings = Settings(retrieval=request.retrieval, stopping=stopping)
    return Comparison(tuple(rows), tuple(asked), asking, settings, own.batch_size)


def _retrievals(request: _Request, comparison: "Comparison") -> list[RetrievalSettings]:
    """The settings of each row."""
    given = replace(request.retrieval, frame=request.frame)
    return [row.given(comparison.asking.form, given) for row in comparison.rows]


def _described_rows(
    comparison: "Comparison", reader: "TextReader", retrievals: Sequence[RetrievalSettings]
) -> list[dict[str, Any]]:
    """Each row as plain data, with the frame of its first question."""
    form, first = comparison.asking.form, comparison.asked[0].question
    return [
        row.described(reader, row.asked_with(reader, form, first, retrieval))
        for row, retrieval in zip(comparison.rows, retrievals, strict=True)
    ]


def _described(request: _Request, comparison: "Comparison", reader: "TextReader") -> dict[str, Any]:
    """What the table records besides figures."""
    from flashback.version import versions

    own, retrieval = request.questions, request.retrieval
    form = comparison.asking.form
    return {
        "file": {
            "name": request.file.name,
            "sha256": request.file.sha256,
            "questions": len(request.file.questions),
            "unanswerable": request.file.unanswerable,
        },
        "limit": own.limit,
        "seed": own.seed,
        "form": str(form),
        "examples": own.examples if form is Form.FEW_SHOT else 0,
        "model": reader.name,
        **placement_record(reader),
        "window": reader.window,
        "index": None if request.index is None else str(request.index),
        "query_form": str(retrieval.query_form),
        "passages": retrieval.passages,
        "passage_tokens": retrieval.passage_tokens,
        "min_score": retrieval.min_score,
        "min_relative_score": retrieval.min_relative_score,
        "forbid_titles": list(retrieval.forbid_titles),
        "forbid_documents": list(retrieval.forbid_documents),
        "max_new_tokens": own.max_new_tokens,
        "stop": list(comparison.settings.stopping.stop),
        "resamples": request.bootstrap.resamples,
        "versions": versions(),
    }


def _run_record(
    request: _Request, reader: "TextReader", index: "Retriever | None", described: dict[str, Any]
) -> dict[str, Any]:
    """What decides the answers; names of files and the bootstrap do not."""
    from flashback.evaluation.evaluate import checksums_of
    from flashback.readers.fingerprint import computation_of
    from flashback.readers.reader import Reader

    file = {name: value for name, value in described["file"].items() if name != "name"}
    decided = {name: value for name, value in described.items() if name != "resamples"}
    return decided | {
        "file": file,
        "computation": computation_of(reader.model) if isinstance(reader, Reader) else "",
        "adapters": [checksums_of(adapter) for adapter in request.adapters],
        "index": identity_of(index) or described["index"],
    }
