"""Documents to windows: token sequences with a stride boundary every s tokens.

Knows token ids, lengths and how many positions a reader has. Knows nothing of retrievers.

Symbols: N window, s stride, b a boundary (the s targets are ids[b, b+s)), a the first token of the
context that b's targets are given; positions are half-open and count BOS.
"""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from flashback.corpus.documents import Document
from flashback.errors import SettingsError
from flashback.patterns.prompt import Ids
from flashback.patterns.registry import PATTERNS
from flashback.readers.reader import Reader
from flashback.scoring.window_settings import Protocol, WindowSettings
from flashback.settings import RetrievalSettings

_STRIDES_TOGETHER = 32
"""Strides per window, where every stride has its own context."""


@dataclass(frozen=True)
class Cut:
    """A stride of targets: its boundary b, and where its context begins."""

    boundary: int
    start: int = 0


@dataclass(frozen=True)
class Window:
    """A piece of a document and the strides in it."""

    document: Document
    """Where it comes from; the text is the whole document's."""
    ids: Ids
    """BOS, if the reader has one, and the text's tokens."""
    bos: int
    """How many of the ids are BOS; they begin every context."""
    cuts: tuple[Cut, ...]
    stride: int
    continues: bool = False
    """Whether its first stride follows the last one of the window before."""

    def context(self, cut: Cut) -> Ids:
        """The context of the cut's targets, BOS first."""
        start = max(cut.start, self.bos)
        return self.ids[: self.bos] + self.ids[start : cut.boundary]

    def targets(self, cut: Cut) -> Ids:
        """The s tokens behind the boundary."""
        return self.ids[cut.boundary : cut.boundary + self.stride]

    def every(self, step: int) -> "Window":
        """The same window with strides `step` times as long, of which it must have whole ones."""
        return replace(self, cuts=self.cuts[::step], stride=self.stride * step)

    @property
    def shares_context(self) -> bool:
        """Whether every context begins where the window does."""
        return all(cut.start <= self.bos for cut in self.cuts)

    @property
    def target_count(self) -> int:
        return len(self.cuts) * self.stride


def cut_windows(
    documents: Iterable[Document],
    reader: Reader,
    settings: WindowSettings,
    stride: int,
    *,
    multiple: int = 1,
) -> Iterator[Window]:
    """Stream the windows of every document, in order, each with at least one stride.

    Args:
        documents: longer ones give several windows, by the protocol of the settings.
        stride: s.
        multiple: of how many strides a window's targets are a multiple, so that the targets are
            the same for several strides.
    """
    for document in documents:
        ids = reader.encode(document.text)
        if settings.protocol is Protocol.WINDOWS:
            cut = _tiles(ids, document, reader.bos, settings, stride, multiple)
        else:
            cut = _whole(ids, document, reader.bos, settings, stride)
        yield from cut


def _tiles(
    ids: list[int],
    document: Document,
    bos: Ids,
    settings: WindowSettings,
    stride: int,
    multiple: int,
) -> Iterator[Window]:
    """Windows end to end; the last one is as long as the rest of the text allows."""
    size = settings.window_tokens - len(bos)
    for start in range(0, len(ids), size):
        window = bos + tuple(ids[start : start + size])
        first = max(settings.first_boundary, len(bos))
        strides = (len(window) - first) // (stride * multiple) * multiple
        if strides > 0:
            cuts = tuple(Cut(first + number * stride) for number in range(strides))
            yield Window(document, window[: first + strides * stride], len(bos), cuts, stride)


def _whole(
    ids: list[int], document: Document, bos: Ids, settings: WindowSettings, stride: int
) -> Iterator[Window]:
    """The whole document, some strides per window, every stride with its own context."""
    window = bos + tuple(ids)
    draw = random.Random(f"{settings.seed} {document.id}")
    if settings.protocol is Protocol.RANDOM:
        low, first = random_lengths(settings.window_tokens)
    else:
        low, first = 0, max(settings.first_boundary, len(bos))
    longest = settings.window_tokens - stride - len(bos)
    cuts = []
    for boundary in range(first, len(window) - stride + 1, stride):
        context = longest if settings.protocol is Protocol.SLIDING else draw.randint(low, first)
        cuts.append(Cut(boundary, max(0, boundary - context)))
    for at in range(0, len(cuts), _STRIDES_TOGETHER):
        some = tuple(cuts[at : at + _STRIDES_TOGETHER])
        yield Window(document, window, len(bos), some, stride, continues=at > 0)


def random_lengths(window: int) -> tuple[int, int]:
    """The shortest and the longest context of the paper's code: 128 to 367 of 512 tokens."""
    return window * 128 // 512, window * 367 // 512


def shortened(window: Window, settings: WindowSettings) -> Window:
    """The same targets, each with a context cut to a random length as in the paper's code."""
    low, high = random_lengths(settings.window_tokens)
    draw = random.Random(f"{settings.seed} {window.document.id} {window.ids[:64]}")
    cuts = tuple(
        replace(cut, start=max(cut.start, cut.boundary - draw.randint(low, high)))
        for cut in window.cuts
    )
    return replace(window, cuts=cuts)


def check_positions(
    reader: Reader, windows: WindowSettings, retrieval: RetrievalSettings, frame: int | None = None
) -> None:
    """Refuse windows that, with passages, do not fit the reader's positions.

    Args:
        frame: f, tokens around passages; None: the longer of the pattern's text and two marks.

    Raises:
        SettingsError: N + k·m + f positions are more than the reader has.
    """
    needed, passages, advice = windows.window_tokens, "", ""
    if retrieval.retrieves:
        if frame is None:
            default = PATTERNS[retrieval.pattern].default_frame
            frame = max(len(reader.frame(default, retrieval.pattern)), 2)
        needed += retrieval.passages * retrieval.passage_tokens + frame
        passages = (
            f" with {retrieval.passages} x {retrieval.passage_tokens} passage and {frame} frame "
            "tokens"
        )
        advice = " or --passage-tokens"
    if needed > reader.window:
        raise SettingsError(
            f"windows of {windows.window_tokens} tokens{passages} need {needed} positions, but "
            f"{reader.name} has {reader.window} ({reader.window_reason}); lower "
            f"--window-tokens{advice}"
        )
