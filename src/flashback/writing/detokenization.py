"""Token ids to text, as they come, without ever breaking a character or losing a space."""

from collections.abc import Sequence
from typing import Protocol

_REPLACEMENT = "\ufffd"
_TAIL = 8
"""Tokens of context against which new ones are decoded: enough for any character and for the
spaces that SentencePiece tokenizers drop at the beginning of a text."""


class Decoder(Protocol):
    """Anything that turns ids into text, special tokens left out.

    An unfinished character at the end is one U+FFFD, and changes nothing before it.
    """

    def decode(self, ids: Sequence[int]) -> str: ...


class Detokenizer:
    """The text of a growing token sequence.

    The pieces given out, joined, are the text of all tokens decoded behind the context. A
    character that is not finished is held back.
    """

    def __init__(self, decoder: Decoder, context: Sequence[int]) -> None:
        self._decoder = decoder
        self._ids = list(context[-_TAIL:])
        self._context = decoder.decode(self._ids)
        # A character that the context leaves unfinished is shown when it is completed.
        self._done = len(self._context.removesuffix(_REPLACEMENT))
        """Characters of the text of `_ids` that belong to the context or were given out."""

    def push(self, token: int) -> str:
        """The text that became certain with `token`; often empty."""
        self._ids.append(token)
        text = self._decoder.decode(self._ids)
        certain = text.removesuffix(_REPLACEMENT)  # it may be the beginning of a character
        if self._context and certain.startswith(self._context):  # it had such a character itself
            self._done = max(self._done, len(self._context))
            self._context = ""
        piece = certain[self._done :]
        self._done = max(self._done, len(certain))
        self._shorten(text)
        return piece

    def finish(self) -> str:
        """What is still held back: an unfinished character, as U+FFFD."""
        text = self._decoder.decode(self._ids)
        piece = text[self._done :]
        self._done = len(text)
        return piece

    def _shorten(self, text: str) -> None:
        """Keep only the last tokens, so that the cost of a token does not grow with the text."""
        if len(self._ids) > 4 * _TAIL:
            tail = self._ids[-_TAIL:]
            shown = self._decoder.decode(tail)
            if text.endswith(shown):
                self._done -= len(text) - len(shown)
                self._ids, self._context = tail, ""


class StopFinder:
    """Finds stop texts in text that comes in pieces; holds back what may be the start of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """(text that may be shown, whether a stop text was met right behind it)."""
        text = self._held + piece
        found = [text.find(stop) for stop in self._stops]
        if starts := [start for start in found if start >= 0]:
            self._held = ""
            return text[: min(starts)], True
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def finish(self) -> str:
        """The text that was held back for a stop text that never came."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` with which `stop` begins, short of all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
