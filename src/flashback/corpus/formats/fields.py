"""A record's fields to a document: our names, BEIR's, Pyserini's, or what is asked for."""

import math
from collections.abc import Collection, Mapping
from typing import Any

from flashback.corpus.documents import Document
from flashback.corpus.formats.file_settings import FileSettings
from flashback.corpus.place import Layout


def document_of(
    record: Mapping[str, Any], fallback_id: str, number: int, settings: FileSettings
) -> Document | str:
    """A document, or why there is none.

    Args:
        number: of the record's line or row.
    """
    text = _first(record, settings.text_fields)
    title = _first(record, settings.title_fields) or ""
    identifier = _first(record, settings.id_fields)
    if identifier is None:
        identifier = fallback_id
    if not isinstance(text, str) or not text.strip():
        return f"no text: expected a non-empty string in {named(settings.text_fields)}"
    if not isinstance(title, str):
        return f"{named(settings.title_fields)} is {type(title).__name__}, expected a string"
    if (reason := _why_no_id(identifier, settings)) is not None:
        return reason
    if not is_storable(f"{identifier} {title} {text}"):
        return "a lone surrogate (half of a \\uXXXX\\uXXXX pair), which is no character"
    return Document(str(identifier), title, text, Layout(record=number))


def named(fields: Collection[str]) -> str:
    """Fields as a message names them."""
    return " or ".join(map(repr, fields))


def is_storable(text: str) -> bool:
    """Whether a text is Unicode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _first(record: Mapping[str, Any], names: Collection[str]) -> Any:
    return next((record[name] for name in names if record.get(name) is not None), None)


def _why_no_id(identifier: object, settings: FileSettings) -> str | None:
    field = repr(settings.id_fields[0])
    if not isinstance(identifier, str | int | float) or isinstance(identifier, bool):
        return f"{field} is {type(identifier).__name__}, expected a string or a number"
    if isinstance(identifier, float) and not math.isfinite(identifier):
        return f"{field} is {identifier}, expected a string or a finite number"
    return None
