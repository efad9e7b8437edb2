"""Vectors of a store's passages, by a named encoder: `?encoder=NAME` of a store's URL.

A store with an encoder has two ways to search, by words and by meaning: a URL without the encoder
searches by words what one with it has filled. Passages and queries are encoded here, not by the
store; what it holds of another encoder is refused.
"""

from collections.abc import Callable, Sequence

import numpy as np

from flashback.errors import RetrieverError
from flashback.retrieval.encoders import Encoder, encode, same_vector
from flashback.retrieval.protocol import storable

Sample = tuple[str, Sequence[float]]
"""A passage of a store as it is shown, and its vector (D,)."""
_TOGETHER = 256
"""Texts that are encoded together."""


class StoreVectors:
    """The encoder of a store's vectors. Safe to share between threads."""

    def __init__(self, encoder: Encoder, shown: str) -> None:
        """Use an encoder.

        Args:
            shown: the store, as errors about it begin.
        """
        self._encoder = encoder
        self._shown = shown

    @property
    def dimension(self) -> int:
        """D, of a vector."""
        return self._encoder.dimension

    def of_passages(self, texts: Sequence[str]) -> list[list[float] | None]:
        """A unit vector (D,) for each text as it is shown; None: it has no known token.

        Raises:
            ReaderError: the encoder gives something else than vectors.
        """
        return self._listed(texts, query=False)

    def of_queries(self, queries: Sequence[str]) -> list[tuple[int, list[float]]]:
        """The place and the unit vector (D,) of each query that has a known token.

        Raises:
            ReaderError: the encoder gives something else than vectors.
        """
        texts = [storable(query).strip() for query in queries]
        asked = [at for at, text in enumerate(texts) if text]
        vectors = self._listed([texts[at] for at in asked], query=True)
        return [(at, one) for at, one in zip(asked, vectors, strict=True) if one is not None]

    def check(self, dimension: int | None, sample: Callable[[], Sample | None]) -> None:
        """Refuse what a store holds of another encoder.

        Args:
            dimension: of the store's vectors; None: it has none.
            sample: gives one of its passages; None: there is none.

        Raises:
            RetrieverError: the dimension is another, or the encoder gives that passage another
                vector.
        """
        name = self._encoder.name
        if dimension is None:
            raise RetrieverError(
                f"{self._shown}: it was made without vectors; search it without ?encoder=, or fill "
                "a new one with it"
            )
        if dimension != self.dimension:
            raise RetrieverError(
                f"{self._shown}: vectors of {dimension} dimensions, but the encoder {name} has "
                f"{self.dimension}; name the encoder it was filled with, or fill a new one"
            )
        if (found := sample()) is not None and not same_vector(self._encoder, *found):
            raise RetrieverError(
                f"{self._shown}: the encoder {name} gives other vectors than those in it; name the "
                "encoder it was filled with, or fill a new one"
            )

    def _listed(self, texts: Sequence[str], *, query: bool) -> list[list[float] | None]:
        starts = range(0, len(texts), _TOGETHER)
        parts = (texts[start : start + _TOGETHER] for start in starts)
        vectors = (one for part in parts for one in encode(self._encoder, part, query=query))
        return [one.tolist() if np.any(one) else None for one in vectors]
