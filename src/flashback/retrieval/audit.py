"""Whether an index holds what a reader is to be evaluated on: shared sequences of words.

A sequence is n words behind one another, without case and punctuation; a text of fewer has itself
as one. Where a passage is cut through, at least one side has n words of an overlap of 2n. Symbols:
n words of a sequence.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import groupby
from pathlib import Path
from typing import Any

from flashback.corpus.characters import UNSPACED
from flashback.errors import CorpusError
from flashback.retrieval.protocol import Hit

WORDS = 8
"""n."""
_FEWEST = 5
"""Words of a text that is looked for as a whole; shorter ones are everywhere."""
_CONFIRMED_SHARE = 0.5
_CONFIRMED_SEQUENCES = 25
_EXAMPLES = 3
_WORD = re.compile(f"[{UNSPACED}]|[^\\W_{UNSPACED}]+")
_TELLING_ID = re.compile(r"[^\W\d]|.{6}")
"""Ids that are counted from 1 say nothing."""


class Verdict(StrEnum):
    """What evidence says of a document."""

    NONE = "none"
    POSSIBLE = "possible"
    CONFIRMED = "confirmed"


@dataclass(frozen=True)
class Text:
    """A text of an evaluation."""

    id: str
    title: str
    text: str


@dataclass
class Evidence:
    """What a document of the index has in common with texts of an evaluation."""

    document_id: str
    title: str
    sequences: int = 0
    """Shared sequences of all texts together."""
    share: float = 0.0
    """The largest share of one text's sequences that the document has."""
    texts: list[str] = field(default_factory=list)
    """Ids of the texts, those with most in common first."""
    examples: list[str] = field(default_factory=list)
    same_id: bool = False
    same_title: bool = False

    @property
    def verdict(self) -> Verdict:
        """Confirmed: half of a text's sequences, or 25; possible: less, or the id or title."""
        if self.share >= _CONFIRMED_SHARE or self.sequences >= _CONFIRMED_SEQUENCES:
            return Verdict.CONFIRMED
        found = self.sequences or self.same_id or self.same_title
        return Verdict.POSSIBLE if found else Verdict.NONE


@dataclass(frozen=True)
class Audit:
    """What was found."""

    documents: int
    """Of the index that were looked at."""
    texts: int
    found: list[Evidence]
    """Documents with any evidence, the strongest first."""

    def count(self, verdict: Verdict) -> int:
        """Documents with this verdict."""
        if verdict is Verdict.NONE:
            return self.documents - len(self.found)
        return sum(one.verdict is verdict for one in self.found)


def audit(passages: Iterable[Hit], texts: Sequence[Text], words: int = WORDS) -> Audit:
    """Compare all passages of an index with the texts of an evaluation.

    Args:
        words: n.
    """
    known = _Known(texts, words)
    documents: dict[str, _Document] = {}
    for hit in passages:
        own = documents.setdefault(hit.document_id, _Document(hit.title))
        for sequence in known.sequences(hit.text):
            own.found.setdefault(sequence, None)
    evidence = (known.evidence(name, own) for name, own in documents.items())
    found = [one for one in evidence if one.verdict is not Verdict.NONE]
    found.sort(key=_order)
    return Audit(len(documents), len(texts), found)


def audit_shown(shown: Iterable[tuple[Text, Sequence[Hit]]], words: int = WORDS) -> Audit:
    """Compare passages with the text that each was shown for, and with no other.

    Args:
        words: n.

    Returns:
        Of each document the strongest evidence, with all texts; `documents` are those shown.
    """
    documents: set[str] = set()
    strongest: dict[str, Evidence] = {}
    texts = 0
    for _, own in groupby(shown, key=lambda one: one[0]):
        pairs = list(own)
        texts += 1
        hits = {(hit.document_id, hit.text): hit for _, hits in pairs for hit in hits}
        documents |= {name for name, _ in hits}
        for one in audit(hits.values(), [pairs[0][0]], words).found:
            before = strongest.get(one.document_id, one)
            best = min(before, one, key=_order)
            both = [*dict.fromkeys([*before.texts, *one.texts])]
            strongest[one.document_id] = replace(best, texts=both)
    found = sorted(strongest.values(), key=_order)
    return Audit(len(documents), texts, found)


def _order(one: Evidence) -> tuple[bool, float, int, str]:
    """The strongest first."""
    return one.verdict is not Verdict.CONFIRMED, -one.share, -one.sequences, one.document_id


@dataclass
class _Document:
    """A document of the index and the sequences that it shares, in the order of its passages."""

    title: str
    found: dict[str, None] = field(default_factory=dict)


class _Known:
    """The sequences of the texts, each with the texts that have it."""

    def __init__(self, texts: Sequence[Text], words: int) -> None:
        self._texts = texts
        self._lengths: set[int] = set()
        self._having: dict[str, list[int]] = {}
        self._sizes: list[int] = []
        for number, text in enumerate(texts):
            split = _words(text.text)
            length = min(words, len(split))
            own = dict.fromkeys(_sequences(split, length)) if length >= min(_FEWEST, words) else {}
            self._sizes.append(len(own))
            if own:
                self._lengths.add(length)
            for sequence in own:
                self._having.setdefault(sequence, []).append(number)
        self._ids = {text.id for text in texts if _TELLING_ID.search(text.id)}
        self._titles = {" ".join(_words(text.title)) for text in texts} - {""}

    def sequences(self, text: str) -> Iterator[str]:
        """Those of a passage that a text has, too."""
        split = _words(text)
        for length in self._lengths:
            for sequence in _sequences(split, length):
                if sequence in self._having:
                    yield sequence

    def evidence(self, name: str, own: _Document) -> Evidence:
        """All that speaks against a document."""
        shared: dict[int, int] = {}
        for sequence in own.found:
            for number in self._having[sequence]:
                shared[number] = shared.get(number, 0) + 1
        ranked = sorted(shared, key=lambda number: -shared[number])
        shares = (count / self._sizes[number] for number, count in shared.items())
        return Evidence(
            name,
            own.title,
            len(own.found),
            max(shares, default=0.0),
            [self._texts[number].id for number in ranked],
            list(own.found)[:_EXAMPLES],
            name in self._ids,
            " ".join(_words(own.title)) in self._titles,
        )


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _sequences(words: Sequence[str], length: int) -> Iterator[str]:
    for at in range(len(words) - length + 1):
        yield " ".join(words[at : at + length])


def read_texts(file: Path) -> list[Text]:
    """The texts of an evaluation: all that a line of JSON says, but its id and title; or a file.

    Raises:
        CorpusError: the file is missing, not UTF-8 or empty.
    """
    try:
        content = file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise CorpusError(f"{file}: cannot be read: {reason}") from error
    if file.suffix in (".jsonl", ".json") or content.lstrip().startswith("{"):
        found = [
            _text_of(f"{file.name}:{number}", line)
            for number, line in enumerate(content.split("\n"), start=1)
            if line.strip()
        ]
    else:
        found = [Text(file.name, "", content)]
    if not any(_words(one.text) for one in found):
        raise CorpusError(f"{file}: no text in it")
    return found


def _text_of(place: str, line: str) -> Text:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{place}: no JSON ({error}); expected an object in each line") from None
    if not isinstance(record, dict):
        raise CorpusError(f"{place}: found {line[:40]!r}; expected an object")
    name = next((str(record[key]) for key in ("_id", "id") if record.get(key)), place)
    title = record.get("title")
    rest = {key: value for key, value in record.items() if key not in ("_id", "id", "title")}
    return Text(name, title if isinstance(title, str) else "", "\n".join(_strings(rest)))


def _strings(value: Any) -> Iterator[str]:
    """All texts within a value of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)
