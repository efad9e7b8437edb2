"""BM25 over passages with tantivy: built streaming, memory-mapped when searched.

BM25 with k1 = 1.2 and b = 0.75 (Robertson and Zaragoza 2009), tantivy's constants. Text and queries
go through one analysis (`analysis.py`); what is shown is the text as it was.
"""

import contextlib
import platform
import sqlite3
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import tantivy

from flashback.corpus.documents import CorpusReport
from flashback.corpus.duplicates import Spool
from flashback.corpus.passages import DEFAULT_TOKENS, DEFAULT_WORDS, Passage
from flashback.errors import CorpusError, IndexFolderError, SettingsError
from flashback.files import temporary_folder
from flashback.retrieval import analysis
from flashback.retrieval.index_folder import (
    Content,
    Manifest,
    new_version,
    publish,
    read_manifest,
)
from flashback.retrieval.protocol import Hit, check_search, storable
from flashback.retrieval.records import SAMPLED, hit_of, record_of, schema, text_of
from flashback.settings import CheckedSettings, SearchOptions, setting

KIND = "bm25"
NEAR_DUPLICATES = "near-duplicates.jsonl"
"""In an index's data folder: what was left out as near-identical, a line for each."""
_HEAP_BYTES = 128_000_000
_MAX_QUERY_TERMS = 1024
_SAMPLE = 256
"""Passages that stand for all of an index."""


@dataclass(frozen=True)
class IndexSettings(CheckedSettings):
    """How passages are made and indexed."""

    passage_words: int = setting(DEFAULT_WORDS, "Words per passage at most.", low=1, high=100_000)
    passage_tokens: int = setting(
        DEFAULT_TOKENS,
        "m: tokens per passage at most, its title included, so that a reader can show all of it.",
        low=1,
        high=100_000,
    )
    title: bool = setting(True, "Make the title part of the passage: searched, and shown.")
    deduplicate: bool = setting(
        True, "Store passages once whose title and text are equal; their documents stay findable."
    )
    drop_near_duplicates: bool = setting(
        False,
        "Leave out, and list, near-identical passages, too: at least 0.9 of their 3-word sequences "
        "are the same, title, numbers and symbols are equal, and no word differs that may deny.",
    )

    overlap: int = setting(
        0,
        "Words at the end of a passage that the next one repeats; characters in scripts without "
        "spaces between words.",
        low=0,
        high=100_000,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.overlap >= self.passage_words:
            raise SettingsError(
                f"--overlap={self.overlap}: expected less than --passage-words, which is "
                f"{self.passage_words}"
            )
        if self.drop_near_duplicates and not self.deduplicate:
            raise SettingsError(
                "--drop-near-duplicates=True with --deduplicate=False: equal passages cannot be "
                "kept where similar ones are left out; give one of the two"
            )


def build_index(
    folder: Path,
    passages: Iterable[Passage],
    settings: IndexSettings,
    report: CorpusReport,
    *,
    overwrite: bool = False,
    on_passage: Callable[[], None] = lambda: None,
) -> Manifest:
    """Write a new index of `passages`, in bounded memory.

    Args:
        folder: where; it is whole or absent whatever happens meanwhile.
        report: filled while `passages` are produced; its counts go into the manifest.
        on_passage: called for every passage, for progress.

    Raises:
        CorpusError: there was not one passage.
        IndexFolderError: the folder is taken, or cannot be written.
    """
    with readable_errors(folder), new_version(folder, overwrite=overwrite) as data:
        counts = _fill(data, called(on_passage, passages), settings, report)
        versions = {"tantivy": version("tantivy"), "python": platform.python_version()}
        content = Content(KIND, counts, asdict(settings), versions)
        return publish(folder, data, content)


def called(on_passage: Callable[[], None], passages: Iterable[Passage]) -> Iterator[Passage]:
    """The same passages; `on_passage` is called for each."""
    for passage in passages:
        on_passage()
        yield passage


def _fill(
    data: Path, passages: Iterable[Passage], settings: IndexSettings, report: CorpusReport
) -> dict[str, int]:
    """Write the data folder's files; what was counted."""
    once, near = settings.deduplicate, settings.drop_near_duplicates
    with Spool(data / "spool", once=once, near=near) as spool:
        with _writing(data) as writer:
            for passage in passages:
                spool.add(passage)
            if not spool.stored:
                raise CorpusError(nothing_found(report))
            letters = _write(writer, spool, settings)
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
            **letters,
        }


def _write(writer: tantivy.IndexWriter, spool: Spool, settings: IndexSettings) -> dict[str, int]:
    """Write what was collected; the letters that were counted."""
    letters = unstemmed = 0
    every = -(-spool.stored // _SAMPLE)
    for number, stored in enumerate(spool):
        sampled = number % every == 0
        record, terms = record_of(stored, titled=settings.title, sampled=sampled)
        writer.add_document(record)
        letters += len(terms) - terms.count(" ")
        unstemmed += analysis.without_stems(terms)
    writer.commit()
    return {"letters": letters, "letters_without_stems": unstemmed}


@contextlib.contextmanager
def readable_errors(folder: Path) -> Iterator[None]:
    """A full disk in one line; tantivy reports every failure of its files as a ValueError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise IndexFolderError(f"index {folder} cannot be written: {reason}") from error
    except (ValueError, sqlite3.Error) as error:
        raise IndexFolderError(
            f"index {folder} cannot be written: {error} (is the disk full?)"
        ) from error


@contextlib.contextmanager
def _writing(data: Path) -> Iterator[tantivy.IndexWriter]:
    """A writer whose threads have ended when the block is left, so that none writes any more."""
    index = tantivy.Index(schema(), path=str(data))
    index.register_tokenizer(analysis.NAME, analysis.analyzer())
    # One thread: equal scores are ranked alike in every build, and a failure leaves none running.
    writer = index.writer(_HEAP_BYTES, num_threads=1)
    try:
        yield writer
    finally:
        writer.wait_merging_threads()


def nothing_found(report: CorpusReport) -> str:
    """Why a corpus gave no passage."""
    refused = f", {report.bad_records} bad records" if report.bad_records else ""
    ignored = f", {report.ignored_files} files that were skipped" if report.ignored_files else ""
    first = f"; the first: {report.examples[0]}" if report.examples else ""
    return f"the corpus is empty: no passage was found{refused}{ignored}{first}"


@contextlib.contextmanager
def _readable_damage(folder: Path) -> Iterator[None]:
    """Damaged data in one line; tantivy reports it as a ValueError, or panics."""
    try:
        yield
    except BaseException as error:
        # A Rust panic is a BaseException of a class that cannot be imported.
        if isinstance(error, ValueError | OSError) or type(error).__name__ == "PanicException":
            reason = textwrap.shorten(str(error), 200)  # it may quote a whole file
            raise IndexFolderError(
                f"index {folder}: damaged ({reason}); build it again with `flashback index`"
            ) from error
        raise


def _open_without_writing(folder: Path, manifest: Manifest) -> tantivy.Index:
    """Open the data of an index that may be read-only.

    tantivy creates lock files beside what it opens, at times from a thread that watches the folder;
    it gets a folder of links to do so. What it has mapped stays mapped when that folder goes.
    """
    with temporary_folder() as links, _readable_damage(folder):
        for name in manifest.files:
            if not name.endswith(".lock"):
                (links / name).symlink_to((folder / manifest.data / name).resolve())
        index = tantivy.Index.open(str(links))
        index.register_tokenizer(analysis.NAME, analysis.analyzer())
        index.config_reader(reload_policy="manual")  # maps the files; nothing is reloaded later
        index.searcher()
        return index


class BM25Index:
    """An opened index; a `Retriever`. Safe to share between threads."""

    def __init__(self, folder: Path, manifest: Manifest, index: tantivy.Index) -> None:
        self.folder = folder
        self.manifest = manifest
        self._schema = index.schema
        self._searcher = index.searcher()
        self._analyzer = analysis.analyzer()

    @classmethod
    def open(cls, folder: str | Path) -> "BM25Index":
        """Open an index, memory-mapped: only what a search needs is read.

        Raises:
            IndexFolderError: missing, foreign, damaged or half-written.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        if manifest.content.kind != KIND:
            raise IndexFolderError(
                f"index {folder}: kind {manifest.content.kind!r}; expected {KIND!r}"
            )
        opened = cls(folder, manifest, _open_without_writing(folder, manifest))
        expected = manifest.content.counts.get("passages")
        if opened._searcher.num_docs != expected:
            raise IndexFolderError(
                f"index {folder}: holds {opened._searcher.num_docs} passages, but its manifest "
                f"says {expected}; build it again"
            )
        return opened

    def __len__(self) -> int:
        return int(self._searcher.num_docs)

    def sample(self) -> list[str]:
        """The texts of up to 256 passages, spread evenly over the index.

        Raises:
            IndexFolderError: the index turns out to be damaged.
        """
        with _readable_damage(self.folder):
            query = self._term(SAMPLED, SAMPLED)
            found = self._searcher.search(query, limit=_SAMPLE, count=False).hits
            return [text_of(self._searcher.doc(at)) for _, at in found]

    def every(self) -> Iterator[Hit]:
        """Every stored passage, in no order, each as its first document has it; scores say nothing.

        Raises:
            IndexFolderError: the index turns out to be damaged.
        """
        with _readable_damage(self.folder):
            query = tantivy.Query.all_query()
            for _, at in self._searcher.search(query, limit=len(self), count=False).hits:
                hit = self._hit(0.0, at, SearchOptions())
                assert hit is not None
                yield hit

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
        if query is None:
            return []
        limit = min(options.k, len(self))  # tantivy reserves memory for as many
        with _readable_damage(self.folder):
            while True:
                best = self._searcher.search(query, limit=limit, count=False).hits
                good = [(score, at) for score, at in best if score >= options.min_score]
                hits = [hit for one in good if (hit := self._hit(*one, options)) is not None]
                if len(hits) >= options.k or len(good) < limit or limit == len(self):
                    return hits[: options.k]
                limit = min(2 * limit, len(self))  # some are shared by forbidden documents alone

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
