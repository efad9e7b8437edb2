"""Build, open, search and change a large index of spliced passages, and print what it costs.

    python scripts/large_index.py docs_passages.jsonl.gz --documents 320000

Documents are spliced of pieces of ten words of real ones, drawn at random: words are as frequent as
there, and no two passages are equal. The index is built by `flashback index` in a process
of its own, with `--model none`; a document makes three or four passages. Queries are 32
words in a row of documents. The folder (--folder) keeps the corpus and the index.
"""

import argparse
import gzip
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from flashback.retrieval.bm25 import BM25Index
from flashback.retrieval.indexing import index_corpus
from flashback.retrieval.live import LiveIndex
from flashback.retrieval.updating import add_documents, delete_documents, merge_index
from flashback.settings import SearchOptions

WORDS, ADDED = 32, 1000


def real_texts(path: Path) -> list[list[str]]:
    """The words of the texts of a corpus."""
    data = path.read_bytes()
    lines = (gzip.decompress(data) if path.suffix == ".gz" else data).splitlines()
    return [json.loads(line)["text"].split() for line in lines]


def splice(texts: list[list[str]], rng: random.Random) -> str:
    """About 100 words: pieces of ten words of texts drawn at random."""
    pieces: list[str] = []
    for words in rng.choices(texts, k=10):
        start = rng.randrange(len(words) - 10)
        pieces += words[start : start + 10]
    return " ".join(pieces)


def write(path: Path, texts: list[list[str]], count: int, name: str) -> None:
    rng = random.Random(name)
    with open(path, "w") as file:
        for number in range(count):
            record = {"id": f"{name}{number}", "text": splice(texts, rng)}
            file.write(json.dumps(record) + "\n")


def seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def build(corpus: Path, index: Path) -> str:
    """Build in a process of its own: seconds, CPU seconds, memory."""
    command = [sys.executable, "-m", "flashback", "index", str(corpus), "--out", str(index)]
    wall = seconds(lambda: subprocess.run([*command, "--model", "none"], check=True))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (
        f"{wall:.0f} s, {used.ru_utime + used.ru_stime:.0f} s of CPU, at most "
        f"{used.ru_maxrss / 1e6:.2f} GB resident"
    )


def latencies(index: BM25Index, queries: list[str], k: int) -> str:
    """Of single queries: by the clock, and in time of the processor."""
    options = SearchOptions(k=k)
    index.search(queries[:20], options)
    found = []
    for clock in (time.perf_counter, time.process_time):
        times = []
        for query in queries:
            began = clock()
            index.search([query], options)
            times.append(1000 * (clock() - began))
        times.sort()
        p50, p95 = statistics.median(times), times[len(times) * 19 // 20]
        found.append(f"p50 {p50:.2f} ms, p95 {p95:.2f} ms")
    return f"{found[0]} ({found[1]} of CPU)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("corpus", type=Path, help="JSON lines with `text`, which may be gzipped.")
    parser.add_argument("--documents", type=int, default=320_000)
    parser.add_argument("--folder", type=Path, default=Path("build/large-index"))
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--merge", action="store_true", help="Measure `index merge`, too.")
    options = parser.parse_args()
    folder, rng = options.folder, random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    texts = [words for words in real_texts(options.corpus) if len(words) >= 2 * WORDS]
    corpus, added, index = (folder / name for name in ("corpus.jsonl", "added.jsonl", "IDX"))
    write(added, texts, ADDED, "added")
    print(f"load: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    if not index.exists():
        write(corpus, texts, options.documents, "spliced")
        print(f"build: {build(corpus, index)}", flush=True)
    opened = BM25Index.open(index)
    print(
        f"{len(opened):,} passages, {opened.manifest.bytes / 1e6:.0f} MB, {opened.segments} parts"
    )
    print(f"open: {1000 * seconds(lambda: BM25Index.open(index)):.0f} ms", flush=True)
    drawn = (rng.choice(texts) for _ in range(options.queries))
    starts = ((words, rng.randrange(len(words) - WORDS)) for words in drawn)
    queries = [" ".join(words[start : start + WORDS]) for words, start in starts]
    for k in (1, 10):
        print(f"{WORDS} words, k={k}: {latencies(opened, queries, k)}", flush=True)
    live = LiveIndex(index)
    for name in ("add", "replace"):
        taken = seconds(lambda: add_documents(added, index))
        seen = seconds(live.renew)
        print(f"{name} {ADDED} documents: {taken:.2f} s, seen {seen:.2f} s later", flush=True)
    gone = [f"added{number}" for number in range(ADDED)]
    print(f"delete {ADDED} documents: {seconds(lambda: delete_documents(gone, index)):.2f} s")
    if options.merge:
        print(f"merge: {seconds(lambda: merge_index(index)):.0f} s", flush=True)
    small = folder / "small"
    taken = seconds(lambda: index_corpus(added, small, overwrite=True))
    print(f"for comparison, an index of these {ADDED} documents alone: {taken:.2f} s")


if __name__ == "__main__":
    main()
