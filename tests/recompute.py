"""The reference: every stride recomputed from its arranged ids, with nothing cached."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from flashback.generation import Generation
from flashback.sampling import Sampler

TOLERANCE = 1e-4
"""Largest allowed difference of a logit, float32."""


class RecordingSampler(Sampler):
    """A sampler that keeps all logits it was shown."""

    seen: list[Tensor]

    def choose(self, logits: Tensor) -> int:
        if not hasattr(self, "seen"):
            self.seen = []
        self.seen.append(logits.clone())
        return super().choose(logits)


@torch.inference_mode()
def recomputed_logits(model: PreTrainedModel, ids: Sequence[int], count: int) -> Tensor:
    """The logits (count, V) behind the last `count` of `ids`, from one plain forward pass."""
    output = model(input_ids=torch.tensor([list(ids)]), use_cache=False)
    logits: Tensor = output.logits[0, -count:]
    return logits


def largest_error(model: PreTrainedModel, generation: Generation, seen: Sequence[Tensor]) -> float:
    """The largest difference between the logits `seen` while generating and recomputed ones."""
    cached = iter(seen)
    error = 0.0
    for stride in generation.strides:
        ids = [*stride.arranged, *stride.tokens[:-1]]
        for row in recomputed_logits(model, ids, len(stride.tokens)):
            error = max(error, float((row - next(cached)).abs().max()))
    assert next(cached, None) is None, "more tokens were chosen than strides tell"
    return error


def check_greedy(model: PreTrainedModel, generation: Generation, forbidden: Sequence[int]) -> None:
    """Every token is the most probable one, unless the reference is undecided to 1e-4."""
    for stride in generation.strides:
        ids = [*stride.arranged, *stride.tokens[:-1]]
        rows = recomputed_logits(model, ids, len(stride.tokens)).clone()
        rows[:, list(forbidden)] = -torch.inf
        for row, token in zip(rows, stride.tokens, strict=True):
            assert row.max() - row[token] <= TOLERANCE


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """The length of the longest common prefix."""
    pairs = zip(left, right, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))
