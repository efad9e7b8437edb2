"""A reader without its model: the tokenizer, the window and the special tokens.

Enough to write with an engine that runs the model elsewhere. Knows token ids and frames.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from transformers import PreTrainedTokenizerBase as Tokenizer

from flashback.declared import AUTO, named
from flashback.errors import ReaderError, SettingsError
from flashback.patterns.frame import Frame
from flashback.patterns.pattern import ContextPattern
from flashback.patterns.prompt import Ids
from flashback.patterns.registry import PATTERNS, best_untrained
from flashback.readers.byte_tokens import ByteTokens
from flashback.readers.card import AdapterCard
from flashback.readers.lora_settings import LoraSettings, Marks
from flashback.readers.special_tokens import MARK, SpecialTokens
from flashback.settings import FrameText

MARK_LEFT, MARK_RIGHT = "<MARK_L>", "<MARK_R>"
"""The paper's Marking Tokens, if the tokenizer has them."""
_MOST_SINK = 32
"""Tokens of a sink: they are computed again with every passage."""


@dataclass(frozen=True, kw_only=True)
class TextReader:
    """A model's text side: text to token ids and back, frames, special tokens."""

    name: str
    tokenizer: Tokenizer
    window: int
    """Positions that a sequence may take."""
    window_reason: str
    """Where that number comes from."""
    adapter: AdapterCard | None = None
    """The card of the adapter that is merged into the model, if any."""
    ends: frozenset[int] = frozenset()
    """Ids that end a text; none: the tokenizer's."""
    place: str = "elsewhere"
    """Where the model runs."""
    _encoding: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)
    """Held while the tokenizer encodes: splitting special tokens is a state of the tokenizer."""

    @property
    def runs_on(self) -> str:
        """Where the model runs, as users are shown it."""
        return self.place

    @cached_property
    def bos(self) -> Ids:
        """The ids that the tokenizer puts in front of every text; empty for many families."""
        plain = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        full = self.tokenizer("a")["input_ids"]
        return tuple(full[: next((i for i in range(len(full)) if full[i:][:1] == plain[:1]), 0)])

    @cached_property
    def eos(self) -> frozenset[int]:
        """The ids that end a text."""
        return self.ends or ids_of(self.tokenizer.eos_token_id)

    @cached_property
    def marks(self) -> tuple[int, int] | None:
        """The ids of the two marking tokens, if the tokenizer has them."""
        known = self.tokenizer.get_vocab()
        if MARK_LEFT in known and MARK_RIGHT in known:
            return known[MARK_LEFT], known[MARK_RIGHT]
        return None

    @cached_property
    def vocabulary_size(self) -> int:
        """How many ids the tokenizer has."""
        return len(self.tokenizer)

    @property
    def forbidden(self) -> Ids:
        """Ids that must never be written: the marking tokens."""
        return self.marks or ()

    def encode(self, text: str) -> list[int]:
        """Plain text to ids; what looks like a special token in it is text like any other.

        Raises:
            ReaderError: the tokenizer gives an id that the model does not have.
        """
        return self._encoded(text, split_special_tokens=True)

    def encode_prompt(self, text: str) -> list[int]:
        """A prompt to ids, BOS first if the reader has one.

        Special tokens written in a prompt are meant: it comes from the user, not from a corpus. A
        prompt that begins with BOS gets no other one.

        Raises:
            ReaderError: the tokenizer gives an id that the model does not have.
        """
        ids = self.encode_given(text)
        if self.bos and tuple(ids[: len(self.bos)]) == self.bos:
            return ids
        if not ids and not self.bos and self.tokenizer.bos_token_id is not None:
            return [self.tokenizer.bos_token_id]
        return [*self.bos, *ids]

    def encode_given(self, text: str) -> list[int]:
        """The ids of a prompt without what is put in front of it.

        Raises:
            ReaderError: the tokenizer gives an id that the model does not have.
        """
        return self._encoded(text)

    def encode_template(self, text: str) -> list[int]:
        """A filled chat template to ids; it brings its own special tokens.

        What looks like one is text where `as_text` marked it.

        Raises:
            ReaderError: the tokenizer gives an id that the model does not have.
        """
        if MARK not in text:
            return self._encoded(text)
        with self._encoding:
            return self._known(self._special_tokens.encode(text))

    def as_text(self, content: str) -> str:
        """A text for a chat template in which nothing is a special token, as `encode` takes it."""
        return self._special_tokens.as_text(content)

    @cached_property
    def _special_tokens(self) -> SpecialTokens:
        return SpecialTokens(self.tokenizer)

    def _encoded(self, text: str, *, split_special_tokens: bool = False) -> list[int]:
        with self._encoding:
            encoding = self.tokenizer(
                text,
                add_special_tokens=False,
                split_special_tokens=split_special_tokens,
                verbose=False,
            )
        return self._known(encoding["input_ids"])

    def _known(self, ids: list[int]) -> list[int]:
        if ids and max(ids) >= self.vocabulary_size:
            raise ReaderError(
                f"model {self.name}: its tokenizer gives the id {max(ids)}, but the model has only "
                f"{self.vocabulary_size}; the two do not belong together"
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Ids to text; special tokens and marks are left out."""
        return self._decoded([one for one in ids if one not in self.forbidden], skip_special=True)

    def show(self, ids: Sequence[int]) -> str:
        """Ids to text, special tokens and marks included, for people who debug."""
        return self._decoded(list(ids), skip_special=False)

    @cached_property
    def byte_tokens(self) -> ByteTokens:
        """The tokens that are one byte each, if the tokenizer is of that kind."""
        return ByteTokens(self.tokenizer)

    def _decoded(self, ids: list[int], *, skip_special: bool) -> str:
        if not self.byte_tokens.ids.isdisjoint(ids):
            return self.byte_tokens.decode(ids, skip_special=skip_special)
        text = self.tokenizer.decode(
            ids, skip_special_tokens=skip_special, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text

    def frame(self, text: FrameText | None, pattern: str) -> Frame:
        """The ids around passages: of the given text, else marks if any, else of the pattern's.

        A reader whose adapter was trained without marks gets nothing instead of the pattern's text.
        """
        own = replace(self._own_frame(pattern), sink=self.bos)
        if text is None:
            return own
        own = replace(own, sink=self._sink(text.sink), echo_prompt=text.echo_prompt)
        if text.echo_tokens is not None:
            own = replace(own, echo=text.echo_tokens)
        return self._text_frame(text, pattern, own) if text.has_text else own

    def frame_ids(self, text: str) -> Ids:
        """A text around passages as ids; BOS stays with the context, or the sink."""
        return self._without_bos(tuple(self.encode_template(text)))

    def frame_tokens(self, settings: LoraSettings) -> int:
        """f: the tokens that a frame that is trained adds to a passage."""
        marked = settings.marks.frame_tokens(settings.echo_tokens)
        return marked + len(self.frame_ids(settings.text_before))

    def _own_frame(self, pattern: str) -> Frame:
        card = self.adapter
        echo = 0 if card is None else card.echo_tokens
        # In another pattern than the adapter's, its words have another meaning.
        trained = card is not None and card.pattern == pattern
        before = self.frame_ids(card.frame_before) if card is not None and trained else ()
        without = card is not None and card.marks is Marks.NONE
        if self.marks is not None and not without:
            return Frame((*before, self.marks[0]), (self.marks[1],), echo)
        if card is not None:
            return Frame(before, echo=echo)
        default = PATTERNS[pattern].default_frame
        return self._text_frame(default, pattern, Frame(echo=default.echo_tokens or 0))

    def _text_frame(self, text: FrameText, pattern: str, own: Frame) -> Frame:
        """A frame with other ids around passages."""
        default = PATTERNS[pattern].default_frame
        before = default.before if text.before is None else text.before
        after = default.after if text.after is None else text.after
        ids, behind, shown = map(self.frame_ids, (before or "", after or "", text.no_passage))
        return replace(own, before=ids, after=behind, no_passage=shown)

    def _sink(self, text: str) -> Ids:
        """The ids that a passage in a slot is computed behind; of a long text BOS and the end."""
        if not text:
            return self.bos
        ids = tuple(self.encode_template(text))
        rest = self._without_bos(ids)
        front = ids[: len(ids) - len(rest)]
        return front + rest[max(len(ids) - _MOST_SINK, 0) :]

    def _without_bos(self, ids: Ids) -> Ids:
        return ids[len(self.bos) :] if ids[: len(self.bos)] == self.bos else ids

    def can_have(self, pattern: ContextPattern) -> bool:
        """Whether the model supports a pattern, as far as it is known here."""
        return self.why_not(pattern) is None

    def why_not(self, pattern: ContextPattern) -> str | None:
        """Why the model does not support a pattern, as far as it is known here; None: it does."""
        return None

    def untrained_for(self, name: str) -> str | None:
        """What a user should know if passages are read well only after training; else None.

        Args:
            name: of a pattern, or `auto`.
        """
        if name == AUTO or not PATTERNS[name].needs_training:
            return None
        if self.adapter is not None or self.marks is not None:
            return None
        return (
            f"{self.name} was not trained for {name}: it answers worse, and may copy the text "
            f"around passages; use {best_untrained(self.can_have)} or an adapter (flashback train)"
        )

    def check_pattern(self, name: str) -> None:
        """Refuse a pattern that the model does not support.

        Raises:
            SettingsError: there is no such pattern, or the model does not support it.
        """
        reason = self.why_not(PATTERNS[named("--pattern", name, list(PATTERNS))])
        if reason is not None:
            raise SettingsError(f"--pattern={name!r}: {self.name} {reason}; use append or prepend")


def ids_of(given: int | Sequence[int] | None) -> frozenset[int]:
    """One id, several, or none, as configurations have them."""
    return frozenset([given] if isinstance(given, int) else given or [])
