"""Documents cut into windows, and passages for them: the input of training and evaluation.

One lookup serves several strides, numbers of passages and passage lengths: it is made at the
boundaries of all strides and for the most passages, and every setting takes its part of it.
"""

import math
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from flashback.corpus.documents import Document, name_of
from flashback.declared import AUTO
from flashback.errors import CorpusError, SettingsError
from flashback.readers.reader import Reader
from flashback.retrieval.protocol import Retriever
from flashback.scoring.control_kind import Control
from flashback.scoring.controls import OracleLookup, random_passages
from flashback.scoring.examples import Example
from flashback.scoring.lookup import Found, Lookup, LookupCache, StartLookup, examples_of
from flashback.scoring.window_settings import Protocol, WindowSettings
from flashback.scoring.windows import Window, cut_windows, random_lengths
from flashback.settings import RetrievalSettings


@dataclass(frozen=True)
class RetrievedWindows:
    """Windows and the hits of their cuts."""

    windows: tuple[Window, ...]
    found: tuple[Found, ...]
    from_disk: bool = False
    """Whether all hits came from the lookups on disk."""
    controls: Mapping[Control, tuple[Found, ...]] = field(default_factory=dict)
    """What else can be shown."""

    def first_windows(self) -> "RetrievedWindows":
        """The first window of each document alone."""
        firsts: dict[tuple[str, str], int] = {}
        for at, window in enumerate(self.windows):
            firsts.setdefault(name_of(window.document), at)
        return replace(
            self,
            windows=tuple(self.windows[at] for at in firsts.values()),
            found=tuple(self.found[at] for at in firsts.values()),
            controls={
                control: tuple(found[at] for at in firsts.values())
                for control, found in self.controls.items()
            },
        )

    def examples(
        self, reader: Reader, settings: RetrievalSettings, control: Control | None = None
    ) -> list[Example]:
        """Examples: the windows with the tokens of their passages.

        Args:
            control: passages to show instead of those that were found.

        Raises:
            CorpusError: passages were found, but the reader has no tokens for any of them.
        """
        shown = self.found if control is None else self.controls[control]
        examples = examples_of(self.windows, shown, reader, settings)
        found = sum(map(bool, (hits for one in shown for hits in one.hits)))
        if found and not any(any(example.passages) for example in examples):
            raise CorpusError(
                f"the tokenizer of {reader.name} has no tokens for any passage at {found:,} "
                "boundaries; give an index of texts that it reads, or another reader"
            )
        return examples


def cut_and_retrieve(
    documents: Iterable[Document],
    reader: Reader,
    retriever: Retriever,
    settings: Sequence[RetrievalSettings],
    windows: WindowSettings,
    *,
    cache: LookupCache | None = None,
    start: StartLookup = lambda _: lambda: None,
    controls: Collection[Control] = (),
) -> list[RetrievedWindows]:
    """Cut documents into windows and retrieve passages, once for all `settings`.

    Args:
        documents: read once.
        settings: one or more; all have the same targets if the protocol is `windows`.
        cache: keeps the hits.
        start: see `Lookup.search_all`.
        controls: passages wanted besides those that are found.

    Raises:
        SettingsError: a window has no room for a stride, or there is nothing to show at random.
        CorpusError: not one document is long enough for a stride.
    """
    for one in settings:
        one.check_lookahead()
    run = _Run(reader, retriever, windows, cache, start, frozenset(controls))
    if windows.protocol is Protocol.WINDOWS:
        return run.together(documents, settings)
    kept = list(documents)
    found: dict[RetrievalSettings, RetrievedWindows] = {}
    for stride in sorted({one.stride for one in settings}):  # each has its own contexts
        own = [one for one in settings if one.stride == stride]
        found |= zip(own, run.together(kept, own), strict=True)
    return [found[one] for one in settings]


@dataclass(frozen=True)
class _Run:
    """What all settings have in common; see `cut_and_retrieve`."""

    reader: Reader
    retriever: Retriever
    windows: WindowSettings
    cache: LookupCache | None
    start: StartLookup
    controls: Collection[Control]

    def together(
        self, documents: Iterable[Document], settings: Sequence[RetrievalSettings]
    ) -> list[RetrievedWindows]:
        """Windows with boundaries for all strides, looked up once for all that search alike."""
        strides = sorted({one.stride for one in settings})
        finest, coarsest = math.gcd(*strides), math.lcm(*strides)
        cut = self._cut(documents, strides, finest, coarsest)
        most = max(one.passages for one in settings)
        lookups: dict[Control | None, type[Lookup]] = {None: Lookup}
        if Control.ORACLE in self.controls:
            lookups[Control.ORACLE] = OracleLookup
        found = {
            asked: {
                control: self._looked_up(cut, kind(self.reader, self.retriever, asked), asked)
                for control, kind in lookups.items()
            }
            for asked in dict.fromkeys(_asked(one, most) for one in settings)
        }
        return [self._part(cut, found[_asked(one, most)], one, finest) for one in settings]

    def _cut(
        self, documents: Iterable[Document], strides: Sequence[int], finest: int, coarsest: int
    ) -> list[Window]:
        first = _first_boundary(self.reader, self.windows, strides)
        multiple = coarsest // finest
        every = cut_windows(documents, self.reader, self.windows, finest, multiple=multiple)
        cut = _drawn(every, self.windows)
        if not cut:
            drawn = self.windows.protocol is Protocol.RANDOM
            raise CorpusError(
                f"no document has {first + coarsest} tokens, which a first boundary at {first} and "
                f"{_strides(strides)} need; give longer documents, or lower "
                f"{'--window-tokens' if drawn else '--first-boundary'} or --stride"
            )
        return cut

    def _looked_up(
        self, windows: Sequence[Window], lookup: Lookup, asked: RetrievalSettings
    ) -> tuple[list[Found], bool]:
        if self.cache is not None:
            return self.cache.find(lookup, windows, asked, self.start)
        return lookup.search_all(windows, self.start), False

    def _part(
        self,
        windows: Sequence[Window],
        lookups: Mapping[Control | None, tuple[list[Found], bool]],
        settings: RetrievalSettings,
        finest: int,
    ) -> RetrievedWindows:
        """What one of the settings has of windows and lookups that are made for all."""
        step = settings.stride // finest
        own = tuple(window.every(step) for window in windows)
        parts = {
            control: tuple(one.every(step, settings.passages) for one in some)
            for control, (some, _) in lookups.items()
        }
        found = parts[None]
        controls = {control: part for control, part in parts.items() if control is not None}
        if Control.RANDOM in self.controls:
            drawn = random_passages(own, found, settings, self.windows.seed)
            controls[Control.RANDOM] = tuple(drawn)
        from_disk = all(kept for _, kept in lookups.values())
        return RetrievedWindows(own, found, from_disk, controls)


def _first_boundary(reader: Reader, windows: WindowSettings, strides: Sequence[int]) -> int:
    """Where a document's first targets begin.

    Raises:
        SettingsError: a window has no room for a context and a stride.
    """
    first = least = max(windows.first_boundary, len(reader.bos))
    if windows.protocol is Protocol.RANDOM:
        first = random_lengths(windows.window_tokens)[1]
        least = len(reader.bos) + first
    elif windows.protocol is Protocol.SLIDING:
        least = len(reader.bos) + 1
    if windows.window_tokens < least + math.lcm(*strides):
        more = "--first-boundary or " if windows.protocol is Protocol.WINDOWS else ""
        raise SettingsError(
            f"--window-tokens={windows.window_tokens}: a context of {least} tokens and "
            f"{_strides(strides)} do not fit; raise it, or lower {more}--stride"
        )
    return first


def _strides(strides: Sequence[int]) -> str:
    several = " (a multiple of all strides)" if len(strides) > 1 else ""
    return f"a stride of {math.lcm(*strides)}{several}"


def _asked(settings: RetrievalSettings, passages: int) -> RetrievalSettings:
    """The settings that decide a lookup: equal for those that share one."""
    return replace(
        settings,
        pattern=AUTO,
        stride=1,
        passage_tokens=1,
        passages=passages,
        recompute_tokens=1,
        history_tokens=0,
        frame=None,
    )


def check_found(retrieved: Sequence[RetrievedWindows]) -> None:
    """Refuse patterns that have passages where none was found.

    Raises:
        CorpusError: not one passage was found, for any of the settings.
    """
    hits = [hits for one in retrieved for window in one.found for hits in window.hits]
    if not any(hits):
        raise CorpusError(
            f"no passage was found for any of {len(hits):,} boundaries: the index has none but "
            "of the documents themselves, copies of them, and what --min-score, --forbid-title "
            "and --forbid-document leave out; give an index of other texts"
        )


def _drawn(windows: Iterable[Window], settings: WindowSettings) -> list[Window]:
    """All windows, or so many drawn at random, in their order."""
    every = list(windows)
    if not 0 < settings.max_windows < len(every):
        return every
    chosen = random.Random(settings.seed).sample(range(len(every)), settings.max_windows)
    return [every[at] for at in sorted(chosen)]
