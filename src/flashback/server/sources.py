"""Strides and their passages as records of the API.

Offsets are characters (Unicode code points) of a choice's text, half-open. The strides of a choice
tile what was written; with `echo` and `logprobs` they tile the prompt, too.
"""

from dataclasses import asdict
from typing import Any

from flashback.engines.protocol import Usage
from flashback.retrieval.protocol import Hit
from flashback.server.events import Incident, SpanEnd, SpanStart

_EXCERPT = 240
"""Characters."""


def passage_record(hit: Hit) -> dict[str, Any]:
    """A passage of a stride, shortened."""
    text = " ".join(hit.text.split())
    excerpt = text if len(text) <= _EXCERPT else text[: _EXCERPT - 1].rstrip() + "…"
    return _identity(hit) | {"excerpt": excerpt}


def hit_record(hit: Hit) -> dict[str, Any]:
    """A passage that a search found, whole."""
    return _identity(hit) | {"text": hit.text}


def _identity(hit: Hit) -> dict[str, Any]:
    return {
        "id": hit.id,
        "document_id": hit.document_id,
        "title": hit.title,
        "place": None if hit.place is None else asdict(hit.place),
        "source": hit.source,
        "score": hit.score,
    }


def start_record(event: SpanStart) -> dict[str, Any]:
    """The start of a stride."""
    return {
        "choice": event.choice,
        "stride": event.stride,
        "start": event.start,
        "scored": event.scored,
        "passages": [passage_record(hit) for hit in event.passages],
    }


def end_record(event: SpanEnd, start: SpanStart) -> dict[str, Any]:
    """The end of a stride.

    Strides of a scored text are computed in packed passes, so there are no counts for each.
    """
    record: dict[str, Any] = {
        "choice": event.choice,
        "stride": event.stride,
        "start": start.start,
        "end": event.end,
        "tokens": event.tokens,
        "retrieve_seconds": event.retrieve_seconds,
        "seconds": event.seconds,
    }
    if start.scored:
        return record
    return record | {"prefill_seconds": event.usage.prefill_seconds} | token_counts(event.usage)


def token_counts(usage: Usage) -> dict[str, int]:
    """The tokens of a stride; `encoded` is the old name of `prefilled`."""
    return {
        "reused": usage.reused,
        "prefilled": usage.prefilled,
        "encoded": usage.prefilled,
        "decoded": usage.decoded,
    }


def incident_record(event: Incident) -> dict[str, Any]:
    """Something that went wrong, or that a client should know."""
    return {
        "event": event.event,
        "choice": event.choice,
        "stride": event.stride,
        "message": event.message,
    }
