"""What `train`, `eval` and `reproduce` have in common: documents, an index, a lookup."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
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
from flashback.corpus.documents import CorpusReport
from flashback.indexing import open_corpus
from flashback.retrieval.bm25 import BM25Index
from flashback.retrieval.protocol import NoRetriever, Retriever
from flashback.settings import RetrievalSettings

if TYPE_CHECKING:
    from flashback.packing.prepare import Prepared
    from flashback.packing.settings import WindowSettings
    from flashback.reader import Reader


@contextlib.contextmanager
def counting(title: str) -> Iterator[Callable[[int], Callable[[], None]]]:
    """Bars of things done one by one; each begins when its number is known."""
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


def open_retriever(index: Path | None, retrieves: bool) -> tuple[Retriever, str]:
    """The index, and what tells its contents from others'.

    Raises:
        click.UsageError: passages are wanted, but there is no index.
    """
    if index is None:
        if retrieves:
            raise click.UsageError(
                "passages are to be retrieved, but there is no index; give --index"
            )
        return NoRetriever(), "none"
    opened = BM25Index.open(index)
    sums = sorted(file.sha256 for file in opened.manifest.files.values())
    return opened, " ".join(sums)


def prepare_documents(
    names: Sequence[str],
    reader: "Reader",
    index: Path | None,
    settings: Sequence[RetrievalSettings],
    windows: "WindowSettings",
    *,
    keep: bool = True,
) -> "list[Prepared]":
    """Read documents, cut them into windows, look up passages; with progress bars.

    Args:
        names: corpora, as `flashback index` takes them.
        keep: whether what was found is kept in the user's cache folder, and taken from there.
    """
    from flashback.packing.lookup import LookupCache
    from flashback.packing.prepare import prepare

    retrieves = any(one.pattern.retrieves for one in settings)
    retriever, identity = open_retriever(index, retrieves)
    report = CorpusReport()
    corpus = open_corpus(names, report)
    cache: LookupCache | None = None
    if keep and retrieves:
        cache = LookupCache(user_cache_path("flashback") / "lookups", identity)
    with notes.status("reading documents"):
        documents = list(corpus.read(lambda _: None))
    print_report(report)
    with counting("looking up passages, windows") as start:
        return prepare(documents, reader, retriever, settings, windows, cache=cache, start=start)
