"""Passages for every boundary: searched in batches, without copies of the document, kept on disk.

A document must not be scored or trained on with its own text as a passage: passages of the document
itself, of its title, and passages that largely repeat it are never used.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from flashback.corpus.place import place_of
from flashback.corpus.split import Overlap
from flashback.errors import FlashBackWarning
from flashback.files import write_atomically
from flashback.patterns.prompt import Ids
from flashback.readers.passages import passage_ids
from flashback.readers.queries import query_text
from flashback.readers.reader import Reader
from flashback.retrieval.protocol import Hit, Retriever, ask, failures_of, near_best
from flashback.scoring.examples import Example
from flashback.scoring.windows import Window
from flashback.settings import RetrievalSettings

COPY = 0.5
"""A passage is a copy of a document if this share of its first 128 words' 8-grams stands in it, or
all of it, where it has fewer than 8 words."""
_RULES = 2
"""Version of the rules for copies: a new number invalidates the lookups on disk."""
_SPARE = 8
"""Hits asked for beyond k, to replace copies."""

StartLookup = Callable[[int], Callable[[], None]]
"""Called with the number of windows that are looked up; returns what is called after each."""


@dataclass(frozen=True)
class Found:
    """The hits of the cuts of one window, and how much of the document they repeat."""

    hits: tuple[tuple[Hit, ...], ...]
    """For each cut up to k hits, best first."""
    copies: tuple[int, ...]
    """For each cut, how many better hits were left out because they repeat the document."""
    overlapping: tuple[bool, ...]
    """For each cut, whether its first hit has at least one 8-gram in common with the document."""

    def every(self, step: int, passages: int) -> "Found":
        """What would have been found for a stride `step` times as long, and fewer passages.

        The copies remain those that were skipped while looking for all passages.
        """
        hits = tuple(hits[:passages] for hits in self.hits[::step])
        return Found(hits, self.copies[::step], self.overlapping[::step])

    def passages(self, reader: Reader, settings: RetrievalSettings) -> tuple[Ids, ...]:
        """The tokens of each cut's first k hits, see `passage_ids`."""
        return tuple(
            passage_ids(reader, (hit.text for hit in hits[: settings.passages]), settings)
            for hits in self.hits
        )


class Lookup:
    """Finds passages for windows with one retriever and one set of settings."""

    def __init__(self, reader: Reader, retriever: Retriever, settings: RetrievalSettings) -> None:
        self._reader = reader
        self._retriever = retriever
        self._settings = settings

    @property
    def failures(self) -> int:
        """Queries so far that failed and found nothing."""
        return failures_of(self._retriever)

    def queries(self, window: Window) -> list[str]:
        """The text of the last ℓ tokens of each cut's context."""
        contexts = [window.context(cut) for cut in window.cuts]
        ahead = self._settings.lookahead
        if ahead:  # a text's first boundary has no stride before it to look ahead from
            later = 0 if window.continues else 1
            contexts[later:] = [context[:-ahead] for context in contexts[later:]]
        return [query_text(self._reader, one, self._settings) for one in contexts]

    def search(self, windows: Iterable[Window]) -> Iterator[Found]:
        """Find passages for windows; those of one document should come one after another."""
        for document, own in groupby(windows, key=lambda window: window.document):
            overlap = Overlap([document.text])
            options = self._settings.search_options
            options = replace(
                options,
                k=options.k + _SPARE,
                forbid_titles=(*options.forbid_titles, *filter(None, [document.title])),
                forbid_documents=(*options.forbid_documents, document.id),
            )
            for window in own:
                found = ask(self._retriever, self.queries(window), options)
                yield without_copies(found, overlap, self._settings)

    def search_all(self, windows: Sequence[Window], start: StartLookup) -> list[Found]:
        """The same as a list.

        Args:
            start: called with the number of windows; what it returns is called after each.
        """
        on_window = start(len(windows))
        found = []
        for one in self.search(windows):
            found.append(one)
            on_window()
        return found


def without_copies(
    found: Sequence[Sequence[Hit]], overlap: Overlap, settings: RetrievalSettings
) -> Found:
    """The first k hits of every cut that do not repeat the document."""
    one = [_keep(hits, overlap, settings.passages) for hits in found]
    share = settings.min_relative_score
    return Found(
        tuple(tuple(near_best(hits, share)) for hits, _, _ in one),
        tuple(copies for _, copies, _ in one),
        tuple(overlapping for _, _, overlapping in one),
    )


def _keep(hits: Sequence[Hit], overlap: Overlap, k: int) -> tuple[tuple[Hit, ...], int, bool]:
    """The first k hits that are no copies, how many were, and whether the first one overlaps."""
    good: list[Hit] = []
    copies, overlapping = 0, False
    for hit in hits:
        share = overlap.repeats(hit.text)
        if share >= COPY:
            copies += 1
            continue
        overlapping = overlapping or (not good and share > 0)
        good.append(hit)
        if len(good) == k:
            break
    return tuple(good), copies, overlapping


@dataclass(frozen=True)
class LookupCache:
    """Keeps lookups in a folder; an entry is reused while nothing that decides it has changed."""

    folder: Path
    index: str
    """Identifies the retriever and its contents, such as the index's checksums."""

    def find(
        self,
        lookup: Lookup,
        windows: Sequence[Window],
        settings: RetrievalSettings,
        start: StartLookup = lambda _: lambda: None,
    ) -> tuple[list[Found], bool]:
        """Passages for `windows`, and whether they came from disk.

        Args:
            start: see `Lookup.search_all`; not called for windows that are on disk.
        """
        path = self.folder / f"passages-{self._key(lookup, windows, settings)[:32]}.jsonl"
        kept = _read(path, windows)
        if kept is not None:
            return kept, True
        failures = lookup.failures
        found = lookup.search_all(windows, start)
        if lookup.failures != failures:  # another time, the searches may not fail
            return found, False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, "".join(json.dumps(asdict(one)) + "\n" for one in found))
        except OSError as error:
            reason = error.strerror or error
            warnings.warn(f"{path}: {reason}; the lookup is not kept", FlashBackWarning, 2)
        return found, False

    def _key(self, lookup: Lookup, windows: Sequence[Window], settings: RetrievalSettings) -> str:
        options = [asdict(settings.search_options), settings.min_relative_score]
        digest = hashlib.sha256(json.dumps([self.index, options, COPY, _SPARE, _RULES]).encode())
        for document, own in groupby(windows, key=lambda window: window.document):
            parts = [document.id, document.title, document.text]
            queries = [lookup.queries(window) for window in own]
            digest.update(json.dumps([parts, queries]).encode())
        return digest.hexdigest()


def _read(path: Path, windows: Sequence[Window]) -> list[Found] | None:
    """An entry; None if there is none, or it is not whole."""
    cuts = [len(window.cuts) for window in windows]
    try:
        with open(path, encoding="utf-8") as file:
            records = [json.loads(line) for line in file]
        found = [
            Found(
                tuple(tuple(map(_hit, hits)) for hits in record["hits"]),
                tuple(record["copies"]),
                tuple(record["overlapping"]),
            )
            for record in records
        ]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    for parts in ("hits", "copies", "overlapping"):
        if [len(getattr(one, parts)) for one in found] != cuts:
            return None
    return found


def _hit(record: dict[str, Any]) -> Hit:
    place = record.pop("place")
    return Hit(**record, place=None if place is None else place_of(place))


def examples_of(
    windows: Sequence[Window],
    found: Sequence[Found],
    reader: Reader,
    settings: RetrievalSettings,
) -> list[Example]:
    """Examples made of windows and their hits."""
    limits = settings.passage_tokens, settings.passages, settings.recomputed
    return [
        Example(window, one.passages(reader, settings), *limits, settings.history_tokens)
        for window, one in zip(windows, found, strict=True)
    ]
