"""Many texts in one batch, stride by stride; a finished text makes room for the next one.

All texts of a batch retrieve, prefill and decode together. Each is a `Text` with a sampler and
a cached sequence of its own, so its tokens do not depend on its neighbours.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from flashback.declared import check_number, check_type
from flashback.engines.protocol import Batch, Request
from flashback.errors import SettingsError
from flashback.retrieval.protocol import Hit
from flashback.settings import RetrievalSettings
from flashback.writing.text import Generation, Text

Find = Callable[[Sequence[str], RetrievalSettings], list[list[Hit]]]
"""The passages for each query."""


def write_together(
    batch: Batch, texts: Iterator[tuple[int, Text]], find: Find
) -> Iterator[tuple[int, Generation]]:
    """Write numbered texts with the same settings; each as it ends.

    Args:
        texts: taken as there is room for them.
    """
    writing: list[tuple[int, Text]] = []
    while True:
        writing += islice(texts, batch.rows - len(writing))
        if not writing:
            return
        _write_stride(batch, [text for _, text in writing], find)
        yield from ((number, text.result()) for number, text in writing if text.finish_reason)
        writing = [(number, text) for number, text in writing if text.finish_reason is None]


def _write_stride(batch: Batch, texts: Sequence[Text], find: Find) -> None:
    """One stride of every text."""
    began = time.perf_counter()
    queries = [text.begin_stride() for text in texts]
    searching = time.perf_counter()
    found = find(queries, texts[0].settings.retrieval)
    requests = [
        Request(text.arrange(hits), text.stride_tokens, text.sampler)
        for text, hits in zip(texts, found, strict=True)
    ]
    retrieve_seconds = (time.perf_counter() - searching) / len(texts)
    for tokens in batch.complete(requests):
        for number, token in tokens:
            texts[number].take(token)
            requests[number].closed = texts[number].finish_reason is not None
    for text, request in zip(texts, requests, strict=True):
        text.end_stride(request.usage, retrieve_seconds)
    _share(time.perf_counter() - began, texts)


def _share(seconds: float, texts: Sequence[Text]) -> None:
    """Add to every text its stride's time, and an equal share of the time that is nobody's."""
    strides = [text.strides[-1] for text in texts]
    own = [
        one.usage.prefill_seconds + one.usage.decode_seconds + one.retrieve_seconds
        for one in strides
    ]
    for text, part in zip(texts, own, strict=True):
        text.seconds += part + (seconds - sum(own)) / len(texts)


def check_batch(prompts: object, batch_size: object) -> None:
    """Refuse what are no prompts, and an impossible size of a batch."""
    check_number("--batch-size", batch_size, 1, 1 << 20)
    if isinstance(prompts, str):  # it would be taken letter by letter
        raise SettingsError(
            f"prompts={prompts[:40]!r}: expected several texts, found one; use [...]"
        )
    check_type("prompts", prompts, Iterable)
