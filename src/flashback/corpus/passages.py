"""Documents to passages: as many sentences as fit a number of words, tokens and characters.

Passages are kept as text. They are cut so that the reader that they are shown to can show all of
them: by its own tokenizer, if that is known, else by an estimate that errs on the safe side.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from flashback.corpus.characters import SENTENCE, UNSPACED, whole_characters
from flashback.corpus.documents import Document
from flashback.corpus.place import Place, Places, sections

DEFAULT_WORDS = 100
DEFAULT_TOKENS = 128
"""The paper's m."""
_CHARACTERS_PER_TOKEN = 16
"""No passage has more, whatever a tokenizer says of spaces or rare words."""
_WINDOW = 1 << 16
"""Characters that are looked at together; a multiple of a passage's."""
_APART = 8
"""Tokens by which a text may become longer when it is cut out; in practice up to 3."""

TokenEnds = Callable[[str], Sequence[int]]
"""For a text, the character behind the last one of each of its tokens, in order."""

_WORD = re.compile(r"\S+")
_NO_SPACE = re.compile(r"\S")
_REPEATABLE = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")
"""A word, or a character of a script without spaces."""
_ESTIMATED = re.compile(
    r"[A-Za-z0-9+/](?=[A-Za-z0-9+/]{16})|(?<=[A-Za-z0-9+/]{16})[A-Za-z0-9+/]"
    r"|[A-Z]?[a-z]{1,3}|[A-Z]{1,2}|[^A-Za-z\s]|\n|\s{4}"
)


@dataclass(frozen=True)
class Passage:
    """A piece of a document, as text."""

    id: str
    document_id: str
    title: str
    text: str
    heading: str | None = None
    """What is shown of a title that is too long; None: all of it."""
    place: Place | None = None


def estimated_ends(text: str) -> list[int]:
    """Token ends for a reader that is not known: more tokens than most readers make of a text.

    A token for every 3 letters, every 2 capitals, every digit, sign and line; for every character
    of base64 and the like; and outside of ASCII for every byte, as small vocabularies have them.
    """
    if text.isascii():
        return [match.end() for match in _ESTIMATED.finditer(text)]
    return [
        match.end()
        for match in _ESTIMATED.finditer(text)
        for _ in range(1 if match[0].isascii() else len(match[0].encode()))
    ]


@dataclass(frozen=True)
class TokenLimit:
    """How many tokens a passage may have, its title included, and how they are counted."""

    tokens: int = DEFAULT_TOKENS
    ends: TokenEnds = estimated_ends

    def fits(self, text: str) -> bool:
        """Whether a text has no more."""
        return len(text) <= self.characters and len(self.ends(text)) <= self.tokens

    @property
    def characters(self) -> int:
        """The bound in characters."""
        return _CHARACTERS_PER_TOKEN * self.tokens


DEFAULT_LIMIT = TokenLimit()


def cut(
    text: str,
    words: int = DEFAULT_WORDS,
    limit: TokenLimit = DEFAULT_LIMIT,
    heading: str = "",
    overlap: int = 0,
) -> Iterator[str]:
    """Cut `text` into pieces that fit, between sentences where that is possible; see `spans`."""
    return (text[begin:end] for begin, end in spans(text, words, limit, heading, overlap))


def spans(
    text: str,
    words: int = DEFAULT_WORDS,
    limit: TokenLimit = DEFAULT_LIMIT,
    heading: str = "",
    overlap: int = 0,
) -> Iterator[tuple[int, int]]:
    """Begin and end of pieces of `text` that fit, cut between sentences where that is possible.

    Else between words, else between characters as readers see them. No character but white space
    is lost or moved, nor repeated without an overlap.

    Args:
        words: in a piece at most, between white space.
        limit: of a piece with its heading.
        heading: what will stand on a line before each piece.
        overlap: words that a piece repeats of the one before, where more than these fit; characters
            in scripts without spaces.
    """
    size = max(_WINDOW, 4 * limit.characters)
    start = covered = 0
    while (fresh := _NO_SPACE.search(text, covered)) is not None:
        if not overlap or fresh.start() - start > limit.characters:
            start = fresh.start()
        window = _Window(text[start : start + size], words, limit, heading, overlap)
        is_last = start + size >= len(text)
        again = start
        for begin, end, following in window.pieces(is_last, fresh.start() - start):
            covered, again = start + end, start + following
            yield start + begin, start + begin + len(window.text[begin:end].rstrip())
        if is_last:
            return
        start = again


class _Window:
    """A stretch of text, and where its sentences, words and tokens end."""

    def __init__(
        self, text: str, words: int, limit: TokenLimit, heading: str, overlap: int
    ) -> None:
        self.text = text
        self._limit = limit
        self._heading = f"{heading}\n" if heading else ""
        self._room = max(1, limit.tokens - len(limit.ends(self._heading)))
        self._words = words
        matches = SENTENCE.finditer(text)
        self._sentence_ends = [one.start() + len(one[0].rstrip()) for one in matches]
        self._word_ends = [one.end() for one in _WORD.finditer(text)]
        self._token_ends = limit.ends(text)
        self._overlap = overlap
        self._repeatable = [one.start() for one in _REPEATABLE.finditer(text)] if overlap else []

    def pieces(self, is_last: bool, fresh: int) -> Iterator[tuple[int, int, int]]:
        """Begin and end of each piece, and where the next one may begin.

        Those that more text could change are left out, unless there is none.

        Args:
            fresh: the first character that no piece has yet.
        """
        start, covered = 0, fresh
        while (found := _NO_SPACE.search(self.text, covered)) is not None:
            fresh = found.start()
            first = _NO_SPACE.search(self.text, start)
            begin = first.start() if first else fresh
            end, reach = self._piece(begin)
            if end <= fresh:  # nothing new beside what is repeated
                begin = fresh
                end, reach = self._piece(begin)
            if reach >= len(self.text) and not is_last:
                return
            covered, start = end, self._back(begin, end)
            yield begin, end, start

    def _back(self, begin: int, end: int) -> int:
        """Where what the next piece repeats of this one begins."""
        at = bisect_left(self._repeatable, end) - self._overlap
        if not self._overlap or at < 0 or self._repeatable[at] <= begin:
            return end
        return whole_characters(self.text, begin, self._repeatable[at])

    def _piece(self, begin: int) -> tuple[int, int]:
        """The end of the piece that begins there, and how far it might have reached."""
        room = self._room
        while True:
            reach = min(
                self._nth(self._word_ends, begin, self._words),
                self._nth(self._token_ends, begin, room),
                begin + self._limit.characters - len(self._heading),
            )
            end = self._boundary(begin, reach)
            excess = self._excess(begin, end)
            if excess <= 0 or room == 1:
                return end, reach
            room = max(1, room - excess)

    def _excess(self, begin: int, end: int) -> int:
        """By how many tokens a piece is too long; it is counted anew where that may be."""
        ends = self._token_ends
        if bisect_right(ends, end) - bisect_right(ends, begin) + _APART <= self._room:
            return 0
        piece = self._heading + self.text[begin:end].strip()
        return len(self._limit.ends(piece)) - self._limit.tokens

    def _nth(self, ends: Sequence[int], begin: int, count: int) -> int:
        at = bisect_right(ends, begin) + count - 1
        return ends[at] if at < len(ends) else len(self.text)

    def _boundary(self, begin: int, reach: int) -> int:
        """The best end of a piece that may reach that far."""
        if reach >= len(self.text):
            return len(self.text)
        for ends in (self._sentence_ends, self._word_ends):
            at = bisect_right(ends, reach)
            if at and ends[at - 1] > begin:
                return ends[at - 1]
        return whole_characters(self.text, begin, reach)


def heading_of(title: str, limit: TokenLimit) -> str | None:
    """What is shown of a title: at most half of the tokens; None: all of it."""
    half = TokenLimit(limit.tokens // 2, limit.ends)
    if half.fits(f"{title}\n"):
        return None
    return next(cut(title, len(title), half), "") if half.tokens else ""


def cut_documents(
    documents: Iterable[Document],
    words: int = DEFAULT_WORDS,
    limit: TokenLimit = DEFAULT_LIMIT,
    *,
    titled: bool = True,
    overlap: int = 0,
) -> Iterator[Passage]:
    """Stream the passages of a stream of documents, numbered within each document.

    None runs across a heading that its document knows, nor across the end of a page if a sentence
    ends there.

    Args:
        titled: the title will stand before each passage, and takes of its tokens.
        overlap: see `spans`.
    """
    for identifier, parts in groupby(documents, key=lambda document: document.id):
        number = 0
        for part in parts:
            heading = heading_of(part.title, limit) if titled else ""
            shown = part.title if heading is None else heading
            for text, place in _pieces(part, words, limit, shown, overlap):
                name = f"{identifier}#{number}"
                yield Passage(name, identifier, part.title, text, heading, place)
                number += 1


def _pieces(
    part: Document, words: int, limit: TokenLimit, shown: str, overlap: int
) -> Iterator[tuple[str, Place]]:
    places = Places(part.text, part.layout)
    for section in sections(part.text, part.layout):
        text = part.text[section.begin : section.end]
        for begin, end in spans(text, words, limit, shown, overlap):
            at = section.begin + begin
            yield text[begin:end], places.place(at, section.begin + end, section.heading)
