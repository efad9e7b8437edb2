"""Documents into and out of an index that is there: what `flashback index add` and others do."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flashback.corpus.documents import CorpusReport, Document
from flashback.corpus.formats.file_settings import FileSettings
from flashback.corpus.formats.format import Source
from flashback.corpus.formats.reading import read_documents
from flashback.corpus.formats.sources import find_sources
from flashback.corpus.passages import TokenEnds, estimated_ends
from flashback.declared import check_type
from flashback.errors import CorpusError
from flashback.retrieval import changes
from flashback.retrieval.bm25 import nothing_found
from flashback.retrieval.changes import Changes, changing
from flashback.retrieval.index_folder import Manifest
from flashback.retrieval.indexing import (
    ProgressStart,
    corpus_names,
    cut_for,
    is_named,
    no_progress,
    open_corpus,
)
from flashback.retrieval.sources import (
    SourceFile,
    Sources,
    load_sources,
    noting_files,
    real_path,
    stored_sources,
)

Names = str | Path | Sequence[str | Path]


def add_documents(
    names: Names,
    folder: str | Path,
    report: CorpusReport | None = None,
    *,
    progress: ProgressStart = no_progress,
    token_ends: TokenEnds = estimated_ends,
    files: FileSettings | None = None,
) -> Manifest:
    """Add the documents of a corpus to an index; those with an id that is there are replaced.

    Args:
        names: see `index_corpus`.
        folder: of the index; it keeps the settings that it was built with.
        report: filled with counts of documents, bad records and skipped files.
        progress: starts a progress bar.
        token_ends: see `index_corpus`; take that of the index.
        files: see `index_corpus`.

    Raises:
        FlashBackError: the corpus or the index is not usable, or another process changes it;
            the index is as it was.
    """
    check_type("folder", folder, str | Path)
    check_type("files", files, FileSettings | None)
    folder, report = Path(folder), report or CorpusReport()
    with changing(folder) as pending:
        corpus = open_corpus(corpus_names(names), report, files)
        advance, on_passage = progress(corpus.bytes)
        new = _put(pending, corpus.read(advance), token_ends, on_passage)
        if not new:
            raise CorpusError(nothing_found(report))
        _check_ids(corpus.files)
        known = {
            path: replace(file, documents=tuple(one for one in file.documents if one not in new))
            for path, file in load_sources(folder, pending.manifest).items()
        }
        return pending.commit(report, stored_sources(known | corpus.files))


def delete_documents(documents: str | Iterable[str], folder: str | Path) -> Manifest:
    """Remove documents from an index, by their ids; ids that are not there are passed over.

    Raises:
        IndexFolderError: the index is not usable, or another process changes it.
    """
    check_type("folder", folder, str | Path)
    with changing(Path(folder)) as pending:
        pending.delete([documents] if isinstance(documents, str) else documents)
        return pending.commit()


def merge_index(folder: str | Path) -> Manifest:
    """Drop what was deleted for good and write an index into few files; see `changes.merge`.

    Raises:
        IndexFolderError: the index is not usable, or another process changes it.
    """
    check_type("folder", folder, str | Path)
    return changes.merge(Path(folder))


@dataclass(frozen=True)
class Synced:
    """An index after it was synchronised, and what was found."""

    manifest: Manifest
    added: int
    """Files that are new."""
    changed: int
    """Files whose content is another."""
    removed: int
    """Files that are no longer there."""
    unchanged: int


def sync_index(
    names: Names,
    folder: str | Path,
    report: CorpusReport | None = None,
    *,
    progress: ProgressStart = no_progress,
    token_ends: TokenEnds = estimated_ends,
    files: FileSettings | None = None,
) -> Synced:
    """Make an index follow files and folders: new and changed files are read, others' texts go.

    Documents that did not come from these files stay. A file is known by its path and its content.
    A document that was deleted by its id comes back when its file changes.

    Args:
        names: of files and folders.
        folder: of the index; it keeps the settings that it was built with.
        report: filled with counts of documents, bad records and skipped files.
        progress: starts a progress bar.
        token_ends: see `index_corpus`; take that of the index.
        files: see `index_corpus`.

    Raises:
        FlashBackError: the corpus or the index is not usable, two files have a document of the same
            id, or another process changes the index; it is as it was.
    """
    check_type("folder", folder, str | Path)
    check_type("files", files, FileSettings | None)
    folder, report = Path(folder), report or CorpusReport()
    listed = _names_of_files(names)
    with changing(folder) as pending:
        known = load_sources(folder, pending.manifest)
        here = {real_path(one): one for one in find_sources(listed, report, files)}
        found = _compare(known, here, [os.path.realpath(name) for name in listed])
        counts = (len(found.new), len(found.changed), len(found.gone), len(here) - len(found.read))
        if not any(counts[:3]):
            return Synced(pending.manifest, *counts)
        kept = {path: one for path, one in known.items() if path not in found.gone | found.changed}
        for path in found.gone | found.changed:
            pending.delete(known[path].documents)
        advance, on_passage = progress(sum(source.bytes for source in found.read))
        noted: Sources = {}
        documents = read_documents(found.read, report, advance, files, noting_files(noted))
        _put(pending, documents, token_ends, on_passage)
        kept |= noted
        _check_ids(kept)
        # Files of other formats are ignored each time.
        read = CorpusReport(bad_records=report.bad_records)
        return Synced(pending.commit(read, stored_sources(kept)), *counts)


def _names_of_files(names: Names) -> list[str]:
    """Names of files and folders, as texts."""
    listed = corpus_names(names)
    for name in listed:
        if name == "-" or is_named(name):
            raise CorpusError(f"corpus {name}: only files and folders can be synchronised")
    return listed


def _put(
    pending: Changes,
    documents: Iterable[Document],
    token_ends: TokenEnds,
    on_passage: Callable[[], None],
) -> set[str]:
    """Add documents in place of those with the same ids; their ids."""
    put: set[str] = set()
    for passage in cut_for(pending.settings, documents, token_ends):
        on_passage()
        if passage.document_id not in put:
            put.add(passage.document_id)
            pending.delete([passage.document_id])
        pending.add([passage])
    return put


def _check_ids(files: Sources) -> None:
    """A document that changes is found by its id, so that no two files may have the same."""
    owners: dict[str, str] = {}
    for file in files.values():
        for document in file.documents:
            if owners.setdefault(document, file.name) != file.name:
                raise CorpusError(
                    f"document {document!r} is in {owners[document]} and in {file.name}; expected "
                    "ids that differ, in an index that changes"
                )


@dataclass(frozen=True)
class _Found:
    """Paths of files compared with those of an index."""

    new: set[str]
    changed: set[str]
    gone: set[str]
    read: list[Source]
    """The new and the changed ones, in the order of the corpus."""


def _compare(known: Sources, here: dict[str, Source], roots: Sequence[str]) -> _Found:
    gone = {path for path in known.keys() - here.keys() if _is_below(path, roots)}
    new = here.keys() - known.keys()
    old = here.keys() - new
    changed = {path for path in old if _differs(known[path], here[path])}
    while True:  # what another file has of a document that goes is read again
        lost = {document for path in gone | changed for document in known[path].documents}
        more = {
            path
            for path in known.keys() - gone - changed
            if not lost.isdisjoint(known[path].documents)
        }
        if not more:
            break
        if elsewhere := more - old:
            file = known[min(elsewhere)].name
            raise CorpusError(f"file {file} has a document of a file that changed; name both")
        changed |= more
    read = [
        replace(source, name=known[path].name) if path in changed else source
        for path, source in here.items()
        if path in new | changed
    ]
    return _Found(new, changed, gone, read)


def _is_below(path: str, roots: Sequence[str]) -> bool:
    return any(path == root or Path(root) in Path(path).parents for root in roots)


def _differs(known: SourceFile, source: Source) -> bool:
    assert source.path is not None
    try:
        return not known.is_like(source.path)
    except OSError as error:
        raise CorpusError(f"corpus {source.name}: {error.strerror or error}") from error
