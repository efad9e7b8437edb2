"""Every setting of a generation, typed, with its unit, checked when it is made."""

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from flashback.declared import AUTO, CheckedSettings, Registry, check_number, flag_of, setting
from flashback.errors import SettingsError

PATTERNS: Registry[Any] = Registry("pattern")
"""The context patterns; `flashback.patterns.registry` registers them and gives this its type."""

_MOST_TOKENS = 1 << 20


class QueryForm(StrEnum):
    """What of a text, or of a chat, is the query of a stride; see `readers/queries.py`."""

    TOKENS = "tokens"
    SENTENCE = "sentence"
    TERMS = "terms"
    MESSAGE = "message"


@dataclass(frozen=True)
class SearchOptions:
    """Options of a search, the same for every query of a batch."""

    k: int = 1
    """Hits per query."""
    min_score: float = 0.0
    """Hits that score less are left out."""
    forbid_titles: tuple[str, ...] = ()
    """Passages with one of these titles are left out."""
    forbid_documents: tuple[str, ...] = ()
    """Passages of the documents with these ids are left out."""


@dataclass(frozen=True)
class FrameText(CheckedSettings):
    """The text around a passage, special tokens included; None: the reader's marks, if any.

    If only one of the two texts is given, the other is that of the pattern's `default_frame`.
    """

    before: str | None = None
    after: str | None = None
    echo_tokens: int | None = None
    """The context's last tokens that are repeated behind an appended passage."""
    echo_prompt: bool = True
    """Whether tokens of the prompt are repeated, too; if not, those written since."""
    no_passage: str = ""
    """The text where nothing was retrieved."""
    sink: str = ""
    """What a passage in a slot is computed behind; empty: BOS."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.echo_tokens is not None:
            check_number("--echo-tokens", self.echo_tokens, 0, _MOST_TOKENS)

    @property
    def has_text(self) -> bool:
        """Whether it replaces marking tokens."""
        return self.before is not None or self.after is not None


RECOMPUTED = 64
"""The default of e in plain text (docs/slot.md, "e tokens again")."""
_RECOMPUTE = (
    "e: in a slot, the last tokens computed again where passages are exchanged. 0: 64, in chats 16."
)
_HISTORY = (
    "h: in a slot, the prompt's first tokens that see no passage. 0: BOS alone; chats set it."
)


@dataclass(frozen=True)
class RetrievalSettings(CheckedSettings):
    """When to retrieve, what with, and how much of it (paper section 3)."""

    pattern: str = setting(
        AUTO,
        "Where passages stand. auto: as the adapter was trained; appended if the model has marking "
        "tokens; else in a slot, or prepended if the model supports no slot. none: nothing is "
        "retrieved, an index is not used.",
        choices=PATTERNS,
        auto=True,
    )
    stride: int = setting(16, "s: tokens written between two retrievals.", low=1, high=_MOST_TOKENS)
    query_tokens: int = setting(
        32, "ℓ: the last tokens of the context that become the query.", low=1, high=_MOST_TOKENS
    )
    query_form: QueryForm = setting(
        QueryForm.TOKENS,
        "The query. tokens: the last ℓ. sentence: the last sentence. terms: words of the last 8·ℓ "
        "tokens, later ones weighted more. message: the first ℓ tokens, in chats of the first "
        "message, and the last ℓ.",
    )
    passage_tokens: int = setting(
        128, "m: the tokens a passage is cut to.", low=1, high=_MOST_TOKENS
    )
    passages: int = setting(1, "k: passages per stride at most, best first.", low=1, high=1000)
    recompute_tokens: int = setting(0, _RECOMPUTE, low=0, high=_MOST_TOKENS)
    history_tokens: int = setting(0, _HISTORY, low=0, high=_MOST_TOKENS)
    lookahead: int = setting(
        0,
        "δ: search for the next passage this many tokens before a boundary, while decoding.",
        low=0,
        high=_MOST_TOKENS,
    )
    min_score: float = setting(0.0, "Leave out passages that score less.", low=0.0, high=1e9)
    min_relative_score: float = setting(
        0.5, "Leave out passages that score less than this part of the best.", low=0.0, high=1.0
    )
    forbid_titles: tuple[str, ...] = setting(
        (), "Leave out passages with this title (repeatable).", flag="--forbid-title"
    )
    forbid_documents: tuple[str, ...] = setting(
        (), "Leave out passages of the document of this id (repeatable).", flag="--forbid-document"
    )
    frame: FrameText | None = None
    """The text around passages; None: the reader's marking tokens, else the pattern's."""

    @property
    def recomputed(self) -> int:
        """e, the default if none was asked for."""
        return self.recompute_tokens or RECOMPUTED

    @property
    def retrieves(self) -> bool:
        """Whether the pattern has passages."""
        return self.pattern == AUTO or bool(PATTERNS[self.pattern].retrieves)

    @property
    def search_options(self) -> SearchOptions:
        """The options of the searches."""
        return SearchOptions(
            self.passages, self.min_score, self.forbid_titles, self.forbid_documents
        )

    def check_lookahead(self) -> None:
        """Refuse to search for a stride's passage before the stride before has begun.

        Raises:
            SettingsError: the lookahead is not less than the stride.
        """
        if self.lookahead >= self.stride:
            raise SettingsError(
                f"--lookahead={self.lookahead}: expected less than --stride={self.stride}"
            )

    def check_retriever(self, retriever: object | None) -> None:
        """Refuse to retrieve from nothing.

        Raises:
            SettingsError: the pattern has passages, but there is no retriever.
        """
        if self.retrieves and retriever is None:
            raise SettingsError(
                f"--pattern={self.pattern!r} retrieves, but there is no index; give an --index "
                "(or a --retriever), or use --pattern='none'"
            )


_COLDEST = 0.01
"""Below this temperature there is nothing to draw: the most probable token is written, as at 0."""


@dataclass(frozen=True)
class SamplingSettings(CheckedSettings):
    """How a token is drawn from the reader's distribution; the default is greedy."""

    temperature: float = setting(
        0.0, "From 0.01: draw tokens, the flatter the higher; below: greedy.", low=0.0, high=100.0
    )
    top_k: int = setting(0, "Draw from the k most probable tokens; 0: all.", low=0, high=1 << 30)
    top_p: float = setting(
        1.0, "Draw from the most probable tokens up to this probability.", low=1e-6, high=1.0
    )
    min_p: float = setting(
        0.0, "Draw from tokens with this share of the best one's probability.", low=0.0, high=1.0
    )
    repetition_penalty: float = setting(
        1.0,
        "Above 1: tokens of the text so far (not of passages) become less likely.",
        low=0.01,
        high=100.0,
    )
    seed: int = setting(0, "Decides what is drawn.", low=0, high=(1 << 64) - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.greedy:
            for field in dataclasses.fields(self):
                value = getattr(self, field.name)
                if field.name in ("top_k", "top_p", "min_p") and value != field.default:
                    raise SettingsError(
                        f"{flag_of(field)}={value}: has no effect on greedy writing; give a "
                        f"--temperature of {_COLDEST} or more, such as 0.8"
                    )

    @property
    def greedy(self) -> bool:
        return self.temperature < _COLDEST


@dataclass(frozen=True)
class StoppingSettings(CheckedSettings):
    """When writing ends."""

    max_new_tokens: int = setting(64, "Tokens to write at most.", low=1, high=1 << 24)
    stop: tuple[str, ...] = setting((), "End before this text; it may span strides (repeatable).")
    ignore_eos: bool = setting(False, "Write on after an end-of-text token.")
    json_schema: str = setting("", "A JSON schema that what is written obeys, or a file with one.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if "" in self.stop:
            raise SettingsError("--stop='': expected a text that is not empty")


@dataclass(frozen=True)
class Settings(CheckedSettings):
    """Everything about one generation but the prompt, the reader and the index."""

    retrieval: RetrievalSettings = RetrievalSettings()
    sampling: SamplingSettings = SamplingSettings()
    stopping: StoppingSettings = StoppingSettings()
    truncate: bool = setting(False, "Cut a prompt that is too long from the left; else refuse it.")
    cache_salt: str = ""
    """Only texts with the same one share what is cached."""
