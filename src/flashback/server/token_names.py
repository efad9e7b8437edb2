"""Tokens as the API shows them: text and bytes."""

import re
from dataclasses import dataclass

from transformers.convert_slow_tokenizer import bytes_to_unicode

from flashback.readers.text_reader import TextReader

_UNFINISHED = "\ufffd"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
"""SentencePiece's name of a token that is one byte."""


@dataclass(frozen=True)
class TokenName:
    """The names of a text's tokens, joined, are the text; so are their bytes."""

    text: str
    """For a part of a character or a special token: as the tokenizer spells it."""
    bytes: bytes | None
    """None: a special token has none."""


class TokenNames:
    """Names the tokens of one reader."""

    def __init__(self, reader: TextReader) -> None:
        """Take a reader.

        A token is decoded behind a letter: SentencePiece tokenizers drop a space in front.
        """
        self._reader = reader
        self._letter = reader.encode("a")[-1:]
        self._front = reader.decode(self._letter)
        self._byte_of = {character: byte for byte, character in bytes_to_unicode().items()}

    def __call__(self, token: int) -> TokenName:
        """The name of a token."""
        decoded = self._reader.decode([*self._letter, token])
        text = decoded.removeprefix(self._front) if decoded.startswith(self._front) else ""
        if text and _UNFINISHED not in text:
            return TokenName(text, text.encode())
        spelled = self._reader.tokenizer.convert_ids_to_tokens(token)
        if not isinstance(spelled, str):
            return TokenName(f"<{token}>", None)
        return TokenName(spelled, self._bytes(spelled) if text else None)

    def _bytes(self, spelled: str) -> bytes | None:
        """Of a part of a character."""
        if one := _BYTE.fullmatch(spelled):
            return bytes([int(one[1], 16)])
        if all(character in self._byte_of for character in spelled):
            return bytes(self._byte_of[character] for character in spelled)
        return None
