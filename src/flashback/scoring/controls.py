"""Passages that a search did not find, to compare with those that it did.

What retrieval is worth lies between a passage that has nothing to do with the text and one that is
found by the text to come. Knows windows and hits. Knows nothing of models' scores.
"""

import random
from collections.abc import Sequence
from itertools import groupby

from flashback.corpus.documents import Document
from flashback.corpus.split import Overlap
from flashback.errors import SettingsError
from flashback.readers.queries import query_text
from flashback.retrieval.protocol import Hit
from flashback.scoring.lookup import Found, Lookup, without_copies
from flashback.scoring.windows import Window
from flashback.settings import RetrievalSettings


class OracleLookup(Lookup):
    """Finds passages by the text that is to come."""

    def queries(self, window: Window) -> list[str]:
        """The text of the ℓ tokens behind each cut."""
        ahead = self._settings.query_tokens
        texts = (window.ids[cut.boundary : cut.boundary + ahead] for cut in window.cuts)
        return [query_text(self._reader, ids, self._settings) for ids in texts]


def random_passages(
    windows: Sequence[Window], found: Sequence[Found], settings: RetrievalSettings, seed: int
) -> list[Found]:
    """For every cut the hits of one of another document; never of its own, or copies of it.

    Args:
        found: of `windows`.
        seed: with a window's tokens, decides which.

    Raises:
        SettingsError: nothing was found for another document.
    """
    pool = [
        (window.document.id, hits)
        for window, one in zip(windows, found, strict=True)
        for hits in one.hits
        if hits
    ]
    drawn: list[Found] = []
    for document, own in groupby(windows, key=lambda window: window.document):
        others = [hits for identifier, hits in pool if identifier != document.id]
        if not others:
            raise SettingsError(
                "--control random: passages of other documents are shown, and nothing was found "
                "for any but one; give more documents"
            )
        overlap = Overlap([document.text])
        for window in own:
            draw = random.Random(f"{seed} {document.id} {window.ids}")
            chosen = [_not_of(document, draw.choice(others)) for _ in window.cuts]
            drawn.append(without_copies(chosen, overlap, settings))
    return drawn


def _not_of(document: Document, hits: Sequence[Hit]) -> list[Hit]:
    """The hits that are neither of a document nor of its title."""
    return [
        hit
        for hit in hits
        if hit.document_id != document.id and not (document.title and hit.title == document.title)
    ]
