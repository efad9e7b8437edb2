"""Sequences with targets at their end, and batches of them.

Symbols: n rows, w width, V vocabulary.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from flashback.patterns.prompt import Ids


@dataclass(frozen=True)
class Row:
    """A sequence whose last positions give the log-probabilities of the targets of some cuts."""

    at: tuple[tuple[int, int], ...]
    """Which cuts: the number of the example, the number of the cut."""
    ids: Ids
    targets: Ids
    seen: int = 0
    """How many positions of a shared context come before it."""
    first: int = 0
    """The position of its first token, if nothing comes before it."""


def batches(rows: Iterable[Row], tokens: int) -> Iterator[list[Row]]:
    """Rows of similar length, and as many targets, together; at most `tokens` with the padding."""
    ordered = sorted(rows, key=lambda row: (len(row.targets), row.seen, len(row.ids)))
    for _, same in groupby(ordered, key=lambda row: len(row.targets)):
        batch: list[Row] = []
        for row in same:
            width = max(len(other.ids) for other in [*batch, row])
            if batch and width * (len(batch) + 1) > tokens:
                yield batch
                batch = []
            batch.append(row)
        yield batch


def padded(rows: Sequence[Row], seen: int, width: int) -> tuple[Tensor, Tensor]:
    """Ids (n, width), padded on the left, and a mask (n, seen + width) of what each row has."""
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), seen + width, dtype=torch.long)
    for at, row in enumerate(rows):
        ids[at, width - len(row.ids) :] = torch.tensor(row.ids)
        mask[at, : row.seen] = 1
        mask[at, seen + width - len(row.ids) :] = 1
    return ids, mask
