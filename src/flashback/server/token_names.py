"""Tokens as the API shows them: text and bytes."""

from dataclasses import dataclass

from transformers.convert_slow_tokenizer import bytes_to_unicode

from flashback.readers.text_reader import TextReader

_UNFINISHED = "\ufffd"


@dataclass(frozen=True)
class TokenName:
    """The bytes of a text's tokens, joined, are the text's."""

    text: str
    """For parts of characters: its bytes, `\\xd8` for those that are no printable ASCII. For a
    special token: as the tokenizer spells it."""
    bytes: bytes | None
    """None: a special token has none."""

    @property
    def in_completions(self) -> str:
        """As OpenAI's completions show it, which have no bytes besides."""
        is_part = self.bytes is not None and self.bytes != self.text.encode()
        return f"bytes:{self.text}" if is_part else self.text


def name_of(own: bytes) -> TokenName:
    """The name of a token with these bytes, which may be parts of characters."""
    try:
        return TokenName(own.decode(), own)
    except UnicodeDecodeError:
        printable = (chr(one) if 32 <= one < 127 and one != 92 else f"\\x{one:02x}" for one in own)
        return TokenName("".join(printable), own)


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
        """The name of a token behind others."""
        decoded = self._reader.decode([*self._letter, token])
        text = decoded.removeprefix(self._front) if decoded.startswith(self._front) else ""
        if text and _UNFINISHED not in text:
            return TokenName(text, text.encode())
        spelled = self._reader.tokenizer.convert_ids_to_tokens(token)
        if not isinstance(spelled, str):
            return TokenName(f"<{token}>", None)
        if not text:
            return TokenName(spelled, None)
        return name_of(self._bytes(spelled, text))

    def at_start(self, token: int) -> TokenName:
        """The name of a token that begins a text, where a space in front may be dropped."""
        name, alone = self(token), self._reader.decode([token])
        return name_of(alone.encode()) if name.text == f" {alone}" else name

    def _bytes(self, spelled: str, text: str) -> bytes:
        """Of a token with parts of characters, or with U+FFFD itself."""
        if (byte := self._reader.byte_tokens.named.get(spelled)) is not None:
            return bytes([byte])
        if all(character in self._byte_of for character in spelled):
            return bytes(self._byte_of[character] for character in spelled)
        return text.encode()
