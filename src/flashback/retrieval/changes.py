"""A BM25 index that changes: passages are added, documents deleted, and all at once committed.

A new version shares the files of the one before; what was deleted is only marked, and still counts
in scores, until `merge`. A passage that several documents have is stored once: it stays while one
of them has it, and a document that gets it joins them.
"""

import contextlib
from collections import Counter
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import tantivy

from flashback.corpus.documents import CorpusReport
from flashback.corpus.duplicates import Spool, Stored, passage_digest
from flashback.corpus.passages import Passage
from flashback.errors import IndexFolderError
from flashback.retrieval import analysis
from flashback.retrieval.bm25 import (
    KIND,
    NEAR_DUPLICATES,
    BM25Index,
    versions_here,
    write_records,
)
from flashback.retrieval.index_folder import Manifest, next_version, publish
from flashback.retrieval.index_settings import IndexSettings, settings_of
from flashback.retrieval.protocol import storable
from flashback.retrieval.records import key_of, stored_of, terms_of
from flashback.retrieval.sources import SOURCES
from flashback.retrieval.tantivy_files import readable_damage, readable_errors, writing


@contextlib.contextmanager
def changing(folder: Path) -> Iterator["Changes"]:
    """Changes of an index, for one process at a time; those that are not committed are dropped.

    Raises:
        IndexFolderError: there is no such index, it cannot be changed or written, or another
            process is changing it.
    """
    with readable_errors(folder), next_version(folder) as (manifest, data):
        settings = settings_of(folder, _changeable(folder, manifest))
        if settings.drop_near_duplicates:
            raise IndexFolderError(
                f"index {folder}: was built with --drop-near-duplicates=True, and cannot be "
                "changed; build it again, with it or without"
            )
        # Beside the data, under a name that is cleared like an unfinished version.
        file = data.with_name(f"{data.name}-spool")
        first = manifest.content.counts["passages_read"]
        with Spool(file, once=settings.deduplicate, near=False, first=first) as spool:
            yield Changes(folder, manifest, data, spool)


def _changeable(folder: Path, manifest: Manifest) -> Manifest:
    if manifest.content.kind != KIND:
        raise IndexFolderError(
            f"index {folder}: kind {manifest.content.kind!r} cannot be changed; expected "
            f"{KIND!r}, or build it again"
        )
    return manifest


class Changes:
    """What will be different in the next version of an index."""

    def __init__(self, folder: Path, manifest: Manifest, data: Path, spool: Spool) -> None:
        self.manifest = manifest
        """The version that is there."""
        self.settings = settings_of(folder, manifest)
        self._folder, self._data, self._spool = folder, data, spool
        self._gone: set[str] = set()

    def add(self, passages: Iterable[Passage]) -> None:
        """Add passages; of a document that is there, delete it first."""
        for passage in passages:
            self._spool.add(passage)

    def delete(self, documents: Iterable[str]) -> None:
        """Remove what is there and what was added of these documents; unknown ids do nothing."""
        for document in map(storable, documents):
            self._gone.add(document)
            self._spool.remove(document)

    def commit(
        self, report: CorpusReport | None = None, files: Mapping[str, bytes] | None = None
    ) -> Manifest:
        """Make a new version of all changes, durably, or none; nothing can be changed after that.

        Args:
            report: of the corpus that was read; its counts are added to the index's.
            files: files of the data folder to write, by name.
        """
        report, files = report or CorpusReport(), files or {}
        if not (self._gone or self._spool.stored or files):
            return self.manifest
        for name, data in files.items():
            (self._data / name).unlink(missing_ok=True)  # it may be a link to the old version's
            (self._data / name).write_bytes(data)
        counts = self._write(report)
        content = replace(self.manifest.content, counts=counts, versions=versions_here())
        return publish(self._folder, self._data, content, self.manifest)

    def _write(self, report: CorpusReport) -> dict[str, int]:
        """Write the data folder's files; the counts of the new version."""
        counts = Counter(self.manifest.content.counts)
        counts.update(bad_records=report.bad_records, ignored_files=report.ignored_files)
        with writing(self._data, self.settings.language) as (index, writer):
            old = _OldRecords(index, writer, self._spool, self.settings)
            with readable_damage(self._folder):
                counts["documents"] += old.take(self._gone)
            counts.subtract(old.counts)
            there, titled = counts["passages"], self.settings.title
            new = _counted(self._spool, counts)
            counts.update(write_records(writer, new, there + len(self._spool), titled, there))
        counts["passages_read"] = self._spool.next_number
        return dict(counts)


def _counted(passages: Iterable[Stored], counts: Counter[str]) -> Iterator[Stored]:
    for stored in passages:
        counts["passages"] += 1
        counts["repeated_passages"] += stored.repeats
        yield stored


class _OldRecords:
    """The records of the version that is there: those that change are taken out."""

    def __init__(
        self, index: tantivy.Index, writer: tantivy.IndexWriter, spool: Spool, made: IndexSettings
    ) -> None:
        self._searcher, self._schema = index.searcher(), index.schema
        self._writer, self._spool, self._made = writer, spool, made
        self._gone: Container[str] = ()
        self._taken: set[int] = set()
        self.counts = Counter[str]()
        """What was taken out."""

    def take(self, gone: Collection[str]) -> int:
        """Take out the passages of deleted documents, and those that new documents have, too.

        Owners that are left join the passages to be written.

        Returns:
            How many more documents there will be.
        """
        self._gone = gone
        new = self._spool.documents
        more = sum(name in gone or not self._of_document(name) for name in new)
        equal = self._spool.digests
        for document in gone:
            found = self._of_document(document)
            more -= bool(found)
            self._writer.delete_documents_by_query(self._is("document", document))
            for stored in found:
                self._take(stored)
        for identity in equal if self._made.deduplicate else ():
            for stored in self._find("key", key_of(identity)):
                self._take(stored)
        return more

    def _take(self, stored: Stored) -> None:
        """Take a record out, once; in a rare case others with the same key."""
        if not self._made.deduplicate:  # keys are not unique, and nothing is shared
            self._uncount(stored)
            return
        key = key_of(passage_digest(stored.passage))
        if key in self._taken:
            return
        self._taken.add(key)
        self._writer.delete_documents_by_query(self._is("key", key))
        for each in self._find("key", key):
            self._uncount(each)
            left = tuple(owner for owner in each.owners if owner.document_id not in self._gone)
            if left:
                self._spool.join(replace(each, owners=left))

    def _uncount(self, stored: Stored) -> None:
        terms = terms_of(stored.passage, titled=self._made.title)
        self.counts.update(
            passages=1,
            repeated_passages=stored.repeats,
            letters=analysis.letters(terms),
            letters_without_stems=analysis.without_stems(terms),
        )

    def _of_document(self, document: str) -> list[Stored]:
        return self._find("document", document) + self._find("sharer", document)

    def _is(self, field: str, value: str | int) -> tantivy.Query:
        return tantivy.Query.term_query(self._schema, field, value, "basic")

    def _find(self, field: str, value: str | int) -> list[Stored]:
        count = self._searcher.doc_freq(field, value)  # deleted ones included
        if not count:
            return []
        found = self._searcher.search(self._is(field, value), count, False).hits
        return [stored_of(self._searcher.doc(at), titled=self._made.title) for _, at in found]


def merge(folder: Path) -> Manifest:
    """Write an index anew from its own passages: without what was deleted, in few files.

    Its scores and ranks are then those of an index built of the documents that are left.

    Raises:
        IndexFolderError: there is no such index, it cannot be read or written, or another process
            is changing it.
    """
    own = (SOURCES, NEAR_DUPLICATES)
    with readable_errors(folder), next_version(folder, own.__contains__) as (manifest, data):
        settings = settings_of(folder, _changeable(folder, manifest))
        old = BM25Index.open(folder)
        with writing(data, settings.language) as (_, writer):
            write_records(writer, old.records(), len(old), settings.title)
        content = replace(manifest.content, versions=versions_here())
        return publish(folder, data, content, manifest)
