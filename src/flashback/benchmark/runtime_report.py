"""The report of a run-time test: its table, its notes and its record."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from flashback.benchmark.arms import RuntimeArm
from flashback.benchmark.report import Report, ratio_lines
from flashback.benchmark.results import Measured, Results

_HEADINGS = ("pattern", "seconds", "spread", "boundary", "last, ms", "growth", "bound", "predicted")


def runtime_report(title: str, results: Results, described: Mapping[str, Any]) -> Report:
    """Everything that was measured.

    Args:
        described: what was measured, and on which machine, for the record.
    """
    record = {**described, **_record(results)}
    rows = tuple(tuple(_cells(results, arm)) for arm in results.arms)
    return Report(record, title, _HEADINGS, rows, tuple(_notes(record)))


def _cells(results: Results, arm: str) -> Iterator[str]:
    yield arm
    yield f"{results.seconds(arm):.2f}"
    yield f"{results.spread(arm):.0%}" if len(results.runs) > 1 else ""
    yield f"{results.prefill_seconds(arm) / results.seconds(arm):.0%}"
    yield f"{1000 * results.of(arm)[-1].stride_seconds:.0f}"
    yield f"{results.growth(arm):.2f} x"
    yield f"{results.bound_share(arm):.0%}"
    yield f"{results.predicted_share(arm):.2f} x"


def _notes(record: Mapping[str, Any]) -> Iterator[str]:
    """The ratios, and what retrieval did on real text."""
    yield from ratio_lines(record["ratios"], record["ratio_ranges"])
    if found := record.get("retrieval"):
        yield (
            f"retrieval: {1000 * found['p50_seconds']:.2f} ms a stride (p95 "
            f"{1000 * found['p95_seconds']:.2f} ms), not counted above; passages of "
            f"{found['passage_tokens']:.0f} tokens, {found['unchanged_share']:.0%} unchanged"
        )
    for arm, count in record.get("passage_cache", {}).items():
        yield (
            f"{arm}: {count['unchanged']} passages unchanged, {count['kept']} cache hits, "
            f"{count['encoded']} prefilled"
        )


_FIGURES: dict[str, Callable[[Results, str], float]] = {
    "seconds": Results.seconds,
    "encode_seconds": Results.prefill_seconds,
    "spread": Results.spread,
    "bound_share": Results.bound_share,
    "decode_bound_share": Results.decode_bound_share,
    "predicted_share": Results.predicted_share,
}
"""Of each arm, by their names in a record."""


def _record(results: Results) -> dict[str, Any]:
    growth = {arm: results.growth(arm) for arm in results.arms}
    return {
        "rows": [_row(row) for row in results.rows],
        **{
            name: {arm: figure(results, arm) for arm in results.arms}
            for name, figure in _FIGURES.items()
        },
        "boundary_growth": {"from": results.lengths[1], "to": results.lengths[-1], **growth},
        "ratios": results.ratios(),
        "ratio_ranges": results.ratio_ranges(),
    }


def _row(row: Measured) -> dict[str, Any]:
    return {
        "pattern": row.arm,
        "length": row.length,
        "stride_seconds": row.stride_seconds,
        "encode_seconds": row.prefill_seconds,
        "decode_seconds": row.decode_seconds,
        "retrieve_seconds": row.retrieve_seconds,
        "spread": row.spread,
        "bound_share": row.bound_share,
        "predicted_seconds": row.predicted_seconds,
        "passage_tokens": row.passage_tokens,
        "passage_unchanged": row.unchanged,
        "passage_kept": row.cache_hit,
    }


def retrieval_record(results: Results, arms: Sequence[RuntimeArm]) -> dict[str, Any]:
    """The seconds of a search, and how often the passage changed."""
    retrieving = [str(arm) for arm in arms if arm.context_pattern.retrieves]
    if not retrieving:
        return {}
    own = results.of(retrieving[0])
    seconds = sorted(row.retrieve_seconds for row in own)
    isolated = [str(arm) for arm in arms if arm.context_pattern.isolated]
    return {
        "retrieval": {
            "p50_seconds": statistics.median(seconds),
            "p95_seconds": statistics.quantiles(seconds, n=20)[-1],
            "passage_tokens": statistics.fmean(row.passage_tokens for row in own),
            "unchanged_share": results.unchanged_share(retrieving[0]),
        },
        "passage_cache": {arm: _passage_cache(results.of(arm)) for arm in isolated},
    }


def _passage_cache(rows: Sequence[Measured]) -> dict[str, int]:
    """Of how many strides the isolated passage was unchanged, cached or prefilled."""
    return {
        "unchanged": sum(row.unchanged for row in rows),
        "kept": sum(row.cache_hit for row in rows),
        "encoded": sum(row.prefills_passage for row in rows),
    }
