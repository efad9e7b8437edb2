"""Stored passages by number, in an SQLite file: what stands beside vectors."""

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from flashback.corpus.duplicates import Stored, owner_of
from flashback.retrieval.protocol import Hit
from flashback.retrieval.records import hit_among, shown_of
from flashback.settings import SearchOptions

_TABLE = "CREATE TABLE passage (number INTEGER PRIMARY KEY, title, text, owners)"
_ROW = "SELECT title, text, owners FROM passage WHERE number = ?"


def write_passages(file: Path, passages: Iterable[Stored], *, titled: bool) -> None:
    """Write passages, numbered from 0, into a new file.

    Raises:
        sqlite3.Error: the disk is full.
    """
    db = sqlite3.connect(file, isolation_level=None)
    try:
        db.executescript(f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; {_TABLE}; BEGIN")
        rows = (_row(number, one, titled) for number, one in enumerate(passages))
        db.executemany("INSERT INTO passage VALUES (?, ?, ?, ?)", rows)
        db.execute("COMMIT")
    finally:
        db.close()


def _row(number: int, stored: Stored, titled: bool) -> tuple[int, str, str, str]:
    owners = json.dumps([owner.row() for owner in stored.owners])
    return number, stored.passage.title, shown_of(stored.passage, titled=titled), owners


class PassageStore:
    """An opened file; only what is asked for is read. Safe to share between threads."""

    def __init__(self, file: Path) -> None:
        """Open a file, which stays usable when it is removed.

        Raises:
            sqlite3.Error: it is no such file.
        """
        name = f"{file.absolute().as_uri()}?mode=ro&immutable=1"
        self._db = sqlite3.connect(name, uri=True, check_same_thread=False)
        self._db.execute("PRAGMA trusted_schema = OFF")
        self._lock = threading.Lock()
        with self._lock:
            (self._size,) = self._db.execute("SELECT count(*) FROM passage").fetchone()

    def __len__(self) -> int:
        return int(self._size)

    def hit(self, number: int, score: float, options: SearchOptions) -> Hit | None:
        """A passage as the first document has it that is not forbidden; None if all are."""
        with self._lock:
            title, text, owners = self._db.execute(_ROW, [number]).fetchone()
        if title in options.forbid_titles:
            return None
        return hit_among(map(owner_of, json.loads(owners)), title, text, score, options)

    def texts(self, numbers: Sequence[int]) -> Iterator[str]:
        """The texts of passages as a reader gets them."""
        for number in numbers:
            with self._lock:
                (_, text, _) = self._db.execute(_ROW, [number]).fetchone()
            yield text
