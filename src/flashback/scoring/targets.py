"""Log-probabilities of the targets behind every boundary, in as few passes as are exact.

Knows models and token ids. Knows nothing of retrieval, training or perplexity. Works with and
without gradients: training and evaluation are the same computation. How the strides of a window are
packed depends on the pattern.

**Branches**, for several passages behind a context (paper section 3; the authors' code runs every
boundary as a sequence of its own). All strides of a window share their context, so it is prefilled
once; then the branches

    x_{b-1}  frame  passage  frame  x_b … x_{b+s-2}        at positions b-1, b, …

run as an ordinary batch on its cache, branch b attending to only the first b-1 positions of it.
Losses and gradients are those of separate sequences; the cost of a target does not grow with the
context.

**In place**, for passages at reserved positions: see `flashback.scoring.in_place`.

**Sequences**, for all else. Each stride is a sequence of its own, batched by length, and only the
targets' logits are computed. A stride whose prompt continues the one before joins its sequence:
without passages all do, and prepended ones do while the passage stays the same; what lies between
strides that were drawn is not scored. Readers with sliding windows read appended passages this way,
too: their window would be measured from cached positions that a branch does not see. So do readers
that measure distances in such positions (MPT).

Symbols: n branches, L context tokens, w branch width, s stride, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from flashback.engines.kernels.states import States
from flashback.patterns.pattern import TargetLayout
from flashback.patterns.registry import PATTERNS
from flashback.scoring.examples import Arrangement, Example
from flashback.scoring.in_place import log_probs_in_place
from flashback.scoring.model import ScoringModel, Steps, cache_of, part, states_of
from flashback.scoring.sequences import TargetSequence, batches, padded

BATCH_TOKENS = 1024
"""Tokens of a batch of branches or sequences: enough to fill a machine, and little enough to stay
in its caches."""


Scores = dict[tuple[int, int], Tensor]
"""Log-probabilities (s) of the targets of a cut: by the number of the example and of the cut."""


class TargetScorer:
    """Scores examples with one model; packs what can be packed exactly."""

    def __init__(self, model: nn.Module | ScoringModel, batch_tokens: int = BATCH_TOKENS) -> None:
        """Take a model.

        Args:
            model: a causal language model of transformers, or a PEFT model around one.
            batch_tokens: the most tokens of a batch of branches or of separate sequences.
        """
        self._model = model if isinstance(model, ScoringModel) else ScoringModel(model)
        self._batch_tokens = batch_tokens

    @property
    def packs_appended(self) -> bool:
        """Whether appended passages run as branches: exact where masked positions do not count."""
        return self._model.skips_columns

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
        """The same, pausing after every forward pass."""
        scores: Scores = {}
        separate: list[TargetSequence] = []
        layout = PATTERNS[arrangement.pattern].targets
        branches = layout is TargetLayout.BRANCHES and self.packs_appended
        in_place = layout is TargetLayout.IN_PLACE
        assert self._model.can_have_slot or not in_place, "see Reader.check_pattern"
        for number, example in enumerate(examples):
            if branches and example.window.shares_context and len(example.window.cuts) > 1:
                scores |= yield from self._branches(number, example, arrangement)
            elif in_place:
                rows = yield from log_probs_in_place(
                    self._model, example, arrangement, self._batch_tokens
                )
                scores |= {(number, at): row for at, row in enumerate(rows)}
            else:
                separate.extend(_sequences(number, example, arrangement))
        for batch in batches(separate, self._batch_tokens):
            scores |= self._run(batch, arrangement)
            yield
        return [
            torch.stack([scores[number, cut] for cut in range(len(example.window.cuts))])
            for number, example in enumerate(examples)
        ]

    def _branches(self, number: int, example: Example, arrangement: Arrangement) -> Steps[Scores]:
        """Prefill the window once, then run every stride as a branch on its cache."""
        rows = list(_branches(number, example, arrangement))
        longest = max(row.seen for row in rows)
        context = DynamicCache()
        if longest:
            self._model.extend(context, example.window.ids[:longest], 0, 1)
            yield
        scores: Scores = {}
        for batch in batches(rows, self._batch_tokens):
            scores |= self._run(batch, arrangement, context)
            yield
        return scores

    def _run(
        self,
        rows: Sequence[TargetSequence],
        arrangement: Arrangement,
        context: DynamicCache | None = None,
    ) -> Scores:
        """Run one batch, padded on the left so that its last positions are everyone's targets."""
        ids, mask = padded([row.ids for row in rows], [row.seen for row in rows])
        device, seen = self._model.device, mask.shape[1] - ids.shape[1]
        inputs: dict[str, Any] = {"attention_mask": mask.to(device)}
        if self._model.takes_positions:
            positions = (mask.cumsum(1) - 1).clamp(min=0)[:, seen:]
            inputs["position_ids"] = positions.to(device)
        if context is not None and seen:
            shared = part(states_of(context), slice(seen))
            inputs["past_key_values"] = cache_of(_repeated(shared, len(rows)))
            inputs["use_cache"] = True
        logits = self._model.logits(ids.to(device), len(rows[0].targets), inputs)
        targets = [row.targets for row in rows]
        log_probs = self._model.log_probs(logits, targets, arrangement.forbidden)
        return {
            cut: scores
            for row, own in zip(rows, log_probs, strict=True)
            for cut, scores in zip(row.at, own.chunk(len(row.at)), strict=True)
            if cut is not None
        }


def _repeated(states: Sequence[States], rows: int) -> list[States]:
    """Keys and values of one row for several, layer by layer; nothing is copied."""
    return [(k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1)) for k, v in states]


def _sequences(number: int, example: Example, arrangement: Arrangement) -> Iterator[TargetSequence]:
    """The prompts and targets of all cuts; prompts that continue each other are one sequence.

    They do without passages, and while a prepended passage stays the same.
    """
    row: TargetSequence | None = None
    for at, cut in enumerate(example.window.cuts):
        targets = example.window.targets(cut)
        ids = arrangement.arrange(example, at).arranged
        alone = TargetSequence(((number, at),), ids + targets[:-1], targets)
        joined = row and _joined(row, alone)
        if row is not None and joined is None:
            yield row
        row = joined or alone
    if row is not None:
        yield row


def _joined(row: TargetSequence, behind: TargetSequence) -> TargetSequence | None:
    """One sequence of both, if the second continues the first, be it some strides later.

    The strides between them are not scored.
    """
    stride, end = len(behind.targets), len(row.ids) + 1
    new = behind.ids[end - 1 :] + behind.targets[-1:]
    skipped, rest = divmod(len(new) - 1 - stride, stride)
    if rest or skipped < 0 or behind.ids[:end] != row.ids + row.targets[-1:]:
        return None
    at = (*row.at, *(None,) * skipped, *behind.at)
    return replace(row, at=at, ids=behind.ids, targets=row.targets + new[1:])


def _branches(number: int, example: Example, arrangement: Arrangement) -> Iterator[TargetSequence]:
    """Branches begin with the context's last token, so that one without a passage has a token."""
    for at, cut in enumerate(example.window.cuts):
        targets = example.window.targets(cut)
        ids = arrangement.arrange(example, at).arranged
        seen = cut.boundary - 1
        yield TargetSequence(((number, at),), ids[seen:] + targets[:-1], targets, seen)
