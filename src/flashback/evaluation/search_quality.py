"""How well retrievers find judged documents, and how fast: measures of ir-measures.

A document ranks where its best passage does. Symbols: k passages of a search.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flashback.declared import CheckedSettings, setting
from flashback.errors import SettingsError
from flashback.evaluation.judgements import Judgements
from flashback.retrieval.protocol import Hit, Retriever, ask
from flashback.settings import SearchOptions

DEFAULT_MEASURES = ("nDCG@10", "R@5", "R@10", "R@100", "RR@10")


@dataclass(frozen=True)
class QualitySettings(CheckedSettings):
    """What is measured, and how deep."""

    measure: tuple[str, ...] = setting(
        DEFAULT_MEASURES,
        "A measure as ir-measures writes it (repeatable; default: nDCG@10, R@5, R@10, R@100, "
        "RR@10).",
    )
    depth: int = setting(
        100, "k: passages of each search; documents rank by their best one.", low=1, high=1000
    )


Run = Mapping[str, Mapping[str, float]]
"""By query id and document id: the score of a document."""


@dataclass(frozen=True)
class Quality:
    """What one retriever found."""

    run: dict[str, dict[str, float]]
    values: dict[str, float]
    """The mean of each measure over the queries, by its name."""
    milliseconds: tuple[float, float]
    """p50 and p95 of a search for one query."""


def check_measures(names: Sequence[str]) -> list[Any]:
    """Measures by name, before anything is searched.

    Raises:
        SettingsError: ir-measures is not installed or does not know one.
    """
    try:
        import ir_measures
    except ImportError:
        raise SettingsError(
            "eval retrieval needs ir-measures; pip install '.[eval]' in a clone of the project"
        ) from None
    found = []
    for name in names:
        try:
            found.append(ir_measures.parse_measure(name))
        except (NameError, ValueError, SyntaxError) as error:
            raise SettingsError(
                f"--measure={name!r}: {error}; expected one of ir-measures', such as nDCG@10"
            ) from None
    return found


def measure_search(
    retriever: Retriever,
    judgements: Judgements,
    settings: QualitySettings,
    advance: Callable[[], None] = lambda: None,
) -> Quality:
    """Search for every query, one by one, and compare with the judgements.

    Args:
        advance: called for each query.

    Raises:
        SettingsError: a measure is unknown, or the retriever gives no hits.
    """
    import ir_measures

    measures = check_measures(settings.measure)
    options = SearchOptions(k=settings.depth)
    run: dict[str, dict[str, float]] = {}
    seconds = []
    ask(retriever, [next(iter(judgements.queries.values()))], options)  # what is read once is read
    for name, text in judgements.queries.items():
        began = time.perf_counter()
        (hits,) = ask(retriever, [text], options)
        seconds.append(time.perf_counter() - began)
        run[name] = ranked_documents(hits)
        advance()
    values = ir_measures.calc_aggregate(measures, judgements.judged, run)
    import numpy as np  # it takes a while, also for --help

    p50, p95 = np.percentile(seconds, (50, 95)) * 1000
    named = {str(measure): float(values[measure]) for measure in measures}
    return Quality(run, named, (float(p50), float(p95)))


def ranked_documents(hits: Sequence[Hit]) -> dict[str, float]:
    """The documents of hits in their order, with scores that fall from each to the next.

    Equal scores would be ranked by name where a run is read; so a score is that of the rank.
    """
    documents = list(dict.fromkeys(hit.document_id for hit in hits))
    return {document: 1 / rank for rank, document in enumerate(documents, start=1)}


def run_lines(run: Run, tag: str) -> str:
    """A run as TREC has it: query, Q0, document, rank, score, tag."""
    return "".join(
        f"{query} Q0 {document} {rank} {score:.6f} {tag}\n"
        for query, documents in run.items()
        for rank, (document, score) in enumerate(documents.items(), start=1)
    )
