"""Tokens that are one byte each: SentencePiece's spelling of what its vocabulary does not have."""

import re
from collections.abc import Sequence
from functools import cached_property

from transformers import PreTrainedTokenizerBase as Tokenizer

_NAME = re.compile(r"<0x([0-9A-F]{2})>")
_RUN = "\ufdd0"
"""Stands for a run of bytes while the tokens around it are decoded; not a character."""


class ByteTokens:
    """The byte tokens of one tokenizer; none, if it is of another kind."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def named(self) -> dict[str, int]:
        """The byte of each such token, by its name."""
        found = {
            name: int(one[1], 16)
            for name in self._tokenizer.get_vocab()
            if (one := _NAME.fullmatch(name))
        }
        # Other tokenizers may have tokens of such names, which are text.
        letter = self._tokenizer.convert_tokens_to_ids(["<0x41>"]) if "<0x41>" in found else []
        shown = self._tokenizer.decode(letter)
        return found if shown == "A" else {}

    @cached_property
    def ids(self) -> frozenset[int]:
        """Their ids."""
        known = self._tokenizer.get_vocab()
        return frozenset(known[name] for name in self.named)

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        """Ids to text, with each run of bytes decoded as UTF-8.

        transformers shows every byte of a run as U+FFFD if a single one of them is wrong, or if the
        last character is unfinished.
        """
        tokens = self._tokenizer.convert_ids_to_tokens(list(ids), skip_special_tokens=skip_special)
        shown, runs = list[str](), list[bytearray]()
        for token in tokens:
            if token not in self.named:
                shown.append(token)
                continue
            if not shown or shown[-1] != _RUN:
                shown.append(_RUN)
                runs.append(bytearray())
            runs[-1].append(self.named[token])
        first, *others = self._tokenizer.convert_tokens_to_string(shown).split(_RUN)
        decoded = (run.decode("utf-8", "replace") for run in runs)
        pairs = zip(decoded, others, strict=True)
        return "".join([first, *(part for pair in pairs for part in pair)])
