"""Structured output: what is written obeys a JSON schema.

The kept library `llguidance` says which tokens may come next; the others are never chosen. A text
that is complete ends with an end-of-text token.
"""

import importlib
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flashback.errors import SettingsError, missing_extra
from flashback.readers.text_reader import TextReader
from flashback.settings import Settings

LONGEST_SCHEMA = 1 << 16
"""Characters of a schema: it is compiled before the first token."""
_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As `json.dumps` writes it: with any space allowed, small readers may write lines of them."""
_FLAG = "--json-schema"


class JsonConstraint:
    """The tokens that may come next in one text; see `flashback.sampling.Constraint`."""

    def __init__(self, schema: str, matcher: Any) -> None:
        """Take a matcher of llguidance; None, if the engine chooses tokens elsewhere."""
        self.schema = schema
        self._matcher = matcher

    def allowed(self, scores: Tensor) -> Tensor:
        """The scores (1, V), those of tokens that may not come next at minus infinity."""
        words = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        bits = torch.from_numpy(np.unpackbits(words, bitorder="little").astype(np.bool_))
        allowed = torch.zeros(scores.shape[-1], dtype=torch.bool)
        size = min(len(bits), len(allowed))
        allowed[:size] = bits[:size]
        return scores.masked_fill(~allowed.to(scores.device), float("-inf"))

    def accept(self, token: int) -> None:
        """A token was written."""
        if self._matcher is not None:
            self._matcher.consume_token(token)


def constraint_of(
    settings: Settings,
    reader: TextReader,
    begun: Sequence[int] = (),
    *,
    chosen_here: bool = True,
) -> JsonConstraint | None:
    """The constraint of a text; None: anything may be written.

    Args:
        begun: the tokens of what is written that stand in the prompt already.
        chosen_here: see `Capabilities.chooses_here`. Elsewhere a schema holds for one stride.

    Raises:
        SettingsError: the schema is none, or is not supported; what has begun does not obey it;
            the reader has no end-of-text token; llguidance is not installed.
    """
    schema = settings.stopping.json_schema
    if not schema:
        return None
    if settings.stopping.ignore_eos or not reader.eos:
        raise SettingsError(
            f"{_FLAG}: what is complete ends with an end-of-text token; expected a reader that has "
            "one, without --ignore-eos"
        )
    if not chosen_here:
        _check_one_stride(settings, begun)
        return JsonConstraint(_checked(schema), None)
    matcher = _matcher(_checked(schema), reader)
    if begun and not matcher.consume_tokens(list(begun)):
        raise SettingsError(f"{_FLAG}: the message that is continued does not obey the schema")
    return JsonConstraint(schema, matcher)


def _check_one_stride(settings: Settings, begun: Sequence[int]) -> None:
    stride, most = settings.retrieval.stride, settings.stopping.max_new_tokens
    if begun or stride < most:
        raise SettingsError(
            f"{_FLAG}: this engine's server begins it anew at every stride; expected a text that "
            f"begins with it, and a --stride of at least {most}, the most new tokens"
        )


def _checked(schema: str) -> str:
    """A schema as JSON text.

    Raises:
        SettingsError: it is too long, or not a JSON object.
    """
    if len(schema) > LONGEST_SCHEMA:
        raise SettingsError(
            f"{_FLAG}: {len(schema):,} characters; expected at most {LONGEST_SCHEMA:,}"
        )
    try:
        read = json.loads(schema)
    except ValueError as error:
        raise SettingsError(f"{_FLAG}: {error}; expected a JSON schema") from None
    if not isinstance(read, dict):
        raise SettingsError(f"{_FLAG}: {type(read).__name__}; expected a JSON schema, an object")
    return schema


def _matcher(schema: str, reader: TextReader) -> Any:
    try:
        kind = importlib.import_module("llguidance").LLMatcher
    except ImportError:
        raise missing_extra(_FLAG, "llguidance", "structured") from None
    grammar = kind.grammar_from_json_schema(schema, defaults=_COMPACT)
    matcher = kind(_grammar_tokenizer(reader.tokenizer, reader.eos), grammar, log_level=0)
    if matcher.is_error():
        reason = " ".join(matcher.get_error().split())
        raise SettingsError(f"{_FLAG}: {reason}; expected a JSON schema that can be followed")
    return matcher


@lru_cache(maxsize=2)
def _grammar_tokenizer(tokenizer: Any, eos: frozenset[int]) -> Any:
    """The tokenizer as llguidance reads it: about a second of work, shared by all texts."""
    from_tokenizer = importlib.import_module("llguidance.hf").from_tokenizer
    try:
        return from_tokenizer(tokenizer, n_vocab=len(tokenizer), eos_token=sorted(eos))
    except ValueError as error:
        raise SettingsError(f"{_FLAG}: {error}; this reader's tokenizer has no grammars") from None
