"""The reference: every stride recomputed from its arranged ids, with nothing cached."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from flashback.engines.local import LocalEngine
from flashback.engines.support import support_of
from flashback.patterns.prompt import Prompt
from flashback.sampling import Sampler
from flashback.writing.generator import Generation

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


class _Reference:
    """The recomputed logits of one text, kept for the other checks of the same text."""

    _of: tuple[PreTrainedModel, Generation] | None = None
    _rows: list[Tensor]

    def rows(self, model: PreTrainedModel, generation: Generation) -> list[Tensor]:
        """The logits (T, V) of each stride."""
        if self._of is None or self._of[0] is not model or self._of[1] is not generation:
            self._rows = [
                recomputed_logits(model, [*one.arranged, *one.tokens[:-1]], len(one.tokens))
                for one in generation.strides
            ]
            self._of = model, generation
        return self._rows


_reference = _Reference()


def largest_error(model: PreTrainedModel, generation: Generation, seen: Sequence[Tensor]) -> float:
    """The largest difference between the logits `seen` while generating and recomputed ones."""
    cached = iter(seen)
    error = 0.0
    for rows in _reference.rows(model, generation):
        for row in rows:
            error = max(error, float((row - next(cached)).abs().max()))
    assert next(cached, None) is None, "more tokens were chosen than strides tell"
    return error


def check_greedy(model: PreTrainedModel, generation: Generation, forbidden: Sequence[int]) -> None:
    """Every token is the most probable one, unless the reference is undecided to 1e-4."""
    references = _reference.rows(model, generation)
    for stride, recomputed in zip(generation.strides, references, strict=True):
        rows = recomputed.clone()
        rows[:, list(forbidden)] = -torch.inf
        for row, token in zip(rows, stride.tokens, strict=True):
            assert row.max() - row[token] <= TOLERANCE


def cached_scores(engine: LocalEngine, ids: Sequence[int], start: int) -> list[float]:
    """Log-probabilities of ids[start:], each given all before it, through the engine's cache."""
    with engine.passes.running():
        sequence, shared = engine.lease(Prompt.plain(ids[:start]))
        logits = engine.passes.extend(sequence, ids[shared:-1], len(ids) - start)
        engine.leases.give_back(sequence)
        chosen = logits.log_softmax(-1).gather(1, torch.tensor(ids[start:])[:, None])
        scores: list[float] = chosen[:, 0].tolist()
    return scores


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """The length of the longest common prefix."""
    pairs = zip(left, right, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


def block_mask_logits(model: PreTrainedModel, prompt: Prompt, tokens: Sequence[int]) -> Tensor:
    """The logits (T, V) that give `tokens` behind a prompt's segments, from one plain pass."""
    ids = (*prompt.ids, *tokens[:-1])
    return logits_with_views(model, Prompt.with_views(ids, prompt.views, prompt.layout))[
        -len(tokens) :
    ]


def logits_with_views(model: PreTrainedModel, prompt: Prompt) -> Tensor:
    """The logits (N, V) behind each token of a prompt, from one plain pass.

    Over [context | sink, passage 1 | sink, passage 2 | ...], with explicit positions and a mask: a
    passage sees its copy of the sink and itself, a context token sees the context before it and the
    passage it was computed with.
    """
    layout, views, length = prompt.layout, prompt.views, len(prompt.ids)
    ids = [*prompt.ids]
    # Biases by distance count columns, and those of a passage come right before the text.
    distances = support_of(model).alibi
    positions = [*range(length)] if distances else [*map(layout.position, range(length))]
    end = 0 if distances else layout.passage_end
    total = length + sum(len(layout.sink) + len(view.passage) for view in views)
    seen = torch.zeros(total, total, dtype=torch.bool)
    seen[:length, :length] = torch.ones(length, length, dtype=torch.bool).tril()
    ends = [*(view.start for view in views[1:]), length]
    for view, until in zip(views, ends, strict=True):
        size, at = len(view.passage), len(ids)
        both = len(layout.sink) + size
        seen[at : at + both, at : at + both] = torch.ones(both, both, dtype=torch.bool).tril()
        seen[view.start : until, at + both - size : at + both] = True
        ids.extend((*layout.sink, *view.passage))
        positions.extend(range(end - both, end))
    never = torch.finfo(model.dtype).min
    mask: Any = torch.zeros(1, 1, total, total, dtype=model.dtype).masked_fill(~seen, never)
    if (window := support_of(model).window) is not None:
        stand = torch.tensor(positions)
        near = stand[:, None] - stand < window
        mask = {"full_attention": mask, "sliding_attention": mask.masked_fill(~near, never)}
    extra = {"position_ids": torch.tensor([positions])}
    with pytest.MonkeyPatch.context() as patch:
        if model.config.model_type == "bloom":  # no positions, but biases by distance
            extra = {}
            patch.setattr(model.transformer, "build_alibi_tensor", _biases(positions))
        output = model(input_ids=torch.tensor([ids]), attention_mask=mask, use_cache=False, **extra)
    logits: Tensor = output.logits[0, :length]
    return logits


def _biases(positions: Sequence[int]) -> Callable[[Tensor, int, torch.dtype], Tensor]:
    """ALiBi's biases of keys at `positions`."""

    def build(mask: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
        slopes = torch.tensor([2.0 ** (-8 * (head + 1) / heads) for head in range(heads)])
        return (slopes[:, None, None] * torch.tensor(positions)).to(dtype)

    return build
