"""Log-probabilities of the targets behind every boundary, in as few passes as are exact.

Knows models and token ids. Knows nothing of retrieval, training or perplexity. Works with and
without gradients: training and evaluation are the same computation.

**Appended passages** (paper section 3; its code runs every boundary as a sequence of its own). All
strides of a window share their context, so it is encoded once; then the branches

    x_{b-1}  frame  passage  frame  x_b … x_{b+s-2}        at positions b-1, b, …

run as an ordinary batch on its cache, branch b seeing only the first b-1 positions of it. Losses
and gradients are those of separate sequences; the cost of a target does not grow with the context.

**Otherwise** strides are sequences of their own, sorted by length, and only the targets' logits are
computed. A stride whose prompt continues the one before joins its sequence: without passages all
do, and prepended ones do while the passage stays the same. Readers with sliding windows read
appended passages this way, too: their window would be measured from cached positions that a branch
does not see.

Symbols: n branches, L context tokens, w branch width, s stride, V vocabulary.
"""

import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from flashback.arrangement import Frame, Ids, arrange
from flashback.packing.windows import Cut, Window
from flashback.settings import Pattern

BATCH_TOKENS = 2048
"""Tokens of a batch of branches or sequences: enough to fill a machine, and little enough to stay
in its caches."""


@dataclass(frozen=True)
class Example:
    """A window and the passage tokens found for each of its cuts (empty: nothing found)."""

    window: Window
    passages: tuple[Ids, ...]


@dataclass(frozen=True)
class Arrangement:
    """How a reader is shown what was found."""

    pattern: Pattern
    frame: Frame = Frame()
    forbidden: Ids = ()
    """Ids that are never targets: their logits count as minus infinity."""

    def prompt(self, window: Window, cut: Cut, passage: Ids) -> Ids:
        """What the targets of a cut are given, token by token."""
        context = window.context(cut)
        return arrange(self.pattern, context, passage, self.frame, window.bos).context


@dataclass(frozen=True)
class _Row:
    """A sequence whose last positions give the log-probabilities of the targets of some cuts."""

    at: tuple[tuple[int, int], ...]
    """Which cuts: the number of the example, the number of the cut."""
    ids: Ids
    targets: Ids
    seen: int = 0
    """How many positions of a shared context come before it."""


class TargetScorer:
    """Runs one model over examples; packs what can be packed exactly."""

    def __init__(self, model: nn.Module, batch_tokens: int = BATCH_TOKENS) -> None:
        """Take a model.

        Args:
            model: a causal language model of transformers, or an adapter around one.
            batch_tokens: the most tokens of a batch of branches or of separate sequences.
        """
        base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
        parameters = inspect.signature(base.forward).parameters
        self._takes_positions = "position_ids" in parameters
        self._takes_keep = "logits_to_keep" in parameters
        layers = DynamicCache(config=base.config).layers
        self.packs_appended = all(type(layer) is DynamicLayer for layer in layers)
        """Whether appended passages run as branches; False for sliding windows."""
        self._model = model
        self._device = next(base.parameters()).device
        self._batch_tokens = batch_tokens

    def log_probs(self, examples: Sequence[Example], arrangement: Arrangement) -> list[Tensor]:
        """Log-probabilities of every example's targets: a float32 tensor (cuts, s) for each.

        Gradients flow through them, unless they are turned off outside.
        """
        found: dict[tuple[int, int], Tensor] = {}
        separate: list[_Row] = []
        appends = arrangement.pattern is Pattern.APPEND and self.packs_appended
        for number, example in enumerate(examples):
            if appends and example.window.shares_context:
                found |= self._branches(number, example, arrangement)
            else:
                separate.extend(_sequences(number, example, arrangement))
        for rows in _batches(separate, self._batch_tokens):
            found |= self._run(rows, arrangement)
        return [
            torch.stack([found[number, cut] for cut in range(len(example.window.cuts))])
            for number, example in enumerate(examples)
        ]

    def _branches(
        self, number: int, example: Example, arrangement: Arrangement
    ) -> dict[tuple[int, int], Tensor]:
        """The window once, then every stride as a branch on its cache."""
        rows = list(_branches(number, example, arrangement))
        longest = max(row.seen for row in rows)
        context = DynamicCache()
        if longest:
            ids = torch.tensor([example.window.ids[:longest]], device=self._device)
            self._logits(ids, 1, {"past_key_values": context, "use_cache": True})
        found: dict[tuple[int, int], Tensor] = {}
        for batch in _batches(rows, self._batch_tokens):
            found |= self._run(batch, arrangement, context)
        return found

    def _run(
        self, rows: Sequence[_Row], arrangement: Arrangement, context: DynamicCache | None = None
    ) -> dict[tuple[int, int], Tensor]:
        """One batch, padded on the left so that its last positions are everyone's targets."""
        width = max(len(row.ids) for row in rows)
        seen = max(row.seen for row in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros(len(rows), seen + width, dtype=torch.long)
        for at, row in enumerate(rows):
            ids[at, width - len(row.ids) :] = torch.tensor(row.ids)
            mask[at, : row.seen] = 1
            mask[at, seen + width - len(row.ids) :] = 1
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, seen:]
        inputs: dict[str, Any] = {"attention_mask": mask.to(self._device)}
        if self._takes_positions:
            inputs["position_ids"] = positions.to(self._device)
        if context is not None and seen:
            inputs["past_key_values"] = _for_branches(context, seen, len(rows))
            inputs["use_cache"] = True
        logits = self._logits(ids.to(self._device), len(rows[0].targets), inputs)
        log_probs = self._chosen(logits, [row.targets for row in rows], arrangement.forbidden)
        return {
            cut: part
            for row, own in zip(rows, log_probs, strict=True)
            for cut, part in zip(row.at, own.chunk(len(row.at)), strict=True)
        }

    def _logits(self, ids: Tensor, keep: int, inputs: dict[str, Any]) -> Tensor:
        """Logits of the last `keep` positions, (B, keep, V)."""
        if self._takes_keep:  # the vocabulary's rows are half of a small model's work
            # As positions, not as a number: a slice would not be contiguous, and PyTorch would
            # multiply every sequence with the vocabulary's matrix on its own.
            end = ids.shape[1]
            inputs = inputs | {"logits_to_keep": torch.arange(end - keep, end, device=ids.device)}
        inputs = {"use_cache": False} | inputs
        logits: Tensor = self._model(input_ids=ids, **inputs).logits
        return logits if logits.shape[1] == keep else logits[:, -keep:]

    def _chosen(self, logits: Tensor, targets: Sequence[Ids], forbidden: Ids) -> Tensor:
        """Log-probabilities (B, keep) of the targets from logits (B, keep, V)."""
        logits = logits.float()
        if forbidden:
            never = torch.tensor(forbidden, device=logits.device)
            logits = logits.index_fill(-1, never, float("-inf"))
        wanted = torch.tensor(targets, device=logits.device)
        flat = logits.flatten(0, 1), wanted.flatten()  # with V last, nothing is copied
        return -nn.functional.cross_entropy(*flat, reduction="none").view_as(wanted)


def _sequences(number: int, example: Example, arrangement: Arrangement) -> Iterator[_Row]:
    """Every cut's prompt and targets; cuts whose prompts continue each other are one sequence.

    They do without passages, and where a prepended passage stays the same.
    """
    window = example.window
    row: _Row | None = None
    for at, cut in enumerate(window.cuts):
        targets = window.targets(cut)
        prompt = arrangement.prompt(window, cut, example.passages[at])
        if row is not None and prompt == row.ids + row.targets[-1:]:
            row = _Row((*row.at, (number, at)), prompt + targets[:-1], row.targets + targets)
            continue
        if row is not None:
            yield row
        row = _Row(((number, at),), prompt + targets[:-1], targets)
    if row is not None:
        yield row


def _branches(number: int, example: Example, arrangement: Arrangement) -> Iterator[_Row]:
    """Branches begin with the context's last token, so that one without a passage has a token."""
    window = example.window
    for at, cut in enumerate(window.cuts):
        targets = window.targets(cut)
        prompt = arrangement.prompt(window, cut, example.passages[at])
        seen = cut.boundary - 1
        yield _Row(((number, at),), prompt[seen:] + targets[:-1], targets, seen)


def _batches(rows: Iterable[_Row], tokens: int) -> Iterator[list[_Row]]:
    """Rows of similar length, and as many targets, together; at most `tokens` with the padding."""
    ordered = sorted(rows, key=lambda row: (len(row.targets), row.seen, len(row.ids)))
    for _, same in groupby(ordered, key=lambda row: len(row.targets)):
        batch: list[_Row] = []
        for row in same:
            width = max(len(other.ids) for other in [*batch, row])
            if batch and width * (len(batch) + 1) > tokens:
                yield batch
                batch = []
            batch.append(row)
        yield batch


class _SharedContext(DynamicLayer):
    """Keys and values of one context, seen by a batch of branches."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values


def _for_branches(context: DynamicCache, seen: int, branches: int) -> DynamicCache:
    """The first `seen` positions of a context's cache, once for each branch; nothing is copied."""
    cache = DynamicCache()
    for layer in context.layers:
        assert isinstance(layer, DynamicLayer)
        assert layer.keys is not None
        assert layer.values is not None
        states = (
            states[:, :, :seen].expand(branches, -1, -1, -1)
            for states in (layer.keys, layer.values)
        )
        cache.layers.append(_SharedContext(*states))
    return cache
