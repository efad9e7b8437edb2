"""Kill a program that changes an index at random moments, and look at what it leaves.

    python scripts/kill_changes.py FOLDER --kills 50

In FOLDER, which must be new, an index of many documents is built, and texts are written. Then a
child process adds, synchronises and merges, round after round, and says what it has committed; it
is killed at a random moment. Whatever that is, the index must open, verify, hold one whole round,
and none before the last one that was said to be committed. Prints a line for each kill.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from flashback.retrieval.bm25 import BM25Index
from flashback.retrieval.index_folder import verify
from flashback.retrieval.indexing import index_corpus
from flashback.retrieval.updating import add_documents, merge_index, sync_index
from flashback.settings import SearchOptions

DOCUMENTS, FILES, CHANGED = 20_000, 300, 40
ACTIONS = ("add", "sync", "merge")


def words(seed: object, count: int) -> str:
    rng = random.Random(f"{seed}")
    return " ".join(f"word{rng.randrange(9000)}" for _ in range(count))


def write_records(path: Path, names: range, mark: str) -> None:
    lines = (
        json.dumps({"id": f"r{name}", "text": f"{mark} {words((mark, name), 12)}"}) + "\n"
        for name in names
    )
    path.write_text("".join(lines))


def write_round(folder: Path, number: int) -> None:
    """Some texts and records, all with the mark of a round."""
    for name in range(CHANGED):
        (folder / "texts" / f"{name}.txt").write_text(f"synced{number} {words((number, name), 12)}")
    write_records(folder / "added.jsonl", range(CHANGED), f"added{number}")


def begin(folder: Path) -> None:
    (folder / "texts").mkdir(parents=True)
    write_records(folder / "records.jsonl", range(CHANGED, DOCUMENTS), "old")
    for name in range(FILES):
        (folder / "texts" / f"{name}.txt").write_text(words(name, 12))
    write_round(folder, 0)
    names = [folder / "records.jsonl", folder / "texts", folder / "added.jsonl"]
    index_corpus(names, folder / "IDX")


def change(folder: Path, number: int) -> None:
    """The child: rounds from this one on, and a line for each thing that was committed."""
    while True:
        write_round(folder, number)
        add_documents(folder / "added.jsonl", folder / "IDX")
        print(f"added {number}", flush=True)
        sync_index(folder / "texts", folder / "IDX")
        print(f"synced {number}", flush=True)
        if number % 3 == 0:
            merge_index(folder / "IDX")
            print(f"merged {number}", flush=True)
        number += 1


def round_of(index: BM25Index, mark: str, least: int) -> int:
    """The one round whose documents are all there, and no others of that mark."""
    rounds = range(max(0, least - 1), least + 3)
    queries = [f"{mark}{number}" for number in rounds]
    found = [len(hits) for hits in index.search(queries, SearchOptions(k=CHANGED + 1))]
    if sorted(found)[-2:] != [0, CHANGED]:
        raise SystemExit(f"{mark}: expected {CHANGED} documents of one round, found {found}")
    return rounds[found.index(CHANGED)]


def kill_once(folder: Path, seconds: float, rounds: dict[str, int]) -> str:
    """Kill a child so long after its first commit; the rounds that are there go into `rounds`."""
    first = max(rounds.values()) + 1
    command = [sys.executable, __file__, str(folder), "--from", str(first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        said = [child.stdout.readline()]
        time.sleep(seconds)
        child.send_signal(signal.SIGKILL)
        said += child.stdout.readlines()
    committed = dict(rounds)
    for line in said:
        action, number = line.split()
        committed[action] = int(number)
    verify(folder / "IDX")
    index = BM25Index.open(folder / "IDX")
    if len(index) != DOCUMENTS + FILES:
        raise SystemExit(f"expected {DOCUMENTS + FILES} passages, found {len(index)}")
    for mark in ("added", "synced"):
        rounds[mark] = round_of(index, mark, committed[mark])
        if rounds[mark] < committed[mark]:
            raise SystemExit(f"{mark}: round {committed[mark]} was committed and is lost")
    return f"after {said[-1].strip()!r}: {rounds}, {index.segments} segments"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--from", dest="number", type=int)
    options = parser.parse_args()
    if options.number is not None:
        change(options.folder, options.number)
    begin(options.folder)
    rng, rounds = random.Random(0), {"added": 0, "synced": 0}
    for kill in range(1, options.kills + 1):
        print(f"kill {kill}: {kill_once(options.folder, rng.uniform(0, 6), rounds)}", flush=True)
    print(f"{options.kills} kills: every index opened and verified, nothing committed was lost")


if __name__ == "__main__":
    main()
