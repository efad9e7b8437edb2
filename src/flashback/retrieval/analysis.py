"""Texts and queries to the terms by which they meet, in whatever Unicode form they were written.

Compatibility forms (NFKC), case and invisible characters make no difference. Words are found by
their stems in scripts for which there is a stemmer: Latin script is taken for one language. Scripts
without spaces between words are found by pairs of neighbouring characters.
"""

import re
import sys
import unicodedata
from collections.abc import Iterator
from functools import cache
from itertools import pairwise

import tantivy

from flashback.corpus.characters import UNSPACED

NAME = "flashback_terms"
"""Of the analyzer, in an index."""
LANGUAGES = (
    *("danish", "dutch", "english", "finnish", "french", "german", "hungarian", "italian"),
    *("norwegian", "portuguese", "romanian", "spanish", "swedish", "turkish"),
)
"""What Latin script may be taken for."""
NEUTRAL = "none"
"""In place of a language: words in Latin script are found as they are written."""
_WITHOUT_STOP_WORDS = ("romanian", "turkish")
_STEMMERS = ("russian", "greek", "arabic", "tamil")
"""Each leaves other scripts than its own alone."""
_STEMMED = (
    "a-z\u00aa-\u024f\u1e00-\u1eff"  # Latin
    "\u0370-\u03ff\u1f00-\u1fff\u0400-\u052f\u0600-\u06ff\u0750-\u077f\u0b80-\u0bff"
)
_UNSPACED_LETTER = re.compile(f"[{UNSPACED}]")
_INVISIBLE = dict.fromkeys((0xAD, 0x200C, 0x200D, 0x200E, 0x200F, 0x2060, 0xFEFF))
_LONGEST = 256
"""Bytes of a word that is not indexed; a letter has up to four of them, and compounds are long."""
_ASCII_WORD = re.compile(r"[a-z0-9]+")


def analyzer(language: str = "english") -> tantivy.TextAnalyzer:
    """From what `terms` gives to what an index holds: no stop words, stems.

    Args:
        language: what Latin script is taken for: one of `LANGUAGES`, several with `+` between them,
            or `NEUTRAL`. Of several languages no stop words are left out, since they may be words
            of another one.
    """
    builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.whitespace())
    builder = builder.filter(tantivy.Filter.remove_long(_LONGEST))
    own = [] if language == NEUTRAL else language.split("+")
    if len(own) == 1 and language not in _WITHOUT_STOP_WORDS:
        builder = builder.filter(tantivy.Filter.stopword(language))
    for name in (*own, *_STEMMERS):
        builder = builder.filter(tantivy.Filter.stemmer(name))
    return builder.build()


def terms(text: str, *, query: bool = False) -> str:
    """The words of a text, normalised, with a space between them.

    Args:
        query: a character of a script without spaces is looked for alone only where it stands
            alone; a text has it both alone and in pairs.
    """
    text = normalised(text)
    if text.isascii():
        return " ".join(_ASCII_WORD.findall(text))
    words, parts, letter = _patterns()
    found = words.findall(text.replace("_", " "))
    if not _UNSPACED_LETTER.search(text):
        return " ".join(found)
    pieces: list[str] = []
    for part in (part for word in found for part in parts.findall(word)):
        unspaced = _UNSPACED_LETTER.match(part)
        pieces += _pairs(letter.findall(part), alone=not query) if unspaced else (part,)
    return " ".join(pieces)


def normalised(text: str) -> str:
    """One form of all texts that are the same to a reader: NFKC, and case folded."""
    if text.isascii():
        return text.lower()
    folded = unicodedata.normalize("NFKC", text).translate(_INVISIBLE).casefold()
    # Turkish capital I has a dot, which case folding leaves as a mark.
    return unicodedata.normalize("NFKC", folded).replace("i\u0307", "i")


def letters(words: str) -> int:
    """How many characters `terms` has without the spaces."""
    return len(words) - words.count(" ")


def without_stems(words: str) -> int:
    """How many characters of `terms` stand in words that are found only as they are written."""
    if words.isascii():
        return 0
    return sum(map(len, _other_scripts().findall(words)))


def _pairs(characters: list[str], *, alone: bool) -> Iterator[str]:
    if alone or len(characters) == 1:
        yield from characters
    yield from map("".join, pairwise(characters))


@cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """Words; their parts, each with or without spaces around its words; letters with marks."""
    marks = _marks()
    words = re.compile(rf"\w[\w{marks}]*")
    parts = re.compile(rf"(?:[{UNSPACED}][{marks}]*)+|(?:[^{UNSPACED}{marks}][{marks}]*)+")
    return words, parts, re.compile(rf"\w[{marks}]*")


@cache
def _other_scripts() -> re.Pattern[str]:
    return re.compile(rf"[^\W\d_{_STEMMED}{UNSPACED}][\w{_marks()}]*")


@cache
def _marks() -> str:
    """All combining marks, as the inside of a character class."""
    points = [at for at in range(sys.maxunicode) if unicodedata.category(chr(at))[0] == "M"]
    starts = [at for at in points if unicodedata.category(chr(at - 1))[0] != "M"]
    ends = [at for at in points if unicodedata.category(chr(at + 1))[0] != "M"]
    return "".join(f"{chr(a)}-{chr(b)}" for a, b in zip(starts, ends, strict=True))
