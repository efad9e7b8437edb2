"""Documents and a retriever to windows with passages: what training and evaluation begin with.

One lookup serves several strides, numbers of passages and passage lengths: it is made at the
boundaries of all strides and for the most passages, and every setting takes its part of it.
"""

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from flashback.corpus.documents import Document
from flashback.errors import CorpusError
from flashback.packing.forward import Example
from flashback.packing.lookup import Found, Lookup, LookupCache, examples_of
from flashback.packing.settings import Protocol, WindowSettings
from flashback.packing.windows import Window, cut_documents
from flashback.reader import Reader
from flashback.retrieval.protocol import Retriever
from flashback.settings import RetrievalSettings

StartLookup = Callable[[int], Callable[[], None]]
"""Given how many windows are looked up: what to call after each."""


@dataclass(frozen=True)
class Prepared:
    """Windows, and what was found for them."""

    windows: tuple[Window, ...]
    found: tuple[Found, ...]
    from_disk: bool = False
    """Whether nothing had to be searched."""

    def examples(self, reader: Reader, settings: RetrievalSettings) -> list[Example]:
        """The same in tokens."""
        return examples_of(self.windows, self.found, reader, settings)


def prepare(
    documents: Iterable[Document],
    reader: Reader,
    retriever: Retriever,
    settings: Sequence[RetrievalSettings],
    windows: WindowSettings,
    *,
    cache: LookupCache | None = None,
    start: StartLookup = lambda _: lambda: None,
) -> list[Prepared]:
    """Cut documents into windows and look up passages, once for all `settings`.

    Args:
        documents: read once.
        settings: one or more; all have the same targets if the protocol is `windows`.
        cache: where what was found is kept.
        start: called with the number of windows before they are looked up.

    Raises:
        CorpusError: not one document is long enough for a stride.
    """
    strides = {setting.stride for setting in settings}
    if windows.protocol is not Protocol.WINDOWS and len(strides) > 1:
        kept = list(documents)
        return [
            prepare(kept, reader, retriever, [one], windows, cache=cache, start=start)[0]
            for one in settings
        ]
    finest = math.gcd(*strides)
    cut = _drawn(
        cut_documents(documents, reader, windows, finest, multiple=math.lcm(*strides) // finest),
        windows,
    )
    if not cut:
        least = windows.first_boundary + math.lcm(*strides)
        raise CorpusError(
            f"no document has {least} tokens, which a first boundary and a stride need; give "
            "longer documents, or lower --first-boundary or --stride"
        )
    found = {
        length: _looked_up(cut, reader, retriever, settings, length, cache, start)
        for length in sorted({setting.query_tokens for setting in settings})
    }
    return [_part(cut, found[one.query_tokens], one, finest) for one in settings]


def _drawn(windows: Iterable[Window], settings: WindowSettings) -> list[Window]:
    """All windows, or as many as are wanted, drawn at random but in their order."""
    every = list(windows)
    if not 0 < settings.max_windows < len(every):
        return every
    chosen = random.Random(settings.seed).sample(range(len(every)), settings.max_windows)
    return [every[at] for at in sorted(chosen)]


def _looked_up(
    windows: Sequence[Window],
    reader: Reader,
    retriever: Retriever,
    settings: Sequence[RetrievalSettings],
    query_tokens: int,
    cache: LookupCache | None,
    start: StartLookup,
) -> tuple[list[Found], bool]:
    most = replace(
        settings[0],
        query_tokens=query_tokens,
        passages=max(one.passages for one in settings),
    )
    lookup = Lookup(reader, retriever, most)
    if cache is not None:
        return cache.find(lookup, windows, most, start)
    on_window = start(len(windows))
    found = []
    for one in lookup.search(windows):
        found.append(one)
        on_window()
    return found, False


def _part(
    windows: Sequence[Window],
    found: tuple[list[Found], bool],
    settings: RetrievalSettings,
    finest: int,
) -> Prepared:
    step = settings.stride // finest
    return Prepared(
        tuple(window.every(step) for window in windows),
        tuple(one.every(step, settings.passages) for one in found[0]),
        found[1],
    )
