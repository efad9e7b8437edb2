"""Prompts to begin with, for the playground: beginnings of the index's own passages.

A reader can go on with one only if it is shown how the passage ends.
"""

import re
from collections.abc import Iterator, Sequence

from flashback.retrieval.protocol import Retriever, Sampled

_COUNT = 4
_WORDS = range(4, 15)
"""Words of a beginning: half of a sentence."""
_LONG_TEXTS = 6
"""Passages of a long text, behind which it matters what is prefilled again."""
_SENTENCE = re.compile(r"[^\n]*?[.!?](?=\s)")


class PromptExamples:
    """Those of an index, made once for each version of it."""

    def __init__(self) -> None:
        """Begin with none."""
        self._retriever: Retriever | None = None
        self._texts: list[str] = []

    def of(self, retriever: Retriever | None) -> list[str]:
        """A few short ones, then a long one; none for a retriever without samples."""
        if retriever is not self._retriever:
            texts: list[str] = retriever.sample() if isinstance(retriever, Sampled) else []
            self._retriever, self._texts = retriever, prompts_of(texts)
        return self._texts


def prompts_of(passages: Sequence[str]) -> list[str]:
    """See `PromptExamples.of`.

    Args:
        passages: texts of some passages, titles included, in the order of the corpus.
    """
    found = [*dict.fromkeys(_beginnings(passages))]
    short = found[:: max(1, len(found) // _COUNT)][:_COUNT]
    if not short:
        return []
    return [*short, "\n\n".join([*passages[:_LONG_TEXTS], short[0]])]


def _beginnings(passages: Sequence[str]) -> Iterator[str]:
    """The first half of the first sentence of each passage, if it is long enough."""
    for text in passages:
        body = text.partition("\n")[2] or text
        sentence = _SENTENCE.match(body)
        words = sentence[0].split() if sentence else []
        if len(words) // 2 in _WORDS and words[0][:1].isupper():
            yield " ".join(words[: len(words) // 2])
