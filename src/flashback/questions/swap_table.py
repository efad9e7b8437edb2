"""Answers behind exchanges to figures: means with intervals, and each row against prepending.

A table is for one distance, one exchange and one kind of question. Cases are resampled, the same
ones for every row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from flashback.evaluation.statistics import Array, Bootstrap

_MEANS = ("exact_match", "substring", "old_written", "old_wins", "stale_tokens")
_PER_TOKEN = {"nats": "answer_tokens", "old_nats": "old_answer_tokens"}
FIGURES = (*_MEANS, "nats_per_token", "old_nats_per_token")
"""Of every row; the first four in per cent."""

Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class SwapTable:
    """All tables of a run, and what is recorded with them."""

    records: Records
    """In the order in which they were computed: rows of an exchange together."""
    resamples: int
    settings: Mapping[str, Any]

    def record(self) -> dict[str, Any]:
        """The tables as plain data."""
        grouped: dict[tuple[int, str, str], dict[str, list[Mapping[str, Any]]]] = {}
        for one in self.records:
            rows = grouped.setdefault((one["distance"], one["exchange"], one["kind"]), {})
            rows.setdefault(one["row"], []).append(one)
        return {
            "settings": dict(self.settings),
            "tables": [
                {
                    "distance": distance,
                    "exchange": exchange,
                    "kind": kind,
                    **self._table(rows),
                }
                for (distance, exchange, kind), rows in sorted(grouped.items(), key=_place)
            ],
        }

    def _table(self, rows: Mapping[str, Records]) -> dict[str, Any]:
        """The rows of one table; the first is what others are compared with."""
        sums = {name: _sums(own) for name, own in rows.items()}
        first = next(iter(sums.values()))
        cases = len(next(iter(rows.values())))
        bootstrap = Bootstrap(cases, self.resamples)
        return {
            "cases": cases,
            "rows": [
                {
                    "name": name,
                    **_figures(own, first, bootstrap, differences=False),
                    "against_prepend": _figures(own, first, bootstrap, differences=True),
                }
                for name, own in sums.items()
            ],
        }


def _place(item: tuple[tuple[int, str, str], object]) -> tuple[str, int, str]:
    """Tables of an exchange stand together."""
    distance, exchange, kind = item[0]
    return exchange, distance, kind


def _sums(records: Records) -> dict[str, tuple[Array, Array]]:
    """Every figure of every case, and what it is divided by."""

    def column(name: str) -> Array:
        return np.array([float(one[name]) for one in records])

    ones = np.ones(len(records))
    means = {name: (column(name), ones) for name in _MEANS}
    return means | {f"{n}_per_token": (column(n), column(by)) for n, by in _PER_TOKEN.items()}


def _figures(
    own: Mapping[str, tuple[Array, Array]],
    first: Mapping[str, tuple[Array, Array]],
    bootstrap: Bootstrap,
    *,
    differences: bool,
) -> dict[str, Any]:
    """Every figure with its interval."""
    found = {}
    for name in FIGURES:
        sums, units = own[name]
        if differences:
            sums = sums - first[name][0]
        found[name] = asdict(bootstrap.quotient(sums, units))
    return found
