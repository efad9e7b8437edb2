"""Log-probabilities of the targets behind every boundary, in as few passes as are exact.

Knows models and token ids. Knows nothing of retrieval, training or perplexity. Works with and
without gradients: training and evaluation are the same computation.

**Appended passages** (paper section 3; its code runs every boundary as a sequence of its own). All
strides of a window share their context, so it is encoded once; then the branches

    x_{b-1}  frame  passage  frame  x_b … x_{b+s-2}        at positions b-1, b, …

run as an ordinary batch on its cache, branch b seeing only the first b-1 positions of it. Losses
and gradients are those of separate sequences; the cost of a target does not grow with the context.

**Passages in a slot**: see `packing/slot.py`.

**Otherwise** strides are sequences of their own, sorted by length, and only the targets' logits are
computed. A stride whose prompt continues the one before joins its sequence: without passages all
do, and prepended ones do while the passage stays the same. Readers with sliding windows read
appended passages this way, too: their window would be measured from cached positions that a branch
does not see. So do readers that measure distances in such positions (MPT).

Symbols: n branches, L context tokens, w branch width, s stride, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from flashback.patterns.pattern import TargetLayout
from flashback.patterns.registry import PATTERNS
from flashback.scoring.examples import Arrangement, Example
from flashback.scoring.in_place import slot_log_probs
from flashback.scoring.passes import Passes, Steps, cache_of, part, states_of
from flashback.scoring.rows import Row, batches, padded

BATCH_TOKENS = 1024
"""Tokens of a batch of branches or sequences: enough to fill a machine, and little enough to stay
in its caches."""


class TargetScorer:
    """Runs one model over examples; packs what can be packed exactly."""

    def __init__(self, model: nn.Module, batch_tokens: int = BATCH_TOKENS) -> None:
        """Take a model.

        Args:
            model: a causal language model of transformers, or an adapter around one.
            batch_tokens: the most tokens of a batch of branches or of separate sequences.
        """
        self._passes = Passes(model)
        self._batch_tokens = batch_tokens

    @property
    def packs_appended(self) -> bool:
        """Whether appended passages run as branches: exact where hidden positions do not count."""
        return self._passes.skips_columns

    def log_probs(self, examples: Sequence[Example], arrangement: Arrangement) -> list[Tensor]:
        """Log-probabilities of every example's targets: a float32 tensor (cuts, s) for each.

        Gradients flow through them, unless they are turned off outside.
        """
        steps = self.steps(examples, arrangement)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                found: list[Tensor] = end.value
                return found

    def steps(self, examples: Sequence[Example], arrangement: Arrangement) -> Steps[list[Tensor]]:
        """The same, stopping after every pass."""
        found: dict[tuple[int, int], Tensor] = {}
        separate: list[Row] = []
        layout = PATTERNS[arrangement.pattern].targets
        appends = layout is TargetLayout.BRANCHES and self.packs_appended
        slots = layout is TargetLayout.IN_PLACE
        assert self._passes.full_attention or not slots, "see Reader.check_pattern"
        for number, example in enumerate(examples):
            if appends and example.window.shares_context:
                found |= yield from self._branches(number, example, arrangement)
            elif slots and example.prompts_grow:
                rows = yield from slot_log_probs(
                    self._passes, example, arrangement, self._batch_tokens
                )
                found |= {(number, at): row for at, row in enumerate(rows)}
            else:
                separate.extend(_sequences(number, example, arrangement))
        for batch in batches(separate, self._batch_tokens):
            found |= self._run(batch, arrangement)
            yield
        return [
            torch.stack([found[number, cut] for cut in range(len(example.window.cuts))])
            for number, example in enumerate(examples)
        ]

    def _branches(
        self, number: int, example: Example, arrangement: Arrangement
    ) -> Steps[dict[tuple[int, int], Tensor]]:
        """The window once, then every stride as a branch on its cache."""
        rows = list(_branches(number, example, arrangement))
        longest = max(row.seen for row in rows)
        context = DynamicCache()
        if longest:
            ids = torch.tensor([example.window.ids[:longest]], device=self._passes.device)
            self._passes.logits(ids, 1, {"past_key_values": context, "use_cache": True})
            yield
        found: dict[tuple[int, int], Tensor] = {}
        for batch in batches(rows, self._batch_tokens):
            found |= self._run(batch, arrangement, context)
            yield
        return found

    def _run(
        self, rows: Sequence[Row], arrangement: Arrangement, context: DynamicCache | None = None
    ) -> dict[tuple[int, int], Tensor]:
        """One batch, padded on the left so that its last positions are everyone's targets."""
        width = max(len(row.ids) for row in rows)
        seen = max(row.seen for row in rows)
        ids, mask = padded(rows, seen, width)
        firsts = torch.tensor([[row.first] for row in rows])
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, seen:] + firsts
        inputs: dict[str, Any] = {"attention_mask": mask.to(self._passes.device)}
        if self._passes.takes_positions:
            inputs["position_ids"] = positions.to(self._passes.device)
        if context is not None and seen:
            shared = part(states_of(context), slice(seen))
            # Once for each branch; nothing is copied.
            inputs["past_key_values"] = cache_of(
                [
                    (k.expand(len(rows), -1, -1, -1), v.expand(len(rows), -1, -1, -1))
                    for k, v in shared
                ]
            )
            inputs["use_cache"] = True
        logits = self._passes.logits(ids.to(self._passes.device), len(rows[0].targets), inputs)
        log_probs = self._passes.log_probs(
            logits, [row.targets for row in rows], arrangement.forbidden
        )
        return {
            cut: scores
            for row, own in zip(rows, log_probs, strict=True)
            for cut, scores in zip(row.at, own.chunk(len(row.at)), strict=True)
        }


def _sequences(number: int, example: Example, arrangement: Arrangement) -> Iterator[Row]:
    """Every cut's prompt and targets; cuts whose prompts continue each other are one sequence.

    They do without passages, and where a prepended passage stays the same.
    """
    window = example.window
    row: Row | None = None
    for at, cut in enumerate(window.cuts):
        targets = window.targets(cut)
        prompt = arrangement.prompt(example, at)
        first = arrangement.first_position(example, at)
        if row is not None and prompt == row.ids + row.targets[-1:]:
            row = replace(
                row,
                at=(*row.at, (number, at)),
                ids=prompt + targets[:-1],
                targets=row.targets + targets,
            )
            continue
        if row is not None:
            yield row
        row = Row(((number, at),), prompt + targets[:-1], targets, first=first)
    if row is not None:
        yield row


def _branches(number: int, example: Example, arrangement: Arrangement) -> Iterator[Row]:
    """Branches begin with the context's last token, so that one without a passage has a token."""
    window = example.window
    for at, cut in enumerate(window.cuts):
        targets = window.targets(cut)
        prompt = arrangement.prompt(example, at)
        seen = cut.boundary - 1
        yield Row(((number, at),), prompt[seen:] + targets[:-1], targets, seen)
