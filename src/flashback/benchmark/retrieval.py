"""Building, opening and searching an index, timed on the user's own corpus."""

import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial

from flashback.benchmark.harness import timed
from flashback.benchmark.report import Report
from flashback.corpus.documents import CorpusReport
from flashback.corpus.passages import cut_documents
from flashback.declared import CheckedSettings, setting
from flashback.errors import CorpusError
from flashback.files import temporary_folder
from flashback.retrieval.bm25 import BM25Index, IndexSettings
from flashback.retrieval.indexing import index_corpus, open_corpus
from flashback.settings import SearchOptions


@dataclass(frozen=True)
class RetrievalBenchSettings(CheckedSettings):
    """Settings of `bench retrieval`: number of searches, length of queries."""

    queries: int = setting(500, "Queries, each a seeded piece of the corpus.", low=10, high=1 << 20)
    query_words: int = setting(24, "Words per query; 24 are about 32 tokens.", low=1, high=1000)


@dataclass(frozen=True)
class Latency:
    """Milliseconds of single queries."""

    k: int
    p50: float
    p95: float


@dataclass(frozen=True)
class RetrievalFigures:
    """The costs of indexing and searching one corpus."""

    passages: int
    build_seconds: float
    """Reading, cutting, deduplicating and indexing the corpus."""
    passages_per_second: float
    index_megabytes: float
    open_milliseconds: float
    latencies: tuple[Latency, ...]
    peak_resident_megabytes: float
    """The most memory this process had, Python and libraries included, child processes not."""

    def report(self) -> Report:
        """The figures for people and for programs."""
        return Report(
            asdict(self),
            notes=(
                f"{self.passages:,} passages in {self.build_seconds:.1f} s "
                f"({self.passages_per_second:,.0f}/s), {self.index_megabytes:.1f} MB, opened in "
                f"{self.open_milliseconds:.1f} ms",
                *(
                    f"k={one.k}: p50 {one.p50:.2f} ms, p95 {one.p95:.2f} ms"
                    for one in self.latencies
                ),
                f"peak resident memory {self.peak_resident_megabytes:.0f} MB",
            ),
        )


def measure_retrieval(corpus: Sequence[str], settings: RetrievalBenchSettings) -> RetrievalFigures:
    """Index `corpus` into a temporary folder, open it and search it.

    Raises:
        CorpusError: the corpus is missing, unreadable or empty.
    """
    if "-" in corpus:
        raise CorpusError("corpus -: standard input cannot be read twice; name files or folders")
    with temporary_folder() as folder:
        target = folder / "index"
        build, manifest = timed(
            lambda: index_corpus(corpus, target, IndexSettings(), CorpusReport())
        )
        opening, index = timed(lambda: BM25Index.open(target))
        queries = _queries(corpus, settings)
        if len(queries) < 2:
            raise CorpusError("the corpus has one passage; expected at least 2 to search for")
        latencies = tuple(_latency(index, queries, k) for k in (1, 10))
        return RetrievalFigures(
            passages=len(index),
            build_seconds=build,
            passages_per_second=len(index) / build,
            index_megabytes=manifest.bytes / 1e6,
            open_milliseconds=1000 * opening,
            latencies=latencies,
            peak_resident_megabytes=_peak_megabytes(),
        )


def _queries(corpus: Sequence[str], settings: RetrievalBenchSettings) -> list[str]:
    """Pieces of seeded passages, as the last tokens of a context would be (reservoir sampling)."""
    generator = random.Random(0)
    kept: list[str] = []
    passages = cut_documents(open_corpus(corpus, CorpusReport()).read(lambda _: None))
    for number, passage in enumerate(passages):
        place = number if number < settings.queries else generator.randrange(number + 1)
        if place < settings.queries:
            kept[place : place + 1] = [passage.text]
    starts = (generator.randrange(max(1, len(t.split()) - settings.query_words)) for t in kept)
    return [
        " ".join(text.split()[start : start + settings.query_words])
        for text, start in zip(kept, starts, strict=True)
    ]


def _latency(index: BM25Index, queries: Sequence[str], k: int) -> Latency:
    options = SearchOptions(k=k)
    index.search(queries[:10], options)  # map the files
    seconds = [timed(partial(index.search, [query], options))[0] for query in queries]
    cuts = statistics.quantiles(seconds, n=20)
    return Latency(k, 1000 * statistics.median(seconds), 1000 * cuts[-1])


def _peak_megabytes() -> float:
    import resource  # not on every system

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
