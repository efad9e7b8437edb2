"""Documents, an index and a lookup: what the commands that train and score begin with."""

import contextlib
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click
from platformdirs import user_cache_path
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from flashback.cli.console import notes, print_report
from flashback.cli.options import options_of
from flashback.cli.retriever_options import Source
from flashback.corpus.documents import CorpusReport, Document
from flashback.errors import CorpusError, FlashBackWarning
from flashback.retrieval.guard import GuardSettings, LimitedRetriever
from flashback.retrieval.indexing import Corpus, open_corpus
from flashback.retrieval.protocol import NoRetriever, Retriever, failures_of, identity_of
from flashback.retrieval.specs import open_source
from flashback.settings import RetrievalSettings

if TYPE_CHECKING:
    from flashback.readers.reader import Reader
    from flashback.scoring.control_kind import Control
    from flashback.scoring.lookup import LookupCache
    from flashback.scoring.retrieved_windows import RetrievedWindows
    from flashback.scoring.window_settings import WindowSettings

lookup_options = options_of(
    RetrievalSettings,
    only=(
        "stride",
        "query_tokens",
        "query_form",
        "passage_tokens",
        "passages",
        "lookahead",
        "min_score",
        "min_relative_score",
        "forbid_titles",
        "forbid_documents",
    ),
)
"""The options of retrieval for windows, without a pattern and a frame."""


@contextlib.contextmanager
def counting(title: str) -> Iterator[Callable[[int], Callable[[], None]]]:
    """Progress bars: call the yielded function with a total to begin one, its result to advance."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=notes, disable=not notes.is_terminal) as progress:

        def start(total: int) -> Callable[[], None]:
            task = progress.add_task(title, total=total)
            return lambda: progress.advance(task)

        yield start


@dataclass(frozen=True)
class Sources:
    """Documents and an index that exist; nothing has been read or searched yet."""

    corpus: Corpus
    report: CorpusReport
    retriever: Retriever | None
    """None: nothing is retrieved."""

    @property
    def identity(self) -> str | None:
        """What is searched, and how; None: a retriever that does not say what is in it."""
        return identity_of(self.retriever)

    @property
    def failures(self) -> int:
        """Lookups that have failed."""
        return failures_of(self.retriever)


def open_sources(
    names: Sequence[str],
    index: Source | None,
    guard: GuardSettings | None = None,
    *,
    retrieves: bool,
) -> Sources:
    """Find documents and open the index, so that errors are found before a model is loaded.

    Args:
        names: corpora, as `flashback index` takes them.
        guard: limits of a search; None: without limits, and a failure is an error.
        retrieves: whether passages are wanted; an index is opened only then.

    Raises:
        click.UsageError: passages are wanted, but there is no index.
        FlashBackError: documents or index are missing or unusable.
    """
    if index is None and retrieves:
        raise click.UsageError(
            "passages are to be retrieved, but there is no index; give --index or --retriever"
        )
    retriever: Retriever | None = None
    if index is not None and retrieves:
        opened = open_source(index)
        retriever = opened if guard is None else LimitedRetriever(opened, guard)
    report = CorpusReport()
    return Sources(open_corpus(names, report), report, retriever)


def read_and_retrieve(
    sources: Sources,
    reader: "Reader",
    settings: Sequence[RetrievalSettings],
    windows: "WindowSettings",
    controls: "Collection[Control]" = (),
) -> "list[RetrievedWindows]":
    """Read documents, cut them into windows, look up passages; with progress bars.

    Lookups in an index are kept in the user's cache folder, and reused.

    Raises:
        CorpusError: no document is long enough, or not one passage was found.
    """
    from flashback.scoring.retrieved_windows import check_found, cut_and_retrieve

    documents = _read(sources)
    retriever: Retriever = sources.retriever or NoRetriever()
    cache = _cache(sources)
    with counting("looking up passages, windows") as start:
        found = cut_and_retrieve(
            documents,
            reader,
            retriever,
            settings,
            windows,
            cache=cache,
            start=start,
            controls=controls,
        )
    if sources.failures:
        warnings.warn(
            f"{sources.failures:,} lookups failed; they have no passage, and are not kept",
            FlashBackWarning,
            stacklevel=2,
        )
    if sources.retriever is not None:
        check_found(found)
    return found


def _read(sources: Sources) -> list[Document]:
    with notes.status("reading documents"):
        documents = list(sources.corpus.read(lambda _: None))
    if not documents:
        examples = sources.report.examples
        first = f"; the first bad record: {examples[0]}" if examples else ""
        raise CorpusError(f"the corpus is empty: no document was found{first}")
    print_report(sources.report)
    return documents


def _cache(sources: Sources) -> "LookupCache | None":
    from flashback.scoring.lookup import LookupCache

    if sources.retriever is None:
        return None
    if sources.identity is None:
        notes.print("lookups are not kept: the retriever does not say what is in it")
        return None
    folder = user_cache_path("flashback") / "lookups"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        notes.print(f"{folder}: {error.strerror}; lookups are not kept", markup=False)
        return None
    return LookupCache(folder, sources.identity)
