"""Sequences with targets at their end, and padded batches of them.

Symbols: n sequences, w width, V vocabulary.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from flashback.patterns.prompt import Ids


@dataclass(frozen=True)
class TargetSequence:
    """A sequence whose last positions give the log-probabilities of the targets of some cuts."""

    at: tuple[tuple[int, int] | None, ...]
    """Which cuts: the number of the example, the number of the cut; None: a stride between two of
    them that is not scored."""
    ids: Ids
    targets: Ids
    seen: int = 0
    """How many positions of a shared cache come before it."""


def batches(sequences: Iterable[TargetSequence], tokens: int) -> Iterator[list[TargetSequence]]:
    """Batches of similar length with equally many targets.

    Args:
        tokens: the most tokens of a batch, padding included; a longer sequence is its own batch.
    """
    ordered = sorted(sequences, key=lambda one: (len(one.targets), one.seen, len(one.ids)))
    for _, same in groupby(ordered, key=lambda one: len(one.targets)):
        batch: list[TargetSequence] = []
        for sequence in same:
            width = max(len(other.ids) for other in [*batch, sequence])
            if batch and width * (len(batch) + 1) > tokens:
                yield batch
                batch = []
            batch.append(sequence)
        yield batch


def padded(rows: Sequence[Ids], seen: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Pad on the left.

    Args:
        rows: n sequences of ids; w is the length of the longest.
        seen: how many positions of a shared cache each row attends to.

    Returns:
        ids (n, w), and a mask (n, max(seen) + w) of the positions that each row attends to.
    """
    width, shared = max(map(len, rows)), max(seen)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), shared + width, dtype=torch.long)
    for at, row in enumerate(rows):
        ids[at, width - len(row) :] = torch.tensor(row)
        mask[at, : seen[at]] = 1
        mask[at, shared + width - len(row) :] = 1
    return ids, mask
