"""A passage for every boundary: searched in batches, copies of the document left out, kept on disk.

What a document is scored or trained on must not be what it is given: passages of the document
itself, passages of its title, and passages that largely repeat it are never used.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path

from flashback.corpus.split import Overlap
from flashback.errors import FlashBackWarning
from flashback.files import write_atomically
from flashback.patterns.prompt import Ids
from flashback.readers.reader import Reader
from flashback.retrieval.protocol import Hit, Retriever
from flashback.scoring.examples import Example
from flashback.scoring.windows import Window
from flashback.settings import RetrievalSettings

COPY = 0.5
"""A passage is a copy of a document if this share of its first 128 words' 8-grams stands in it, or
all of it, where it has fewer than 8 words."""
_RULES = 2
"""Of what a copy is: another number makes kept lookups void."""
_SPARE = 8
"""Hits asked for beyond k, to replace copies."""


@dataclass(frozen=True)
class Found:
    """What was found for the cuts of one window, and how close it came to the document."""

    hits: tuple[tuple[Hit, ...], ...]
    """For each cut up to k hits, best first."""
    copies: tuple[int, ...]
    """For each cut, how many better hits were left out because they repeat the document."""
    overlapping: tuple[bool, ...]
    """For each cut, whether its first hit has at least one 8-gram in common with the document."""

    def every(self, step: int, passages: int) -> "Found":
        """What a stride `step` times as long, and fewer passages, would have found.

        The copies remain those met while looking for all passages.
        """
        hits = tuple(hits[:passages] for hits in self.hits[::step])
        return Found(hits, self.copies[::step], self.overlapping[::step])

    def passages(self, reader: Reader, settings: RetrievalSettings) -> tuple[tuple[Ids, ...], ...]:
        """The tokens of the first k hits of each cut, each hit cut to m tokens."""
        return tuple(
            tuple(
                tuple(reader.encode(hit.text)[: settings.passage_tokens])
                for hit in hits[: settings.passages]
            )
            for hits in self.hits
        )


class Lookup:
    """Finds passages for windows with one retriever and one set of settings."""

    def __init__(self, reader: Reader, retriever: Retriever, settings: RetrievalSettings) -> None:
        self._reader = reader
        self._retriever = retriever
        self._settings = settings

    def queries(self, window: Window) -> list[str]:
        """The text of the last ℓ tokens of each cut's context."""
        contexts = [window.context(cut) for cut in window.cuts]
        ahead = self._settings.lookahead
        if ahead:  # what comes first has no stride before it from which to look ahead
            later = 0 if window.continues else 1
            contexts[later:] = [context[:-ahead] for context in contexts[later:]]
        return [self._reader.decode(one[-self._settings.query_tokens :]) for one in contexts]

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
                found = self._retriever.search(self.queries(window), options)
                yield _without_copies(found, overlap, self._settings.passages)


def _without_copies(found: Sequence[Sequence[Hit]], overlap: Overlap, k: int) -> Found:
    one = [_keep(hits, overlap, k) for hits in found]
    return Found(
        tuple(hits for hits, _, _ in one),
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
    """Keeps what was found in a folder; an entry is used again when nothing has changed."""

    folder: Path
    index: str
    """What tells the retriever and its contents from others, such as the index's checksums."""

    def find(
        self,
        lookup: Lookup,
        windows: Sequence[Window],
        settings: RetrievalSettings,
        start: Callable[[int], Callable[[], None]] = lambda _: lambda: None,
    ) -> tuple[list[Found], bool]:
        """What is found for `windows`, and whether it came from disk.

        `start` is called with the number of windows if they must be searched, and what it returns
        after each.
        """
        path = self.folder / f"passages-{self._key(lookup, windows, settings)[:32]}.jsonl"
        kept = _read(path, windows)
        if kept is not None:
            return kept, True
        found = []
        on_window = start(len(windows))
        for one in lookup.search(windows):
            found.append(one)
            on_window()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, "".join(json.dumps(asdict(one)) + "\n" for one in found))
        except OSError as error:
            reason = error.strerror or error
            warnings.warn(f"{path}: {reason}; the lookup is not kept", FlashBackWarning, 2)
        return found, False

    def _key(self, lookup: Lookup, windows: Sequence[Window], settings: RetrievalSettings) -> str:
        options = asdict(settings.search_options)
        digest = hashlib.sha256(json.dumps([self.index, options, COPY, _SPARE, _RULES]).encode())
        for document, own in groupby(windows, key=lambda window: window.document):
            parts = [document.id, document.title, document.text]
            queries = [lookup.queries(window) for window in own]
            digest.update(json.dumps([parts, queries]).encode())
        return digest.hexdigest()


def _read(path: Path, windows: Sequence[Window]) -> list[Found] | None:
    """A kept entry; None if there is none, or it is no longer whole."""
    cuts = [len(window.cuts) for window in windows]
    try:
        with open(path, encoding="utf-8") as file:
            records = [json.loads(line) for line in file]
        found = [
            Found(
                tuple(tuple(Hit(**hit) for hit in hits) for hits in record["hits"]),
                tuple(record["copies"]),
                tuple(record["overlapping"]),
            )
            for record in records
        ]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    for parts in ("hits", "copies", "overlapping"):
        if [len(getattr(one, parts)) for one in found] != cuts:
            return None
    return found


def examples_of(
    windows: Sequence[Window],
    found: Sequence[Found],
    reader: Reader,
    settings: RetrievalSettings,
) -> list[Example]:
    """Windows and what was found for them, in tokens."""
    examples = []
    for window, one in zip(windows, found, strict=True):
        parts = one.passages(reader, settings)
        together = tuple(tuple(token for part in shown for token in part) for shown in parts)
        limits = settings.passage_tokens, settings.passages
        examples.append(Example(window, together, *limits, parts))
    return examples
