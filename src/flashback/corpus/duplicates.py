"""Passages on their way into an index: equal ones once, with every document that has them.

Two passages are equal if their titles and their texts are, after white space. What is only similar
is kept, unless asked otherwise. Passages wait in a temporary SQLite database that spills to disk.
"""

import json
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass
from hashlib import blake2b
from typing import Self

from rensa import RMinHash

from flashback.corpus.passages import Passage

SIMILAR = 0.9
"""The least Jaccard similarity of the 3-word shingles of near-identical texts."""
_BANDS, _ROWS = 4, 16
_MOST_CANDIDATES = 16
_WORD = re.compile(r"[^\W\d_]+")
_COUNTS_OR_DENIES = re.compile(
    r"\b(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|"
    r"fifteen|sixteen|seventeen|eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|"
    r"ninety|hundred|thousand|million|billion|first|second|third|fourth|fifth|sixth|seventh|eighth|"
    r"ninth|tenth|once|twice|half|quarter|double|single|both|none|no|not|never|without)\b"
)
_TABLES = """
CREATE TABLE passage (number INTEGER PRIMARY KEY, id, document, title, text, heading);
CREATE TABLE known (key BLOB PRIMARY KEY, number INTEGER) WITHOUT ROWID;
CREATE TABLE copy (number INTEGER, id, document, UNIQUE (number, document));
CREATE TABLE band (band INTEGER, number INTEGER, PRIMARY KEY (band, number)) WITHOUT ROWID;
CREATE TABLE dropped (record)
"""


@dataclass(frozen=True)
class Stored:
    """A passage that is stored once."""

    passage: Passage
    copies: tuple[tuple[str, str], ...]
    """Id and document id of its first copy in each other document, in the order of the corpus."""


@dataclass(frozen=True)
class Dropped:
    """A passage that was left out because of a similar one."""

    id: str
    document_id: str
    title: str
    similar_to: str
    """The id of the passage that was kept."""
    similarity: float


class Spool:
    """Collects passages; then gives them in the order of the corpus."""

    def __init__(self, *, once: bool, near: bool) -> None:
        """Begin empty.

        Args:
            once: store equal passages once.
            near: leave out near-identical ones, too: of the same title, the same numbers (also as
                English words), negations and symbols in the same order, and words `SIMILAR` enough.
        """
        self._once, self._near = once, near
        self.stored = self.repeated = self.dropped = 0
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.executescript(f"PRAGMA journal_mode = OFF; {_TABLES}; BEGIN")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def add(self, passage: Passage) -> None:
        """Take a passage, or note that it is a copy."""
        if self._once and self._is_copy(passage):
            self.repeated += 1
            return
        if self._near and (dropped := self._similar(passage)) is not None:
            self._db.execute("INSERT INTO dropped VALUES (?)", [json.dumps(asdict(dropped))])
            self.dropped += 1
            return
        self.stored += 1
        row = (self.stored, *astuple(passage))
        self._db.execute("INSERT INTO passage VALUES (?, ?, ?, ?, ?, ?)", row)

    def __iter__(self) -> Iterator[Stored]:
        copies = "SELECT id, document FROM copy WHERE number = ? AND document != ? ORDER BY rowid"
        for number, *values in self._db.execute("SELECT * FROM passage ORDER BY number"):
            passage = Passage(*values)
            found = self._db.execute(copies, (number, passage.document_id))
            yield Stored(passage, tuple(found))

    def reasons(self) -> Iterator[str]:
        """A line of JSON (`Dropped`) for every passage that was left out as near-identical."""
        return (line for (line,) in self._db.execute("SELECT record FROM dropped"))

    def _is_copy(self, passage: Passage) -> bool:
        """Whether an equal passage is stored; remembers this one."""
        parts = (" ".join(part.split()) for part in (passage.title, passage.text))
        key = blake2b("\0".join(parts).encode(), digest_size=16).digest()
        row = self._db.execute("SELECT number FROM known WHERE key = ?", [key]).fetchone()
        if row is None:
            self._db.execute("INSERT INTO known VALUES (?, ?)", (key, self.stored + 1))
            return False
        copy = (row[0], passage.id, passage.document_id)
        self._db.execute("INSERT OR IGNORE INTO copy VALUES (?, ?, ?)", copy)
        return True

    def _similar(self, passage: Passage) -> Dropped | None:
        """Why a passage is left out, if it is; remembers it, if it is not."""
        bands = _bands(passage)
        query = f"SELECT number FROM band WHERE band = ? LIMIT {_MOST_CANDIDATES}"
        for number in {one for band in bands for (one,) in self._db.execute(query, [band])}:
            found = "SELECT id, document, title, text FROM passage WHERE number = ?"
            other = Passage(*self._db.execute(found, [number]).fetchone())
            if (similarity := similarity_of(passage, other)) >= SIMILAR:
                names = (passage.id, passage.document_id, passage.title)
                return Dropped(*names, other.id, round(similarity, 4))
        marks = [(band, self.stored + 1) for band in bands]
        self._db.executemany("INSERT OR IGNORE INTO band VALUES (?, ?)", marks)
        return None


def similarity_of(passage: Passage, other: Passage) -> float:
    """Jaccard similarity of the 3-word shingles; 0 where a title, number or symbol differs."""
    if passage.title.split() != other.title.split():
        return 0.0
    if _facts(passage.text) != _facts(other.text):
        return 0.0
    one, two = (set(_shingles(text)) for text in (passage.text, other.text))
    return len(one & two) / len(one | two)


def _facts(text: str) -> tuple[list[str], list[str]]:
    """All that is no word or space, in order; and the words that count or deny."""
    marks = "".join(one if one.isnumeric() or not one.isalpha() else " " for one in text)
    return marks.split(), _COUNTS_OR_DENIES.findall(text.casefold())


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _shingles(text: str) -> list[str]:
    words = _words(text) or [text]
    return [" ".join(words[at : at + 3]) for at in range(max(1, len(words) - 2))]


def _bands(passage: Passage) -> list[int]:
    """What near-identical texts probably share: MinHash (Broder 1997) in bands.

    One of 4 bands of 16 values repeats with probability 0.99 at a similarity of 0.98, 0.56 at 0.9.
    """
    sketch = RMinHash(num_perm=_BANDS * _ROWS, seed=0)
    sketch.update(_shingles(passage.text))
    digest = sketch.digest()
    return [hash((band, *digest[band * _ROWS : (band + 1) * _ROWS])) for band in range(_BANDS)]
