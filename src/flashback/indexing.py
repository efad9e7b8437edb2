"""Corpus names to an index: what `flashback index` and `flashback demo` do."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flashback.corpus.documents import (
    Advance,
    CorpusReport,
    Document,
    find_sources,
    read_documents,
)
from flashback.corpus.passages import cut_documents
from flashback.corpus.python_docs import NAME as PYTHON_DOCS
from flashback.corpus.python_docs import find_modules, read_python_docs
from flashback.corpus.split import SPLITS, Split, split_documents
from flashback.errors import CorpusError
from flashback.retrieval.bm25 import IndexSettings, build_index
from flashback.retrieval.index_folder import Manifest, check_target

ProgressStart = Callable[[int], tuple[Advance, Callable[[], None]]]
"""Given a corpus's bytes: what to call with bytes read, and what to call per passage."""


@dataclass(frozen=True)
class Corpus:
    """Documents about to be read."""

    bytes: int
    """What reading it will report to `advance` in the end; 0: unknown."""
    read: Callable[[Advance], Iterable[Document]]


def open_corpus(names: Sequence[str], report: CorpusReport) -> Corpus:
    """Find what `names` stand for: files, folders, `-`, or `python-docs`.

    `python-docs:base`, `:adapter`, `:evaluation` are the parts of its fixed split, and
    `python-docs:train` is all but the evaluation part and what repeats it.

    Raises:
        CorpusError: something is missing or of no known format.
    """
    if any(name.partition(":")[0] == PYTHON_DOCS for name in names):
        if len(names) > 1:
            raise CorpusError(f"corpus {PYTHON_DOCS} cannot be mixed with files; index one of them")
        return _open_python_docs(names[0].partition(":")[2], report)
    sources = find_sources(names, report)
    size = sum(source.bytes for source in sources)
    return Corpus(size, lambda advance: read_documents(sources, report, advance))


def _open_python_docs(part: str, report: CorpusReport) -> Corpus:
    parts: dict[str, tuple[Split, ...]] = {"": SPLITS, "train": ("base", "adapter")}
    parts |= {name: (name,) for name in SPLITS}
    if part not in parts:
        known = ", ".join(name for name in parts if name)
        raise CorpusError(f"corpus {PYTHON_DOCS}:{part}: unknown part; expected one of {known}")
    modules = find_modules()

    def read(advance: Advance) -> Iterable[Document]:
        documents: Iterable[Document] = read_python_docs(modules, advance)
        if part:
            split = split_documents(documents)
            documents = (document for name in parts[part] for document in split[name])
        for document in documents:
            report.documents += 1
            yield document

    return Corpus(sum(path.stat().st_size for _, path in modules), read)


def index_corpus(
    names: Sequence[str],
    folder: str | Path,
    settings: IndexSettings | None = None,
    report: CorpusReport | None = None,
    *,
    overwrite: bool = False,
    progress: ProgressStart = lambda _: (lambda _: None, lambda: None),
) -> Manifest:
    """Read a corpus, cut it into passages and index them.

    Args:
        names: files, folders, `-`, or `python-docs`.
        folder: of the index to make.
        report: filled with what was met: documents, bad records, ignored files.
        progress: starts a progress bar.

    Raises:
        FlashBackError: the corpus or the folder is not usable.
    """
    folder = Path(folder)
    settings = settings or IndexSettings()
    report = report or CorpusReport()
    check_target(folder, overwrite=overwrite)
    corpus = open_corpus(names, report)
    advance, on_passage = progress(corpus.bytes)
    passages = cut_documents(corpus.read(advance), settings.passage_words)
    return build_index(
        folder, passages, settings, report, overwrite=overwrite, on_passage=on_passage
    )
