"""Passages that a search did not find, to compare with those that it did.

In-Context RALM's controls (arXiv 2302.00083, section 6): what retrieval is worth lies between a
passage that has nothing to do with the text and the best one that could have been found.
"""

import random
from collections.abc import Sequence

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
    drawn = []
    for window in windows:
        own = window.document
        others = [hits for identifier, hits in pool if identifier != own.id]
        if not others:
            raise SettingsError(
                "--control random: passages of other documents are shown, and nothing was found "
                "for any but one; give more documents"
            )
        draw = random.Random(f"{seed} {own.id} {window.ids}")
        chosen = [_not_of(own.id, own.title, draw.choice(others)) for _ in window.cuts]
        drawn.append(without_copies(chosen, Overlap([own.text]), settings))
    return drawn


def _not_of(identifier: str, title: str, hits: Sequence[Hit]) -> list[Hit]:
    return [
        hit for hit in hits if hit.document_id != identifier and not (title and hit.title == title)
    ]
