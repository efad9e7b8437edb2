"""A generation as plain data: enough to recompute every stride with plain transformers."""

from dataclasses import asdict
from typing import Any

from flashback.readers.card import AdapterCard
from flashback.readers.placement import Placement
from flashback.readers.reader import Reader
from flashback.readers.text_reader import TextReader
from flashback.settings import Settings
from flashback.version import versions
from flashback.writing.text import Generation, Stride


def generation_record(
    generation: Generation, reader: TextReader, settings: Settings
) -> dict[str, Any]:
    """The record printed by `flashback generate --json`; seconds are wall-clock time."""
    return {
        "model": reader.name,
        "pattern": str(settings.retrieval.pattern),
        "settings": settings_record(reader, settings),
        "versions": versions(),
        **text_record(generation),
    }


def text_record(generation: Generation) -> dict[str, Any]:
    """What was written, stride by stride."""
    return {
        "prompt_tokens": list(generation.prompt_tokens),
        "tokens": list(generation.tokens),
        "text": generation.text,
        "finish_reason": generation.finish_reason,
        "jumps": list(generation.jumps),
        "strides": [_stride_record(stride) for stride in generation.strides],
        "totals": _totals(generation),
    }


def short_record(generation: Generation) -> dict[str, Any]:
    """What was written and which passages stood behind it."""
    return {
        "text": generation.text,
        "tokens": list(generation.tokens),
        "finish_reason": generation.finish_reason,
        "jumps": list(generation.jumps),
        "passages": [
            [{"id": hit.id, "title": hit.title} for hit in stride.passages]
            for stride in generation.strides
        ],
        "totals": _totals(generation),
    }


def _totals(generation: Generation) -> dict[str, Any]:
    return {
        "reused": generation.reused,
        "prefilled": generation.prefilled,
        "encoded": generation.prefilled,  # the former name, for one version
        "decoded": generation.decoded,
        "seconds": generation.seconds,
        "tokens_per_second": generation.tokens_per_second,
    }


def settings_record(reader: TextReader, settings: Settings) -> dict[str, Any]:
    """All settings, and what the reader made of them."""
    frame = reader.frame(settings.retrieval.frame, settings.retrieval.pattern)
    placed = placement_record(reader.placement) if isinstance(reader, Reader) else {}
    return (
        asdict(settings)
        | placed
        | {
            "window": reader.window,
            "frame_tokens": {
                "before": list(frame.before),
                "after": list(frame.after),
                "echo": frame.echo,
                "sink": list(frame.sink),
            },
            "adapter": None if reader.adapter is None else adapter_record(reader.adapter),
        }
    )


def placement_record(placement: Placement) -> dict[str, Any]:
    """Where a model runs, in which precision, and how its weights are kept."""
    return {
        "placement": str(placement),
        "device": str(placement.device),
        "dtype": placement.dtype_name,
        "weights": str(placement.weights),
        "products": list(placement.products),
    }


def adapter_record(card: AdapterCard) -> dict[str, Any]:
    """What was merged into the reader, without how it was trained."""
    return {
        "base": card.base.fingerprint,
        "pattern": str(card.pattern),
        "marks": str(card.marks),
        "echo_tokens": card.echo_tokens,
        "frame_before": card.frame_before,
    }


def _stride_record(stride: Stride) -> dict[str, Any]:
    return {
        "arranged": list(stride.arranged),
        "tokens": list(stride.tokens),
        "text": stride.text,
        "passages": [
            {
                "id": hit.id,
                "title": hit.title,
                "text": hit.text,
                "score": hit.score,
                "place": None if hit.place is None else asdict(hit.place),
            }
            for hit in stride.passages
        ],
        "reused": stride.usage.reused,
        "prefilled": stride.usage.prefilled,
        "sink": stride.usage.sink,
        "encoded": stride.usage.prefilled,  # the former name, for one version
        "decoded": stride.usage.decoded,
        "seconds": {
            "retrieve": stride.retrieve_seconds,
            "prefill": stride.usage.prefill_seconds,
            "decode": stride.usage.decode_seconds,
            "encode": stride.usage.prefill_seconds,  # the former name, for one version
        },
    }
