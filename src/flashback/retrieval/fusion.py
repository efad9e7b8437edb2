"""Several retrievers as one: reciprocal rank fusion (Cormack, Clarke and Buettcher 2009).

    score(d) = sum of w_i / (K + rank_i(d)) over the retrievers that found d, divided by that of a
               passage that all rank first

So a score is from 0 to 1, and says in whose ranking a passage stands rather than how well it
matches: rank 60 of a retriever counts half of rank 1. `min_relative_score` is a share of agreement:
0.5 leaves in what retrievers of about half of the weight found that found the best passage.

Symbols: w_i weights, K = 60.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from flashback.declared import CheckedSettings, setting
from flashback.errors import SettingsError
from flashback.retrieval.protocol import Hit, Retriever, Sampled, ask, check_search, identity_of
from flashback.settings import SearchOptions

_K = 60


@dataclass(frozen=True)
class FusionSettings(CheckedSettings):
    """How what several indexes find becomes one ranking."""

    fusion_weights: str = setting(
        "", "With several indexes: the weight of each, in their order, such as 1,0.5; else equal."
    )
    fusion_depth: int = setting(
        100, "With several indexes: hits of each that are looked at.", low=1, high=1000
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._parsed()

    def weights(self, retrievers: int) -> tuple[float, ...]:
        """A weight for each of so many retrievers.

        Raises:
            SettingsError: there are weights for another number of them.
        """
        given = self._parsed() or (1.0,) * retrievers
        if len(given) != retrievers:
            raise SettingsError(
                f"--fusion-weights={self.fusion_weights!r}: expected a weight for each of "
                f"{retrievers} indexes, found {len(given)}"
            )
        return given

    def _parsed(self) -> tuple[float, ...]:
        parts = self.fusion_weights.split(",") if self.fusion_weights.strip() else []
        try:
            found = tuple(map(float, parts))
        except ValueError:
            found = (-1.0,)
        if not all(0 < weight <= 1e6 for weight in found):
            raise SettingsError(
                f"--fusion-weights={self.fusion_weights!r}: expected numbers above 0, such as 1,0.5"
            )
        return found


class FusedRetriever:
    """A retriever over several. Two hits are one if document and text are the same."""

    def __init__(
        self, retrievers: Sequence[Retriever], settings: FusionSettings | None = None
    ) -> None:
        """Take retrievers; the first is the one whose ids are kept.

        Raises:
            SettingsError: there are weights for another number of them.
        """
        self.parts = tuple(retrievers)
        self._settings = settings or FusionSettings()
        self._weights = self._settings.weights(len(self.parts))

    def over(self, parts: Sequence[Retriever]) -> "FusedRetriever":
        """See `Combined`."""
        return FusedRetriever(parts, self._settings)

    @property
    def identity(self) -> str | None:
        """See `identity_of`."""
        parts = [identity_of(retriever) for retriever in self.parts]
        return None if None in parts else f"{parts} {self._weights} {self._settings.fusion_depth}"

    def sample(self) -> list[str]:
        """See `Sampled`."""
        return [
            text
            for retriever in self.parts
            if isinstance(retriever, Sampled)
            for text in retriever.sample()
        ]

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        """See `Retriever.search`; `min_score` is one of the fused scores.

        Raises:
            SettingsError: k is below 1, `queries` is one text, or a retriever gives no hits.
        """
        check_search(queries, options)
        deeper = replace(options, k=max(options.k, self._settings.fusion_depth), min_score=0.0)
        found = [ask(retriever, queries, deeper) for retriever in self.parts]
        return [
            [hit for hit in fuse(rankings, self._weights) if hit.score >= options.min_score][
                : options.k
            ]
            for rankings in zip(*found, strict=True)
        ]


def fuse(rankings: Sequence[Sequence[Hit]], weights: Sequence[float]) -> list[Hit]:
    """One ranking of all hits, with fused scores; of equal ones, those of the first ranking first.

    Args:
        rankings: of one query, best first.
        weights: one for each ranking.
    """
    scores: dict[tuple[str, str], float] = {}
    hits: dict[tuple[str, str], Hit] = {}
    best = sum(weight / (_K + 1) for weight in weights)
    for ranking, weight in zip(rankings, weights, strict=True):
        own: dict[tuple[str, str], Hit] = {}
        for hit in ranking:
            own.setdefault((hit.document_id, hit.text), hit)
        for rank, (key, hit) in enumerate(own.items(), start=1):
            hits.setdefault(key, hit)
            scores[key] = scores.get(key, 0.0) + weight / (_K + rank) / best
    ordered = sorted(scores, key=lambda key: -scores[key])  # keeps the order of equal ones
    return [replace(hits[key], score=scores[key]) for key in ordered]
