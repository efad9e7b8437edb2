"""The report of a benchmark: a table and notes for people, a record for programs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Report:
    """The results of a benchmark."""

    record: dict[str, Any]
    """Everything, as plain data."""
    title: str = ""
    headings: tuple[str, ...] = ()
    """Of the table; none: there is no table."""
    rows: tuple[tuple[str, ...], ...] = ()
    """As many cells each as there are headings."""
    notes: tuple[str, ...] = ()
    """Lines below the table."""


def ratio_lines(
    ratios: Mapping[str, float], ranges: Mapping[str, tuple[float, float]]
) -> Iterator[str]:
    """A line for each ratio, with its range over repeats if it has one."""
    for name, value in ratios.items():
        low, high = ranges[name]
        yield f"{name}: {value:.2f}" + (f" ({low:.2f} to {high:.2f})" if high > low else "")
