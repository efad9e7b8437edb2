"""BM25 over passages with tantivy: built streaming, memory-mapped when searched.

BM25 with k1 = 1.2 and b = 0.75 (Robertson and Zaragoza 2009), tantivy's constants. Text and queries
go through one analysis (`analysis.py`); what is shown is the text as it was.
"""

import json
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import tantivy

from flashback.corpus.documents import CorpusReport
from flashback.corpus.duplicates import Spool, Stored
from flashback.corpus.passages import Passage
from flashback.errors import CorpusError, IndexFolderError
from flashback.retrieval import analysis
from flashback.retrieval.index_folder import (
    Content,
    Manifest,
    new_version,
    publish,
    read_manifest,
    steadily,
)
from flashback.retrieval.index_settings import IndexSettings as IndexSettings
from flashback.retrieval.index_settings import settings_of
from flashback.retrieval.languages import Detection
from flashback.retrieval.protocol import Hit, check_search, storable
from flashback.retrieval.records import SAMPLED, hit_of, record_of, stored_of, text_of
from flashback.retrieval.tantivy_files import (
    open_without_writing,
    readable_damage,
    readable_errors,
    writing,
)
from flashback.settings import SearchOptions

KIND = "bm25"
NEAR_DUPLICATES = "near-duplicates.jsonl"
"""In an index's data folder: what was left out as near-identical, a line for each."""
_MAX_QUERY_TERMS = 1024
_SAMPLE = 256
"""Passages that stand for all of an index."""
_MOST_TIES = 4096
"""Equal scores at the end of what is asked for among which the order is looked at."""
_PAGE = 50_000
"""Passages that are listed at a time."""


Write = Callable[[Path, Spool, IndexSettings], dict[str, int]]
"""Writes passages into a data folder; the letters that were counted."""


def build_index(
    folder: Path,
    passages: Iterable[Passage],
    settings: IndexSettings,
    report: CorpusReport,
    *,
    overwrite: bool = False,
    on_passage: Callable[[], None] = lambda: None,
    tokens_of: str = "none",
    files: Callable[[], Mapping[str, bytes]] = dict,
    write: Write | None = None,
) -> Manifest:
    """Write a new index of `passages`, in bounded memory.

    Args:
        folder: where; it is whole or absent whatever happens meanwhile.
        report: filled while `passages` are produced; its counts go into the manifest.
        on_passage: called for every passage, for progress.
        tokens_of: the reader whose tokens limit passages.
        write: writes the files of the settings' kind, if that is not `bm25`.
        files: once all passages were taken, gives further files of the data folder, by name.

    Raises:
        CorpusError: there was not one passage.
        IndexFolderError: the folder is taken, or cannot be written.
        SettingsError: the language is to be detected, and an extra is not installed.
    """
    with readable_errors(folder), new_version(folder, overwrite=overwrite) as data:
        detection, written_by = Detection(settings), write or _write
        counts = fill(
            data,
            detection.watch(called(on_passage, passages)),
            settings,
            report,
            lambda data, spool, _: written_by(data, spool, detection.settings),
        )
        for name, written in files().items():
            (data / name).write_bytes(written)
        versions = versions_here()
        made, found = detection.settings, detection.found
        detected = None if found is None else asdict(found)
        content = Content(made.kind, counts, made.record(made.kind), versions, tokens_of, detected)
        return publish(folder, data, content)


def versions_here() -> dict[str, str]:
    """What an index is made with."""
    from importlib.metadata import version  # it takes a while, also for --help

    return {"tantivy": version("tantivy"), "python": platform.python_version()}


def called(on_passage: Callable[[], None], passages: Iterable[Passage]) -> Iterator[Passage]:
    """The same passages; `on_passage` is called for each."""
    for passage in passages:
        on_passage()
        yield passage


def fill(
    data: Path,
    passages: Iterable[Passage],
    settings: IndexSettings,
    report: CorpusReport,
    write: Write,
) -> dict[str, int]:
    """Write the data folder's files; what was counted.

    Args:
        write: writes those of the kind, and counts what is its own.
    """
    once, near = settings.deduplicate, settings.drop_near_duplicates
    with Spool(data / "spool", once=once, near=near) as spool:
        for passage in passages:
            spool.add(passage)
        if not spool.stored:
            raise CorpusError(nothing_found(report))
        letters = write(data, spool, settings)
        if spool.dropped:
            lines = (f"{line}\n" for line in spool.reasons())
            (data / NEAR_DUPLICATES).write_text("".join(lines), "utf-8")
        return {
            "documents": report.documents,
            "passages": spool.stored,
            "repeated_passages": spool.repeated,
            "near_duplicates": spool.dropped,
            "bad_records": report.bad_records,
            "ignored_files": report.ignored_files,
            "passages_read": spool.next_number,
            **letters,
        }


def _write(data: Path, spool: Spool, settings: IndexSettings) -> dict[str, int]:
    with writing(data, settings.language) as (_, writer):
        return write_records(writer, spool, spool.stored, settings.title)


def write_records(
    writer: tantivy.IndexWriter,
    passages: Iterable[Stored],
    count: int,
    titled: bool,
    before: int = 0,
) -> dict[str, int]:
    """Write passages; the letters that were counted.

    Args:
        count: how many there will be in the index, about.
        titled: the title is searched and shown.
        before: how many are in the index.
    """
    letters = unstemmed = 0
    every = max(1, -(-count // _SAMPLE))
    for number, stored in enumerate(passages, before):
        record, terms = record_of(stored, titled=titled, sampled=number % every == 0)
        writer.add_document(record)
        letters += analysis.letters(terms)
        unstemmed += analysis.without_stems(terms)
    writer.commit()
    return {"letters": letters, "letters_without_stems": unstemmed}


def nothing_found(report: CorpusReport) -> str:
    """Why a corpus gave no passage."""
    where = f" in {', '.join(report.names)}" if report.names else ""
    refused = f", bad records: {report.bad_records}" if report.bad_records else ""
    ignored = f", skipped files: {report.ignored_files}" if report.ignored_files else ""
    first = next(map(str, [*report.examples, *report.skipped]), "")
    reason = f"; the first: {first}" if first else ""
    return f"the corpus is empty: no passage was found{where}{refused}{ignored}{reason}"


class BM25Index:
    """An opened index; a `Retriever`. Safe to share between threads."""

    def __init__(self, folder: Path, manifest: Manifest, index: tantivy.Index) -> None:
        self.folder = folder
        self.manifest = manifest
        self._schema = index.schema
        self._searcher = index.searcher()
        self._analyzer = analysis.analyzer(settings_of(folder, manifest).language)

    @classmethod
    def open(cls, folder: str | Path) -> "BM25Index":
        """Open an index, memory-mapped: only what a search needs is read.

        Raises:
            IndexFolderError: missing, foreign, damaged or half-written.
        """
        return steadily(Path(folder), lambda: cls._open(Path(folder)))

    @classmethod
    def _open(cls, folder: Path) -> "BM25Index":
        manifest = read_manifest(folder)
        if manifest.content.kind != KIND:
            raise IndexFolderError(
                f"index {folder}: kind {manifest.content.kind!r}; expected {KIND!r}"
            )
        opened = cls(folder, manifest, open_without_writing(folder, manifest))
        expected = manifest.content.counts.get("passages")
        if opened._searcher.num_docs != expected:
            raise IndexFolderError(
                f"index {folder}: holds {opened._searcher.num_docs} passages, but its manifest "
                f"says {expected}; build it again"
            )
        return opened

    def __len__(self) -> int:
        return int(self._searcher.num_docs)

    @property
    def segments(self) -> int:
        """The parts that it is searched in."""
        return int(self._searcher.num_segments)

    @property
    def deleted(self) -> int:
        """Passages that were deleted and still take space, see `merge_index`."""
        stored = self.folder / self.manifest.data / "meta.json"
        with readable_damage(self.folder):
            parts = json.loads(stored.read_bytes())["segments"]
            return sum(int(part["max_doc"]) for part in parts) - len(self)

    def sample(self) -> list[str]:
        """The texts of up to 256 passages, spread evenly over the index.

        Raises:
            IndexFolderError: the index turns out to be damaged.
        """
        with readable_damage(self.folder):
            sampled = self._searcher.search(
                self._term(SAMPLED, SAMPLED), limit=_SAMPLE, count=False
            )
            # The samples may have been deleted.
            found = sampled.hits or self._searcher.search(tantivy.Query.all_query(), _SAMPLE).hits
            return [text_of(self._searcher.doc(at)) for _, at in found]

    def records(self) -> Iterator[Stored]:
        """All passages, in the order of the corpus.

        Raises:
            IndexFolderError: the index turns out to be damaged.
        """
        titled = settings_of(self.folder, self.manifest).title
        with readable_damage(self.folder):
            for at in self._addresses():
                yield stored_of(self._searcher.doc(at), titled=titled)

    def every(self) -> Iterator[Hit]:
        """Every stored passage, each as its first document has it; scores say nothing.

        Raises:
            IndexFolderError: the index turns out to be damaged.
        """
        with readable_damage(self.folder):
            for at in self._addresses():
                hit = self._hit(0.0, at, SearchOptions())
                assert hit is not None
                yield hit

    def _addresses(self) -> Iterator[tantivy.DocAddress]:
        """Of all passages, in the order of the corpus."""
        query, order = tantivy.Query.all_query(), tantivy.Order.Asc
        for start in range(0, len(self), _PAGE):
            page = self._searcher.search(query, _PAGE, False, "number", offset=start, order=order)
            for _, at in page.hits:
                yield at

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        """See `Retriever.search`. Queries are plain text; there is no query syntax.

        Raises:
            SettingsError: k is below 1, or `queries` is one text.
            IndexFolderError: the index turns out to be damaged.
        """
        check_search(queries, options)
        return [self._search_one(query, options) for query in queries]

    def _search_one(self, text: str, options: SearchOptions) -> list[Hit]:
        query = self._query(storable(text), options)
        if query is None or not len(self):
            return []
        limit = min(options.k, len(self))  # tantivy reserves memory for as many
        with readable_damage(self.folder):
            while True:
                best = self._best(query, limit)
                good = [(score, at) for score, at in best if score >= options.min_score]
                hits = [hit for one in good if (hit := self._hit(*one, options)) is not None]
                if len(hits) >= options.k or len(good) < limit or limit == len(self):
                    return hits[: options.k]
                limit = min(2 * limit, len(self))  # some are shared by forbidden documents alone

    def _best(self, query: tantivy.Query, limit: int) -> list[tuple[float, tantivy.DocAddress]]:
        """The best records; equal scores in the order of the corpus, whatever files they are in."""
        reach = limit + 1
        while True:
            found = self._searcher.search(query, limit=reach, count=False).hits
            is_cut = len(found) == reach and found[limit - 1][0] == found[-1][0]
            if not is_cut or reach > limit + _MOST_TIES:
                break
            reach = 2 * reach
        if len({score for score, _ in found}) < len(found):
            numbers = self._searcher.fast_field_values("number", [at for _, at in found])
            order = zip(found, numbers, strict=True)
            ranked = sorted(order, key=lambda one: (-one[0][0], one[1]))
            found = [one for one, _ in ranked]
        return found[:limit]

    def _query(self, text: str, options: SearchOptions) -> tantivy.Query | None:
        """The query for a text; None if it has no words."""
        terms = Counter(self._analyzer.analyze(analysis.terms(text, query=True)))
        if not terms:
            return None
        clauses = [
            (tantivy.Occur.Should, self._term("terms", term, float(count)))
            for term, count in terms.most_common(_MAX_QUERY_TERMS)
        ]
        # A boolean query of exclusions alone matches nothing, so the terms stand in their own.
        query = tantivy.Query.boolean_query(clauses)
        forbidden = [
            *(self._term("title", title) for title in options.forbid_titles),
            *(self._term("document", document) for document in options.forbid_documents),
        ]
        return query.and_must_not_match(*forbidden) if forbidden else query

    def _term(self, field: str, value: str, weight: float = 1.0) -> tantivy.Query:
        option = "freq" if field == "terms" else "basic"
        query = tantivy.Query.term_query(self._schema, field, storable(value), option)
        return query if weight == 1.0 else tantivy.Query.boost_query(query, weight)

    def _hit(self, score: float, at: tantivy.DocAddress, options: SearchOptions) -> Hit | None:
        return hit_of(self._searcher.doc(at), float(score), options)
