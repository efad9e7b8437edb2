"""Passages on their way into an index: equal ones once, with every document that has them.

Two passages are equal if their titles and their texts are, after white space. What is only similar
is kept, unless asked otherwise. Passages wait in an SQLite database of their own.
"""

import json
import re
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import SequenceMatcher
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

from rensa import RMinHash

from flashback.corpus.characters import UNSPACED
from flashback.corpus.passages import Passage
from flashback.corpus.place import Place, place_of

SIMILAR = 0.9
"""The least Jaccard similarity of the 3-word shingles of near-identical texts."""
_BANDS, _ROWS = 4, 16
_MOST_CANDIDATES = 16
_WORD = re.compile(r"[^\W\d_]+")
_UNSPACED_WORD = re.compile(f"[{UNSPACED}]")
_TELLING = frozenset(
    # Numbers.
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety "
    "hundred thousand million billion first second third fourth fifth sixth seventh eighth ninth "
    "tenth once twice half quarter double single both "
    # Negations, and what is near to one.
    "no not none nor never neither nobody nothing nowhere without cannot except unless only hardly "
    "barely scarcely rarely seldom "
    "nicht nichts nie niemals niemand nirgends ohne weder außer kaum nur "
    "ne pas jamais rien personne aucun aucune sans sauf ni nul nulle "
    "nunca nada nadie ningún ninguno ninguna sin tampoco salvo "
    "non mai niente nulla nessun nessuno nessuna senza né "
    "não nem nenhum nenhuma ninguém sem "
    "niet niets niemand nooit geen zonder inte ej ingen inget inga aldrig utan ikke intet aldri "
    "uden uten ei en et emme ette eivät ilman nem nincs nélkül soha nu fără niciodată "
    "nie nigdy nic nikt bez žádný není nikdy değil yok hiç tidak bukan tanpa jangan belum "
    "không chưa đừng не ни нет без никогда никто ничего нельзя ні немає δεν δε μην μη όχι χωρίς "
    "لا لم لن ليس ليست غير بدون نه نیست לא אין בלי אל".casefold().split()
)
"""Words that no two near-identical texts differ in."""
_DENYING_ENDS = ("less", "los", "loos", "lös")
_LONGEST_PREFIX = 4
"""Letters that may turn a word into its opposite: `un`, `im`, `dis`, `k` of `kein`, `anti`."""
_OWN = """
INSERT INTO owner VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
    id = iif(number < excluded.number, id, excluded.id),
    place = iif(number < excluded.number, place, excluded.place),
    number = min(number, excluded.number), times = times + excluded.times
"""
_OWNER = "id, document, number, times, place"
_TABLES = """
CREATE TABLE passage (number INTEGER PRIMARY KEY, id, document, title, text, heading);
CREATE TABLE known (key BLOB PRIMARY KEY, number INTEGER) WITHOUT ROWID;
CREATE TABLE owner (passage INTEGER, id, document, number INTEGER, times INTEGER, place,
    PRIMARY KEY (passage, document)) WITHOUT ROWID;
CREATE TABLE band (band INTEGER, number INTEGER, PRIMARY KEY (band, number)) WITHOUT ROWID;
CREATE TABLE dropped (record)
"""


@dataclass(frozen=True)
class Owner:
    """A document that has a passage."""

    id: str
    """Of the document's first copy of the passage."""
    document_id: str
    number: int
    """The place of that copy among all passages of the corpus."""
    times: int = 1
    """How often the document has the passage."""
    place: Place | None = None
    """Where in the document that copy stands, if that is known."""

    def row(self) -> tuple[Any, ...]:
        """Its fields as values of JSON; `owner_of` reads them."""
        place = None if self.place is None else self.place.record()
        return self.id, self.document_id, self.number, self.times, place


def owner_of(row: Sequence[Any]) -> Owner:
    """What `Owner.row` gave."""
    one, document, number, times, place = row
    known = place_of(place) if isinstance(place, dict) else None
    return Owner(str(one), str(document), int(number), int(times), known)


@dataclass(frozen=True)
class Stored:
    """A passage that is stored once."""

    passage: Passage
    """As its first owner has it."""
    owners: tuple[Owner, ...]
    """The documents that have it, in the order of the corpus; at least one."""

    @property
    def repeats(self) -> int:
        """How many copies are not stored."""
        return sum(owner.times for owner in self.owners) - 1


def owned(passage: Passage, owners: Sequence[Owner]) -> Stored:
    """A passage of these documents, in the order of the corpus: the first one's copy."""
    first = owners[0]
    names = {"id": first.id, "document_id": first.document_id}
    return Stored(replace(passage, **names, place=first.place), tuple(owners))


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

    def __init__(self, file: Path | None = None, *, once: bool, near: bool, first: int = 0) -> None:
        """Begin empty.

        Args:
            file: where passages wait, which is there for as long; None: in memory.
            once: store equal passages once.
            near: leave out near-identical ones, too, see `similarity_of`.
            first: the number of the first passage.
        """
        self._once, self._near = once, near
        self.stored = self.repeated = self.dropped = 0
        self.next_number = first
        self._file = file
        # Nobody else knows the file, and not every file system has locks.
        name = ":memory:" if file is None else f"{file.absolute().as_uri()}?nolock=1"
        self._db = sqlite3.connect(name, isolation_level=None, uri=True, check_same_thread=False)
        off = "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA temp_store = MEMORY"
        self._db.executescript(f"{off}; {_TABLES}; BEGIN")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def add(self, passage: Passage) -> None:
        """Take a passage, or note that it is a copy or similar."""
        number, self.next_number = self.next_number, self.next_number + 1
        owner = Owner(passage.id, passage.document_id, number, place=passage.place)
        key = self._key(passage)
        if (place := self._place_of(key)) is not None:
            self._own(place, owner)
            self.repeated += 1
            return
        bands = _bands(passage) if self._near else []
        if self._near and (dropped := self._similar(bands, passage)) is not None:
            self._db.execute("INSERT INTO dropped VALUES (?)", [json.dumps(asdict(dropped))])
            self.dropped += 1
            return
        self._own(self._store(key, passage), owner)
        marks = [(band, self.stored) for band in bands]
        self._db.executemany("INSERT OR IGNORE INTO band VALUES (?, ?)", marks)

    def join(self, stored: Stored) -> None:
        """Take a passage of an index with its owners, which join those of an equal one."""
        key = self._key(stored.passage)
        place = self._place_of(key)
        if place is None:
            place = self._store(key, stored.passage)
        for owner in stored.owners:
            self._own(place, owner)

    def remove(self, document: str) -> None:
        """Take back what was added of a document."""
        self._db.execute("CREATE INDEX IF NOT EXISTS of_document ON owner (document)")
        self._db.execute("DELETE FROM owner WHERE document = ?", [document])

    @property
    def documents(self) -> list[str]:
        """The ids of the documents that own something."""
        return [one for (one,) in self._db.execute("SELECT DISTINCT document FROM owner")]

    @property
    def digests(self) -> list[bytes]:
        """The `passage_digest` of all passages that were taken."""
        return [key for (key,) in self._db.execute("SELECT key FROM known")]

    def __len__(self) -> int:
        """How many passages have owners."""
        [(count,)] = self._db.execute("SELECT COUNT(DISTINCT passage) FROM owner")
        return int(count)

    def _key(self, passage: Passage) -> bytes | None:
        return passage_digest(passage) if self._once else None

    def _place_of(self, key: bytes | None) -> int | None:
        """Where an equal passage is stored."""
        row = self._db.execute("SELECT number FROM known WHERE key = ?", [key]).fetchone()
        return None if row is None else int(row[0])

    def _store(self, key: bytes | None, passage: Passage) -> int:
        self.stored += 1
        names = (self.stored, passage.id, passage.document_id)
        row = (*names, passage.title, passage.text, passage.heading)
        self._db.execute("INSERT INTO passage VALUES (?, ?, ?, ?, ?, ?)", row)
        if key is not None:
            self._db.execute("INSERT INTO known VALUES (?, ?)", (key, self.stored))
        return self.stored

    def _own(self, place: int, owner: Owner) -> None:
        *values, at = owner.row()
        self._db.execute(_OWN, (place, *values, json.dumps(at)))

    def __iter__(self) -> Iterator[Stored]:
        """The passages that have owners, in the order of their first ones."""
        order = "SELECT passage FROM owner GROUP BY passage ORDER BY min(number)"
        owners = f"SELECT {_OWNER} FROM owner WHERE passage = ? ORDER BY number"
        for (place,) in self._db.execute(order):
            [row] = self._db.execute("SELECT * FROM passage WHERE number = ?", [place])
            found = self._db.execute(owners, [place])
            yield owned(Passage(*row[1:]), [owner_of((*one, json.loads(at))) for *one, at in found])

    def reasons(self) -> Iterator[str]:
        """A line of JSON (`Dropped`) for every passage that was left out as near-identical."""
        return (line for (line,) in self._db.execute("SELECT record FROM dropped"))

    def _similar(self, bands: Sequence[int], passage: Passage) -> Dropped | None:
        """Why a passage is left out, if it is."""
        query = f"SELECT number FROM band WHERE band = ? LIMIT {_MOST_CANDIDATES}"
        found = {one for band in bands for (one,) in self._db.execute(query, [band])}
        for number in sorted(found):
            stored = "SELECT id, document, title, text FROM passage WHERE number = ?"
            other = Passage(*self._db.execute(stored, [number]).fetchone())
            if (similarity := similarity_of(passage, other)) >= SIMILAR:
                names = (passage.id, passage.document_id, passage.title)
                return Dropped(*names, other.id, round(similarity, 4))
        return None


def passage_digest(passage: Passage) -> bytes:
    """16 bytes, the same for equal passages."""
    parts = (" ".join(part.split()) for part in (passage.title, passage.text))
    return blake2b("\0".join(parts).encode(), digest_size=16).digest()


def similarity_of(passage: Passage, other: Passage) -> float:
    """Jaccard similarity of the 3-word shingles; 0 where the texts may say different things.

    They may where the titles differ, or what is neither letter nor space (digits and symbols, in
    order), or a word that counts or denies (`_may_deny`).
    """
    if passage.title.split() != other.title.split():
        return 0.0
    if _marks(passage.text) != _marks(other.text):
        return 0.0
    one, two = (set(_shingles(text)) for text in (passage.text, other.text))
    similarity = len(one & two) / len(one | two)
    if similarity >= SIMILAR and _may_deny(*_differing(passage.text, other.text)):
        return 0.0
    return similarity


def _marks(text: str) -> list[str]:
    """All that is no letter or space, in order."""
    return "".join(one if one.isnumeric() or not one.isalpha() else " " for one in text).split()


def _differing(text: str, other: str) -> tuple[set[str], set[str]]:
    """The words of each text that are not the other's at the same place."""
    one, two = _words(text), _words(other)
    parts = SequenceMatcher(None, one, two, autojunk=False).get_opcodes()
    changed = [part for part in parts if part[0] != "equal"]
    ours = {word for _, begin, end, _, _ in changed for word in one[begin:end]}
    return ours, {word for _, _, _, begin, end in changed for word in two[begin:end]}


def _may_deny(ours: set[str], theirs: set[str]) -> bool:
    """Whether a differing word may turn a meaning around.

    It may if it counts or denies, if it is a word of the other text with a short prefix (possible,
    impossible), if it ends like `useless`, or is of a script without spaces.
    """
    return any(
        word in _TELLING or word.endswith(_DENYING_ENDS) or _UNSPACED_WORD.search(word)
        for word in ours | theirs
    ) or any(_prefixed(one, two) or _prefixed(two, one) for one in ours for two in theirs)


def _prefixed(word: str, longer: str) -> bool:
    return longer.endswith(word) and 0 < len(longer) - len(word) <= _LONGEST_PREFIX


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
