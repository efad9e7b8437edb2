"""Corpus names to an index: what `flashback index` and `flashback demo` do."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from flashback.corpus.documents import Advance, CorpusReport, Document
from flashback.corpus.formats.datasets import find_dataset
from flashback.corpus.formats.file_settings import FileSettings
from flashback.corpus.formats.format import Source
from flashback.corpus.formats.reading import read_documents
from flashback.corpus.formats.sources import find_sources
from flashback.corpus.paper_datasets import (
    PAPER_DATASETS,
    PaperDataset,
    find_data_files,
    read_data_files,
)
from flashback.corpus.passages import Passage, TokenEnds, TokenLimit, cut_documents, estimated_ends
from flashback.corpus.python_docs import NAME as PYTHON_DOCS
from flashback.corpus.python_docs import find_modules, read_python_docs
from flashback.corpus.split import SPLITS, Split, split_documents
from flashback.declared import check_type
from flashback.errors import CorpusError
from flashback.retrieval.bm25 import IndexSettings, Write, build_index, called
from flashback.retrieval.index_folder import Manifest, check_target
from flashback.retrieval.index_settings import DENSE, DenseSettings
from flashback.retrieval.sources import Sources, noting_files, stored_sources

ProgressStart = Callable[[int], tuple[Advance, Callable[[], None]]]
"""Given a corpus's bytes: what to call with bytes read, and what to call per passage."""


def no_progress(_: int) -> tuple[Advance, Callable[[], None]]:
    """A `ProgressStart` that shows nothing."""
    return (lambda _: None), (lambda: None)


@dataclass(frozen=True)
class Corpus:
    """Documents about to be read."""

    bytes: int
    """What reading it will report to `advance` in the end; 0: unknown."""
    read: Callable[[Advance], Iterable[Document]]
    files: Sources = field(default_factory=dict)
    """The files that it is read from, each noted when it was read."""


@dataclass(frozen=True)
class NamedCorpus:
    """A corpus that is asked for as `NAME`, `NAME:PART`, `NAME@FOLDER` or `NAME:PART@FOLDER`."""

    parts: tuple[str, ...]
    """Without the whole, which is the part ''."""
    open: Callable[[str, str | None, CorpusReport], Corpus]
    """Given a part, a folder and where bad records go; documents are counted by the caller."""
    takes_folder: bool = False


DATASET = "dataset"
"""`dataset:OWNER/NAME`, `dataset:OWNER/NAME:PART`, `dataset@FOLDER` and `dataset:PART@FOLDER`: data
sets of the Hugging Face hub, or folders of the same form."""


def corpus_names(names: str | Path | Sequence[str | Path]) -> list[str]:
    """One name or several, as texts.

    Raises:
        SettingsError: they are something else.
    """
    check_type("names", names, str | Path | Sequence)
    return [str(name) for name in ([names] if isinstance(names, str | Path) else names)]


def is_named(name: str) -> bool:
    """Whether a corpus is one of `NAMED_CORPORA` or a data set, not a file or a folder."""
    return _parse(name)[0] in (*NAMED_CORPORA, DATASET)


def open_corpus(
    names: Sequence[str], report: CorpusReport, files: FileSettings | None = None
) -> Corpus:
    """Find what `names` stand for: files, folders, `-`, one of `NAMED_CORPORA`, or a data set.

    Raises:
        CorpusError: something is missing or of no known format.
    """
    files = files or FileSettings()
    report.names = tuple(names)
    named = [name for name in names if is_named(name)]
    if named:
        if len(names) > 1:
            raise CorpusError(f"corpus {named[0]} cannot be mixed with others; name one of them")
        if _parse(named[0])[0] == DATASET:
            _, part, folder = _parse(named[0])
            return _files(find_dataset(part, folder, report, files), report, files)
        return _open_named(named[0], report)
    return _files(find_sources(names, report, files), report, files)


def _files(sources: Sequence[Source], report: CorpusReport, files: FileSettings) -> Corpus:
    size = sum(source.bytes for source in sources)
    noted: Sources = {}

    def read(advance: Advance) -> Iterator[Document]:
        return read_documents(sources, report, advance, files, noting_files(noted))

    return Corpus(size, read, noted)


def _parse(name: str) -> tuple[str, str, str | None]:
    """The parts of `NAME:PART@FOLDER`."""
    head, at, folder = name.partition("@")
    base, _, part = head.partition(":")
    return base, part, folder if at else None


def _open_named(name: str, report: CorpusReport) -> Corpus:
    base, part, folder = _parse(name)
    corpus = NAMED_CORPORA[base]
    if part and part not in corpus.parts:
        known = ", ".join(corpus.parts)
        raise CorpusError(f"corpus {base}:{part}: unknown part; expected one of {known}")
    if folder is not None and not corpus.takes_folder:
        raise CorpusError(f"corpus {name}: {base} is not read from a folder; leave out '@{folder}'")
    if folder == "":
        raise CorpusError(f"corpus {name}: expected a folder after '@', found an empty name")
    return _counted(corpus.open(part, folder, report), report)


_PYTHON_DOCS_PARTS: dict[str, tuple[Split, ...]] = {
    "train": ("base", "adapter"),
    **{name: (name,) for name in SPLITS},
}


def _open_python_docs(part: str, _folder: str | None, _report: CorpusReport) -> Corpus:
    modules = find_modules()

    def read(advance: Advance) -> Iterable[Document]:
        documents: Iterable[Document] = read_python_docs(modules, advance)
        if part:
            split = split_documents(documents)
            documents = (document for name in _PYTHON_DOCS_PARTS[part] for document in split[name])
        return documents

    return Corpus(sum(path.stat().st_size for _, path in modules), read)


def _open_paper_dataset(
    dataset: PaperDataset, part: str, folder: str | None, report: CorpusReport
) -> Corpus:
    files = find_data_files(dataset, part, folder)
    return Corpus(
        sum(file.bytes for file in files),
        lambda advance: read_data_files(dataset, files, report, advance),
    )


def _counted(corpus: Corpus, report: CorpusReport) -> Corpus:
    def read(advance: Advance) -> Iterator[Document]:
        for document in corpus.read(advance):
            report.documents += 1
            yield document

    return Corpus(corpus.bytes, read)


NAMED_CORPORA = {PYTHON_DOCS: NamedCorpus(tuple(_PYTHON_DOCS_PARTS), _open_python_docs)} | {
    name: NamedCorpus(
        tuple(filter(None, dataset.parts)), partial(_open_paper_dataset, dataset), takes_folder=True
    )
    for name, dataset in PAPER_DATASETS.items()
}
"""`python-docs` has the parts of its fixed split, `base`, `adapter` and `evaluation`, and `train`,
which is all but the evaluation part and what repeats it. The others are the paper's data sets."""


def index_corpus(
    names: str | Path | Sequence[str | Path],
    folder: str | Path,
    settings: IndexSettings | None = None,
    report: CorpusReport | None = None,
    *,
    overwrite: bool = False,
    progress: ProgressStart = no_progress,
    token_ends: TokenEnds = estimated_ends,
    tokens_of: str = "none",
    dense: DenseSettings | None = None,
    on_encoding: Callable[[int, int], Callable[[int], None]] = lambda *_: lambda _: None,
    files: FileSettings | None = None,
) -> Manifest:
    """Read a corpus, cut it into passages and index them.

    Args:
        names: files, folders, `-`, one of `NAMED_CORPORA`, or a data set; one or several.
            `python-docs` is read by worker processes, which import the program's main module:
            guard that as usual.
        folder: of the index to make.
        report: filled with counts of documents, bad records and skipped files.
        progress: starts a progress bar.
        token_ends: counts the tokens of passages as the reader does that they will be shown to, see
            `load_token_ends`; without it, an estimate errs on the safe side.
        tokens_of: the name of that reader, by which `flashback index add` loads it again.
        dense, on_encoding: of the kind `dense`, see `build_dense`.
        files: which files of folders are read, and which fields of records.

    Raises:
        SettingsError: an argument is of a wrong type, or an extra is not installed.
        ReaderError: the encoder is missing or unusable.
        FlashBackError: the corpus or the folder is not usable.
    """
    check_type("settings", settings, IndexSettings | None)
    check_type("files", files, FileSettings | None)
    check_type("folder", folder, str | Path)
    folder, report = Path(folder), report or CorpusReport()
    settings = settings or IndexSettings()
    check_target(folder, overwrite=overwrite)
    build = _dense(dense or DenseSettings(), on_encoding) if settings.kind == DENSE else None
    corpus = open_corpus(corpus_names(names), report, files)
    advance, on_passage = progress(corpus.bytes)
    passages = called(on_passage, cut_for(settings, corpus.read(advance), token_ends))
    given, noted = (folder, passages, settings), partial(_listed, corpus)
    more: dict[str, Any] = {"overwrite": overwrite, "tokens_of": tokens_of}
    if build is not None:
        return build(*given, report=report, **more)
    return build_index(*given, report, write=_writer_of(settings.kind), files=noted, **more)


def _listed(corpus: Corpus) -> dict[str, bytes]:
    """The file of an index's data folder that names the files of a corpus, if it has any."""
    return stored_sources(corpus.files) if corpus.files else {}


def cut_for(
    settings: IndexSettings, documents: Iterable[Document], token_ends: TokenEnds
) -> Iterator[Passage]:
    """The passages of documents, as an index of these settings has them."""
    words, overlap = settings.passage_words, settings.overlap
    limit = TokenLimit(settings.passage_tokens, token_ends)
    return cut_documents(documents, words, limit, titled=settings.title, overlap=overlap)


def _writer_of(kind: str) -> Write | None:
    """What writes an index of another kind than `bm25`."""
    if kind != "bm25s":
        return None
    from flashback.retrieval.arrays import write_arrays  # NumPy takes a while to import

    return write_arrays


def _dense(
    settings: DenseSettings, on_encoding: Callable[[int, int], Callable[[int], None]]
) -> Callable[..., Manifest]:
    """What builds a dense index; its encoder is loaded before a corpus is read."""
    from flashback.retrieval.dense import build_dense, check_installed
    from flashback.retrieval.encoders import load_encoder

    check_installed()
    encoder = load_encoder(settings.encoder, settings.encoder_device)
    return partial(build_dense, encoder=encoder, on_encoding=on_encoding)
