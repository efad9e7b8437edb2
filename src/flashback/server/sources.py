"""Which passage stood behind which part of a text, as the API tells it.

Offsets are characters (Unicode code points) of a choice's text, half-open. The strides of a choice
tile what was written; with `echo` and `logprobs` they tile the prompt, too.
"""

from typing import Any

from flashback.retrieval.protocol import Hit
from flashback.server.events import Incident, SpanEnd, SpanStart

_EXCERPT = 240
"""Characters."""


def passage_record(hit: Hit) -> dict[str, Any]:
    """A passage that a text was written with."""
    text = " ".join(hit.text.split())
    excerpt = text if len(text) <= _EXCERPT else text[: _EXCERPT - 1].rstrip() + "…"
    return _identity(hit) | {"excerpt": excerpt}


def hit_record(hit: Hit) -> dict[str, Any]:
    """A passage that was searched for, whole."""
    return _identity(hit) | {"text": hit.text}


def _identity(hit: Hit) -> dict[str, Any]:
    return {
        "id": hit.id,
        "document_id": hit.document_id,
        "title": hit.title,
        "score": hit.score,
    }


def start_record(event: SpanStart) -> dict[str, Any]:
    """A stride begins."""
    return {
        "choice": event.choice,
        "stride": event.stride,
        "start": event.start,
        "scored": event.scored,
        "passages": [passage_record(hit) for hit in event.passages],
    }


def end_record(event: SpanEnd, start: SpanStart) -> dict[str, Any]:
    """A stride is finished.

    What was scored came from packed passes, so that no stride has counts of its own.
    """
    record = {
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
    usage = event.usage
    return record | {
        "reused": usage.reused,
        "prefilled": usage.prefilled,
        "encoded": usage.prefilled,  # the former name, for one version
        "decoded": usage.decoded,
    }


def incident_record(event: Incident) -> dict[str, Any]:
    """Something that went wrong, or that should be known."""
    return {
        "event": event.event,
        "choice": event.choice,
        "stride": event.stride,
        "message": event.message,
    }
