"""`flashback bench`: the project's claims of speed, rerun by anyone."""

from functools import partial
from pathlib import Path
from typing import Any

import click

from flashback.benchmark.bench_settings import (
    BatchBenchSettings,
    EngineBenchSettings,
    RuntimeSettings,
    TrainingBenchSettings,
)
from flashback.benchmark.retrieval import RetrievalBenchSettings, measure_retrieval
from flashback.cli.bench_options import (
    BenchOptions,
    bench_options,
    json_option,
    old_weights_option,
    print_report,
)
from flashback.cli.console import notes
from flashback.cli.documents import Sources, open_sources
from flashback.cli.options import options_of, take
from flashback.cli.retriever_options import Source, source_options

TEXT = "python-docs:evaluation"
"""Real text that is on every machine."""


@click.group()
def bench() -> None:
    """Measure this machine's speed.

    \b
    flashback bench runtime --shape opt-125m --lengths 512:1024
    flashback bench runtime --shape opt-125m --lengths 512:2048 --sampled --plot speed.png
    flashback bench training --shape gpt2-6x512
    flashback bench retrieval my-texts/
    """


@bench.command()
@options_of(RuntimeSettings)
@source_options
@click.option(
    "--text",
    multiple=True,
    help="The corpus whose first document that is long enough is read, as 'flashback index' takes "
    f"it (repeatable; default: {TEXT}).",
)
@click.option("--plot", type=Path, help="Write the figure to this file.")
@old_weights_option
@bench_options
def runtime(
    index: Source | None,
    text: tuple[str, ...],
    plot: Path | None,
    options: BenchOptions,
    **values: Any,
) -> None:
    """Run the paper's run-time test.

    \b
    flashback bench runtime --shape opt-125m --lengths 512:1024
    flashback bench runtime --shape gpt2 --sampled --json
    flashback bench runtime --shape opt-125m --index IDX --text my-texts/

    Random tokens, passages all different. The arms take turns: none, slot_cached (the keys and
    values of all passages are cached from the start), slot, append, prepend (logits of the last
    position only) and authors_prepend (logits of every position, as the authors' code computes
    them). With --index or --retriever, a document is read instead, with the passages found for it.
    In both, the text is given, so that all arms have the same contexts and passages.

    Seconds are those of all strides. Boundary: the share of them that the boundary passes take.
    Growth: how many times as long the last boundary takes as the second. Bound: what the machine's
    memory bandwidth and matrix rate allow, as a share of what was measured. Predicted: likewise,
    after a calibration: the rates that a few decode steps and prefill passes of the reader reach
    at the first length, before anything else is measured.
    """
    settings = take(RuntimeSettings, values)
    sources = _real_sources(index, text)
    options.use_threads()
    from flashback.benchmark.plot import plot_runtime
    from flashback.benchmark.runtime import RealText, prepare
    from flashback.evaluation.figures import check_plot

    real = None
    if sources is not None and sources.retriever is not None:
        real = RealText(sources.corpus.read(lambda _: None), sources.retriever)
    if plot is not None:
        check_plot(plot)  # now, not after minutes of measuring
    benchmark, results = options.run(partial(prepare, settings, real))
    if plot is not None:
        plot_runtime(results, benchmark.title, plot)


def _real_sources(index: Source | None, text: tuple[str, ...]) -> Sources | None:
    """The text and the passages that `--index` and `--text` ask for.

    Raises:
        click.UsageError: text without an index.
        FlashBackError: one of them is missing or unusable.
    """
    if index is None:
        if text:
            raise click.UsageError("--text is read with passages of an index; give --index, too")
        return None
    return open_sources(text or (TEXT,), index, retrieves=True)


@bench.command()
@options_of(EngineBenchSettings)
@old_weights_option
@bench_options
def engine(options: BenchOptions, **values: Any) -> None:
    """This engine against transformers' own cache: tokens per second.

    \b
    flashback bench engine --shape opt-125m --lengths 512:1024
    flashback bench engine --shape gpt2 --pattern none --json

    The arms take turns, stride by stride: transformers' own cache with plain linear layers
    (dynamic) and this engine's cache with weights laid out for the processor (ours), in float32
    and bfloat16, and with 8-bit weights on CPU. Random tokens, passages all different. Other: the
    share of a stride outside the model: sampling, detokenizing, bookkeeping. Of the bound: what
    reading every weight and the cache once takes of a decode step. If a large model is slower than
    with plain transformers, the command fails.
    """
    settings = take(EngineBenchSettings, values)
    options.use_threads()
    from flashback.benchmark.engine import check_never_slower, prepare

    benchmark, results = options.run(partial(prepare, settings))
    check_never_slower(results, next(iter(benchmark.readers.values())))


@bench.command()
@options_of(BatchBenchSettings)
@bench_options
def batch(options: BenchOptions, **values: Any) -> None:
    """Write several texts one by one and together: tokens per second.

    \b
    flashback bench batch --shape opt-125m --batch-size 8
    flashback bench batch --shape gpt2 --pattern none --json

    Random prompts of different lengths and random passages; both arms start from empty caches and
    take turns. In float32 their texts must be the same.
    """
    settings = take(BatchBenchSettings, values)
    options.use_threads()
    from flashback.benchmark.batch import prepare

    options.run(partial(prepare, settings))


@bench.command()
@options_of(TrainingBenchSettings)
@bench_options
def training(options: BenchOptions, **values: Any) -> None:
    """Train an adapter three ways: targets per second.

    \b
    flashback bench training --shape gpt2-6x512
    flashback bench training --shape opt-125m --windows 1 --json

    Random tokens, passages all different, appended; LoRA on the query and value projections and
    trained marks; forward and backward passes. Three arms take turns: padded (every stride a
    sequence of its own, as transformers' Trainer runs them), sorted (by length, the targets' logits
    alone) and packed (the context once, branches on its cache). Their losses must agree.
    """
    settings = take(TrainingBenchSettings, values)
    options.use_threads()
    from flashback.benchmark.training import prepare

    options.run(partial(prepare, settings))


@bench.command()
@click.argument("corpus", nargs=-1, required=True)
@options_of(RetrievalBenchSettings)
@json_option
def retrieval(corpus: tuple[str, ...], as_json: bool, **values: Any) -> None:
    """Index a corpus into a temporary folder and search it.

    \b
    flashback bench retrieval my-texts/ --queries 1000
    flashback bench retrieval corpus.jsonl.gz --json
    """
    with notes.status("indexing and searching"):
        figures = measure_retrieval(corpus, take(RetrievalBenchSettings, values))
    print_report(figures.report(), as_json=as_json)
