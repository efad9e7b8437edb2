"""What a retriever finds, ranked anew by a model that reads query and passage together."""

import hashlib
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from flashback.declared import CheckedSettings, setting
from flashback.errors import ReaderError
from flashback.retrieval.protocol import (
    Hit,
    Retriever,
    Sampled,
    ask,
    check_search,
    identity_of,
    storable,
)
from flashback.settings import SearchOptions

READER = "reader"
"""The reranker that is the reader itself, see `flashback.scoring.reader_reranker`."""


@dataclass(frozen=True)
class RerankSettings(CheckedSettings):
    """Whether, and by what, found passages are ranked anew."""

    reranker: str = setting(
        "",
        "Rank what is found anew: reader, or a cross-encoder of sentence-transformers, a folder or "
        "hub name.",
    )
    rerank_candidates: int = setting(
        20,
        "With --reranker: passages of each search that are ranked; no others are found.",
        low=1,
        high=1000,
    )


class Reranker(Protocol):
    """Scores passages for a query. Safe to share between threads."""

    def scores(self, query: str, hits: Sequence[Hit]) -> Sequence[float]:
        """A number for each hit; higher is better, above 0, and comparable by ratio."""
        ...


class CrossEncoderReranker:
    """A cross-encoder of sentence-transformers; by default it gives scores from 0 to 1."""

    def __init__(self, name: str) -> None:
        """Load a model.

        Args:
            name: a folder, or a name on the Hugging Face hub; code in it is not run.

        Raises:
            ReaderError: sentence-transformers is not installed, or the model is unusable.
        """
        from flashback.retrieval.sentence_encoder import loaded  # NumPy takes a while to import

        self.name = name
        self.identity = f"{name}{_files(Path(name))}"
        """Changes with the files of a folder."""
        self._model = loaded("reranker", name, _open)
        self._lock = threading.Lock()

    def scores(self, query: str, hits: Sequence[Hit]) -> list[float]:
        """See `Reranker.scores`.

        Raises:
            ReaderError: the model gives a pair of texts more than one number, or none.
        """
        pairs = [(query, hit.text) for hit in hits]
        with self._lock:
            found = self._model.predict(pairs, show_progress_bar=False, convert_to_numpy=True)
        if found.shape != (len(hits),):
            raise ReaderError(
                f"reranker {self.name}: gives a pair of texts {found.shape[1:]} numbers; expected "
                "one: a cross-encoder with one label"
            )
        return [float(score) for score in found]


def _files(folder: Path) -> str:
    """A digest of the names, sizes and times of a folder's files; empty: there is none."""
    if not folder.is_dir():
        return ""
    files = ((path, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file())
    listed = [(str(path.relative_to(folder)), one.st_size, one.st_mtime_ns) for path, one in files]
    return f" {hashlib.sha256(repr(listed).encode()).hexdigest()[:16]}"


def _open(name: str) -> Any:
    from sentence_transformers import CrossEncoder

    return CrossEncoder(name, trust_remote_code=False)


class RerankedRetriever:
    """A retriever whose best candidates are ranked anew; hits have the reranker's scores."""

    def __init__(
        self,
        retriever: Retriever,
        reranker: Reranker,
        candidates: int = RerankSettings.rerank_candidates,
    ) -> None:
        """Take a retriever, what ranks anew, and how many hits of each query it is given."""
        self.retriever = retriever
        self.reranker = reranker
        self._candidates = candidates

    @property
    def parts(self) -> tuple[Retriever]:
        """See `Combined`."""
        return (self.retriever,)

    def over(self, parts: Sequence[Retriever]) -> "RerankedRetriever":
        """See `Combined`."""
        return RerankedRetriever(parts[0], self.reranker, self._candidates)

    @property
    def identity(self) -> str | None:
        """See `identity_of`."""
        found, name = identity_of(self.retriever), getattr(self.reranker, "name", None)
        name = getattr(self.reranker, "identity", name)
        return None if found is None or name is None else f"{found} {name} {self._candidates}"

    def sample(self) -> list[str]:
        """See `Sampled`."""
        return self.retriever.sample() if isinstance(self.retriever, Sampled) else []

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        """See `Retriever.search`; no more hits than candidates, `min_score` is the reranker's.

        Raises:
            SettingsError: k is below 1, `queries` is one text, or the retriever gives no hits.
            ReaderError: the reranker gives something else than numbers.
        """
        check_search(queries, options)
        candidates = replace(options, k=self._candidates, min_score=0.0)
        found = ask(self.retriever, queries, candidates)
        return [
            [hit for hit in self._ranked(query, hits) if hit.score >= options.min_score][
                : options.k
            ]
            for query, hits in zip(queries, found, strict=True)
        ]

    def _ranked(self, query: str, hits: Sequence[Hit]) -> list[Hit]:
        """Hits by new scores; equal ones as they were."""
        if not hits:
            return []
        scores = [float(score) for score in self.reranker.scores(storable(query), hits)]
        if len(scores) != len(hits) or not all(map(math.isfinite, scores)):
            raise ReaderError(
                f"reranker {type(self.reranker).__name__}: expected {len(hits)} finite numbers; "
                f"found {scores[:5]}"
            )
        ranked = [replace(hit, score=score) for hit, score in zip(hits, scores, strict=True)]
        return sorted(ranked, key=lambda hit: -hit.score)


def reranked(
    retriever: Retriever, settings: RerankSettings, reader: Reranker | None = None
) -> Retriever:
    """A retriever whose hits are ranked anew, if the settings say so.

    Args:
        reader: the reranker that `reader` stands for.

    Raises:
        ReaderError: the cross-encoder is missing or unusable.
    """
    if not settings.reranker:
        return retriever
    if settings.reranker == READER:
        assert reader is not None, "see open_source and load"
        return RerankedRetriever(retriever, reader, settings.rerank_candidates)
    model = CrossEncoderReranker(settings.reranker)
    return RerankedRetriever(retriever, model, settings.rerank_candidates)
