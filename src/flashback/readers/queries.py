"""The query of a stride: which part of the past passages are looked up for.

A form is a function of texts, and a line in `QUERY_FORMS`. Texts are plain, also for what weights
words: it repeats them, and retrievers that count words (BM25) count the repeated ones.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from flashback.corpus.characters import SENTENCE, UNSPACED
from flashback.readers.text_reader import TextReader
from flashback.settings import QueryForm, RetrievalSettings

LONGER = 8
"""A form that looks back further than ℓ tokens looks back so many times as far."""
_SHORT = 24
"""Bytes of UTF-8, some four words of English or eight Chinese characters: a shorter sentence says
too little."""
_HALF_LIFE = 16
"""Words behind a word by which it counts half."""
_MOST_TERMS = 64
_REPEATS = 4
"""How often the word that was written last stands in a query of terms."""
_TERM = re.compile(rf"[{UNSPACED}]{{1,8}}|[^\s{UNSPACED}]+")
"""A word, or a piece of text in a script without spaces."""
_EDGES = re.compile(r"^[\W_]+|[\W_]+$")


class Past(Protocol):
    """What was written and said so far, as texts."""

    @property
    def last(self) -> str:
        """The last ℓ tokens; in a chat those of the last user message and the answer so far."""
        ...

    @property
    def longer(self) -> str:
        """The last `LONGER`·ℓ tokens; in a chat those of all messages but the system's."""
        ...

    @property
    def beginning(self) -> str:
        """The first ℓ tokens but for those in `last`; in a chat the first user message's."""
        ...


QUERY_FORMS: dict[QueryForm, Callable[[Past], str]] = {
    QueryForm.TOKENS: lambda past: past.last,
    QueryForm.SENTENCE: lambda past: last_sentence(past.longer),
    QueryForm.TERMS: lambda past: decayed_terms(past.longer),
    QueryForm.MESSAGE: lambda past: "\n".join(filter(None, (past.beginning, past.last))),
}


@dataclass(frozen=True)
class View:
    """The past of a text that is continued: the tokens in view."""

    reader: TextReader
    ids: Sequence[int]
    tokens: int
    """ℓ."""

    @property
    def last(self) -> str:
        return self.reader.decode(self.ids[-self.tokens :])

    @property
    def longer(self) -> str:
        return self.reader.decode(self.ids[-LONGER * self.tokens :])

    @property
    def beginning(self) -> str:
        return self.reader.decode(self.ids[: -self.tokens][: self.tokens])


@dataclass(frozen=True, kw_only=True)
class Talk:
    """The past of a chat: what was said in it, without its template."""

    reader: TextReader
    first: str
    """The first message of the user; empty if it is the last one, too."""
    turns: Sequence[str]
    """All messages but the system's, the last one of the user among them."""
    asked: str
    """The last message of the user."""
    said: str
    """The answer so far."""
    tokens: int
    """ℓ."""

    @property
    def last(self) -> str:
        return self._view([self.asked]).last

    @property
    def longer(self) -> str:
        return self._view(self.turns).longer

    @property
    def beginning(self) -> str:
        if not self.first:
            return self._view([self.asked]).beginning
        return self.reader.decode(self.reader.encode(self.first)[: self.tokens])

    def _view(self, turns: Sequence[str]) -> View:
        text = "\n".join([*turns, self.said] if self.said else turns)
        return View(self.reader, self.reader.encode(text), self.tokens)


@dataclass(frozen=True)
class Whole:
    """The past that is one text, such as a question."""

    last: str
    beginning: str = ""

    @property
    def longer(self) -> str:
        return self.last


def query_of(past: Past, form: QueryForm) -> str:
    """The query of a past in a form; empty if there is no text."""
    return QUERY_FORMS[form](past)


def query_text(reader: TextReader, context: Sequence[int], settings: RetrievalSettings) -> str:
    """The query for a context: by default the text of its last ℓ tokens (section 3)."""
    return query_of(View(reader, context, settings.query_tokens), settings.query_form)


def last_sentence(text: str) -> str:
    """The last sentence, whole or begun; behind the one before it, if it is short."""
    starts = [one.start() for one in SENTENCE.finditer(text) if one[0].strip()]
    while starts:
        found = text[starts.pop() :].strip()
        if len(found.encode("utf-8", "replace")) >= _SHORT:
            return found
    return text.strip()


def decayed_terms(text: str) -> str:
    """The words that count most, each repeated by its weight: 4 for the last one, half 16 before.

    The weights of a word's places add up, and are rounded: what weighs less than 1/2 is left out.
    At most 64 words, the one that counts most first.
    """
    weights: defaultdict[str, float] = defaultdict(float)
    written: dict[str, str] = {}
    found = (_EDGES.sub("", one) for one in _TERM.findall(text))
    for behind, word in enumerate(reversed(list(filter(None, found)))):
        key = word.casefold()
        weights[key] += _REPEATS * 0.5 ** (behind / _HALF_LIFE)
        written.setdefault(key, word)
    ranked = sorted(weights, key=lambda key: -weights[key])[:_MOST_TERMS]
    return " ".join(word for key in ranked for word in [written[key]] * round(weights[key]))
