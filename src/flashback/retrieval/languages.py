"""The language of a corpus, from a sample of its passages: what Latin script is taken for.

An index has one analysis, which tells scripts apart anyway: only passages in Latin script decide.
Where they are of several languages, words are stemmed for one after the other.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

from flashback.corpus.passages import Passage
from flashback.declared import AUTO
from flashback.errors import missing_extra
from flashback.retrieval.analysis import NEUTRAL
from flashback.retrieval.index_settings import IndexSettings

SAMPLE = 256
"""Passages that are looked at."""
_SURE = 0.8
"""The least probability of a language; else a passage is of none, such as code."""
_WORTH_STEMS = 0.1
"""The least share of a language among passages in Latin script, if it is to have its stems."""
_NAMES = {
    "da": "danish",
    "nl": "dutch",
    "en": "english",
    "fi": "finnish",
    "fr": "french",
    "de": "german",
    "hu": "hungarian",
    "it": "italian",
    "no": "norwegian",
    "nb": "norwegian",
    "nn": "norwegian",
    "pt": "portuguese",
    "ro": "romanian",
    "es": "spanish",
    "sv": "swedish",
    "tr": "turkish",
}
"""ISO 639 to names in settings."""
_LATIN = re.compile(r"[A-Za-z\u00aa-\u024f\u1e00-\u1eff]")
_LETTER = re.compile(r"[^\W\d_]")


@dataclass(frozen=True)
class Detected:
    """What was found in a sample."""

    sampled: int
    """Passages that were looked at."""
    share: float
    """Of all passages that were read."""
    language: str
    """A value of the setting."""
    languages: dict[str, float]
    """The share of each language in the sample, the largest first, by its name or ISO 639; `?`: of
    passages that are too short to tell, or are code."""


class Detection:
    """Passages on their way into an index, and the settings that they decide."""

    def __init__(self, asked: IndexSettings) -> None:
        """Load what is needed.

        Args:
            asked: only where their language is `auto`, anything is done.

        Raises:
            SettingsError: it is needed, and not installed.
        """
        self._asked = asked
        self._sample: list[str] = []
        self._read = 0
        if asked.language == AUTO:
            _identifier()

    def watch(self, passages: Iterable[Passage]) -> Iterator[Passage]:
        """The same passages; some are remembered, the same ones each time."""
        if self._asked.language != AUTO:
            yield from passages
            return
        draw = random.Random(0)
        for passage in passages:
            at = self._read if self._read < SAMPLE else draw.randrange(self._read + 1)
            self._sample[at : at + 1] = [passage.text] if at < SAMPLE else []
            self._read += 1
            yield passage

    @cached_property
    def found(self) -> Detected | None:
        """Once all passages were taken; None: the language was given."""
        if self._asked.language != AUTO:
            return None
        return detect(self._sample, self._read)

    @property
    def settings(self) -> IndexSettings:
        """With a language in place of `auto`, once all passages were taken."""
        return (
            self._asked
            if self.found is None
            else replace(self._asked, language=self.found.language)
        )


def detect(texts: Sequence[str], read: int) -> Detected:
    """The languages of a sample of texts.

    Args:
        read: how many texts there are.
    """
    languages = [_language(text) for text in texts]
    latin = Counter(
        name for name, text in zip(languages, texts, strict=True) if name != "?" and _is_latin(text)
    )
    shares = {name: count / len(texts) for name, count in Counter(languages).most_common()}
    return Detected(len(texts), len(texts) / max(read, 1), _of_latin(latin), shares)


def _of_latin(counts: Counter[str]) -> str:
    """What Latin script is taken for, by the passages in it."""
    if not counts:
        return "english"  # of the Latin words in other scripts
    least = _WORTH_STEMS * counts.total()
    stemmed = [name for name, count in counts.most_common() if name in _NAMES.values()]
    if 2 * sum(counts[name] for name in stemmed) < counts.total():
        return NEUTRAL
    return "+".join([stemmed[0], *(name for name in stemmed[1:] if counts[name] >= least)])


def _language(text: str) -> str:
    """The name of a text's language, or its ISO 639 code; `?`: it cannot be told."""
    code, probability = _identifier().classify(text)
    return _NAMES.get(code, str(code)) if probability >= _SURE else "?"


def _is_latin(text: str) -> bool:
    return 2 * len(_LATIN.findall(text)) > len(_LETTER.findall(text))


@cache
def _identifier() -> Any:
    """What tells languages apart; it takes 0.7 s and 100 MB."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise missing_extra("--language='auto'", error.name, "languages") from None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
