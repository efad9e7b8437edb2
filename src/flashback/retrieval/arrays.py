"""BM25 with k1 and b of one's own, built once, with bm25s: scores in arrays that are memory-mapped.

The formula is Lucene's, without the factor k1 + 1 that `bm25.py` has, and with exact lengths. All
terms of a corpus are in memory while it is built: about 3.5 GB for a million passages.
"""

import itertools
import json
import mmap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flashback.corpus.duplicates import Stored, owner_of
from flashback.errors import FlashBackError, IndexFolderError
from flashback.retrieval import analysis
from flashback.retrieval.index_folder import Manifest, read_manifest, steadily
from flashback.retrieval.index_settings import IndexSettings, settings_of
from flashback.retrieval.protocol import Hit, check_search, storable
from flashback.retrieval.records import hit_among, shown_of, terms_of
from flashback.settings import SearchOptions

if TYPE_CHECKING:
    from bm25s import BM25

KIND = "bm25s"
_RECORDS, _ENDS = "passages.jsonl", "ends.npy"
_MAX_QUERY_TERMS = 1024
_SAMPLE = 256


def _library() -> Any:
    try:
        import bm25s
    except ImportError as error:
        raise FlashBackError(
            "indexes of kind 'bm25s' need bm25s; pip install '.[bm25s]' in a clone of the project"
        ) from error
    return bm25s


def write_arrays(data: Path, passages: Iterable[Stored], settings: IndexSettings) -> dict[str, int]:
    """Write the files of an index; the letters that were counted."""
    library = _library()
    analyzer = analysis.analyzer(settings.language)
    vocabulary: dict[str, int] = {}
    ids: list[list[int]] = []
    ends = [0]
    letters = unstemmed = 0
    with open(data / _RECORDS, "wb") as file:
        for stored in passages:
            owners = [owner.row() for owner in stored.owners]
            shown = shown_of(stored.passage, titled=settings.title)
            line = json.dumps([owners, stored.passage.title, shown]).encode() + b"\n"
            ends.append(ends[-1] + file.write(line))
            terms = terms_of(stored.passage, titled=settings.title)
            found = analyzer.analyze(terms)
            ids.append([vocabulary.setdefault(term, len(vocabulary)) for term in found])
            letters += analysis.letters(terms)
            unstemmed += analysis.without_stems(terms)
    if not vocabulary:  # the library needs a term
        ids[0].append(vocabulary.setdefault("", 0))
    np.save(data / _ENDS, np.array(ends, np.int64), allow_pickle=False)
    scored = library.BM25(k1=settings.k1, b=settings.b, method="lucene")
    scored.index((ids, vocabulary), create_empty_token=False, show_progress=False)
    scored.save(data, show_progress=False)
    return {"letters": letters, "letters_without_stems": unstemmed}


class ArrayIndex:
    """An opened index of kind `bm25s`; a `Retriever`. Safe to share between threads."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Map the files of a version, see `open`."""
        library, data = _library(), folder / manifest.data
        self.folder, self.manifest = folder, manifest
        self._analyzer = analysis.analyzer(settings_of(folder, manifest).language)
        try:
            self._scored: BM25 = library.BM25.load(data, mmap=True, show_progress=False)
            self._ends = np.load(data / _ENDS, mmap_mode="r", allow_pickle=False)
            with open(data / _RECORDS, "rb") as file:
                self._records = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            sizes = (len(self), int(self._scored.scores["num_docs"]), int(self._ends[-1]))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, OSError) as error:
            raise IndexFolderError(
                f"index {folder}: damaged ({error}); build it again with `flashback index`"
            ) from error
        passages = manifest.content.counts.get("passages")
        if sizes != (passages, passages, len(self._records)):
            raise IndexFolderError(
                f"index {folder}: holds {sizes[0]} passages, but its manifest says {passages}; "
                "build it again"
            )

    @classmethod
    def open(cls, folder: str | Path) -> "ArrayIndex":
        """Open an index, memory-mapped.

        Raises:
            IndexFolderError: missing, foreign, damaged or half-written.
            FlashBackError: bm25s is not installed.
        """
        folder = Path(folder)
        return steadily(folder, lambda: cls(folder, read_manifest(folder)))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def sample(self) -> list[str]:
        """The texts of up to 256 passages, spread evenly over the index."""
        every = max(1, -(-len(self) // _SAMPLE))
        return [self._record(place)[2] for place in range(0, len(self), every)]

    def every(self) -> Iterator[Hit]:
        """Every stored passage, each as its first document has it; scores say nothing."""
        for place in range(len(self)):
            hit = self._hit(place, 0.0, SearchOptions())
            assert hit is not None
            yield hit

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        """See `Retriever.search`. Queries are plain text; there is no query syntax.

        Raises:
            SettingsError: k is below 1, or `queries` is one text.
        """
        check_search(queries, options)
        return [list(itertools.islice(self._hits(query, options), options.k)) for query in queries]

    def _hits(self, text: str, options: SearchOptions) -> Iterator[Hit]:
        """All hits of a query, best first; equal scores in the order of the corpus."""
        found = self._analyzer.analyze(analysis.terms(storable(text), query=True))
        known = [term for term in found if term in self._scored.vocab_dict][:_MAX_QUERY_TERMS]
        if not known:
            return
        scores = self._scored.get_scores(known)
        for place in _best_first(scores, options.k):
            score = float(scores[place])
            if score < options.min_score:
                return
            hit = self._hit(int(place), score, options)
            if hit is not None and hit.title not in options.forbid_titles:
                yield hit

    def _hit(self, place: int, score: float, options: SearchOptions) -> Hit | None:
        owners, title, shown = self._record(place)
        return hit_among(map(owner_of, owners), title, shown, score, options)

    def _record(self, place: int) -> Any:
        """Owners, title and text of a passage."""
        start, end = self._ends[place : place + 2]
        try:
            return json.loads(self._records[start:end])
        except ValueError as error:
            raise IndexFolderError(
                f"index {self.folder}: damaged ({error}); build it again with `flashback index`"
            ) from error


def _best_first(scores: np.ndarray, k: int) -> Iterator[int]:
    """The places of positive scores (N,), k at a time, best first and equal ones in order."""
    count, done = int(np.count_nonzero(scores > 0)), 0
    reach = min(k, count)
    while done < count:
        least = np.partition(scores, len(scores) - reach)[len(scores) - reach]
        places = np.flatnonzero(scores >= least)
        ranked = places[np.argsort(-scores[places], kind="stable")]
        yield from ranked[done:].tolist()
        done, reach = len(ranked), min(2 * len(ranked), count)
