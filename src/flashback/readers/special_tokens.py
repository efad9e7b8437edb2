"""Special tokens in a filled chat template: its own are meant, those in contents are text.

Contents are marked before the template is filled, so that both can be told apart behind it.
"""

import copy
import re
import secrets
from collections.abc import Iterator, Sequence
from functools import cached_property

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase as Tokenizer

MARK = "\ufdd0"
"""Not a character; Unicode keeps it for uses such as this one. Stands inside of what would be taken
for a special token, and doubled where a text had it."""


class SpecialTokens:
    """The special tokens of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._key = secrets.token_hex(8)  # so that no text can spell the names of `_strict`

    @cached_property
    def _added(self) -> dict[str, AddedToken]:
        """Those with which a text could end a turn, by how they are written.

        Some tokenizers have the tokens of turns among their ordinary added ones.
        """
        turns = _turns_of(self._tokenizer)
        return {
            str(token.content): token
            for token in self._tokenizer.added_tokens_decoder.values()
            if token.content.strip() and (token.special or token.content in turns)
        }

    @cached_property
    def _written(self) -> re.Pattern[str]:
        longest_first = sorted(self._added, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def as_text(self, content: str) -> str:
        """A text in which nothing is a special token, marked where something looks like one."""
        doubled = content.replace(MARK, MARK * 2)
        return self._written.sub(lambda found: found[0][0] + MARK + found[0][1:], doubled)

    def encode(self, text: str) -> list[int]:
        """Marked text to ids: only special tokens without a mark are special."""

        def renamed(found: re.Match[str]) -> str:
            if found[0].startswith(MARK):
                return found[0][1:]
            return self._name(found[0])

        own = re.compile(f"{MARK}{MARK}?|{self._written.pattern}").sub(renamed, text)
        tokenizer, ids = self._strict
        encoded = tokenizer(
            own, add_special_tokens=False, split_special_tokens=True, verbose=False
        )["input_ids"]
        return [ids.get(one, one) for one in encoded]

    @cached_property
    def _strict(self) -> tuple[Tokenizer, dict[int, int]]:
        """A copy that knows special tokens by secret names only, and their ids by the copy's.

        A copy, since a tokenizer splits either all special tokens of a text or none.
        """
        strict = copy.deepcopy(self._tokenizer)
        strict.add_tokens([*map(_special, self._added.values())], special_tokens=True)
        strict.add_tokens([*self._renamed()])
        known, own = strict.get_vocab(), self._tokenizer.get_vocab()
        return strict, {known[self._name(name)]: own[name] for name in self._added}

    def _renamed(self) -> Iterator[AddedToken]:
        for name, token in self._added.items():
            yield AddedToken(
                self._name(name), lstrip=token.lstrip, rstrip=token.rstrip, normalized=False
            )

    def _name(self, written: str) -> str:
        return f"{MARK}{self._key}{written}{MARK}"


def _special(token: AddedToken) -> AddedToken:
    return AddedToken(token.content, special=True, normalized=token.normalized)


def _turns_of(tokenizer: Tokenizer) -> str:
    """Conversations as the chat template shows them; empty without one."""
    return "".join(
        _filled(tokenizer, first) for first in ((), ("system",), ("developer",), ("tool",))
    )


def _filled(tokenizer: Tokenizer, first: Sequence[str]) -> str:
    said = [{"role": role, "content": "a"} for role in (*first, "user", "assistant", "user")]
    try:
        shown = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    except Exception:  # templates raise what they like
        return ""
    return str(shown)
