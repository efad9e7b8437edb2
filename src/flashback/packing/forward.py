"""Log-probabilities of the targets behind every boundary, in as few passes as are exact.

Knows models and token ids. Knows nothing of retrieval, training or perplexity. Works with and
without gradients: training and evaluation are the same computation.

**Appended passages** (paper section 3; its code runs every boundary as a sequence of its own). All
strides of a window share their context, so it is encoded once; then the branches

    x_{b-1}  frame  passage  frame  x_b … x_{b+s-2}        at positions b-1, b, …

run as an ordinary batch on its cache, branch b seeing only the first b-1 positions of it. Losses
and gradients are those of separate sequences; the cost of a target does not grow with the context.

**Passages in a slot.** Every passage is encoded on its own, in ordinary batches, and then the
context piece by piece, each piece on the keys and values of its passage and of the context so far.
No token is encoded twice, and every model can do it: there is no mask to hand over.

**Otherwise** strides are sequences of their own, sorted by length, and only the targets' logits are
computed. A stride whose prompt continues the one before joins its sequence: without passages all
do, and prepended ones do while the passage stays the same. Readers with sliding windows read
appended passages this way, too: their window would be measured from cached positions that a branch
does not see.

Symbols: n branches, L context tokens, w branch width, s stride, V vocabulary.
"""

import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from flashback.arrangement import Frame, Ids, Prompt, Slot, arrange, slot_room
from flashback.engines.cache import States
from flashback.packing.windows import Window
from flashback.settings import Pattern

BATCH_TOKENS = 2048
"""Tokens of a batch of branches or sequences: enough to fill a machine, and little enough to stay
in its caches."""


@dataclass(frozen=True)
class Example:
    """A window and the passage tokens found for each of its cuts (empty: nothing found)."""

    window: Window
    passages: tuple[Ids, ...]
    most_tokens: int = 0
    """k·m: how long a passage can be, which decides where a slot ends."""

    @property
    def prompts_grow(self) -> bool:
        """Whether each cut goes on where the one before ended, with the whole window in view."""
        cuts, stride = self.window.cuts, self.window.stride
        follow = all(b.boundary - a.boundary == stride for a, b in pairwise(cuts))
        return follow and self.window.shares_context


@dataclass(frozen=True)
class Arrangement:
    """How a reader is shown what was found."""

    pattern: Pattern
    frame: Frame = Frame()
    forbidden: Ids = ()
    """Ids that are never targets: their logits count as minus infinity."""

    def prompt(self, example: Example, at: int) -> Ids:
        """What the targets of a cut, by its number, are given: token by token, a slot first."""
        return self._prompt(example, at, Slot(self.room(example))).arranged

    def _prompt(self, example: Example, at: int, slot: Slot) -> Prompt:
        window = example.window
        context, passage = window.context(window.cuts[at]), example.passages[at]
        return arrange(self.pattern, context, passage, self.frame, window.bos, slot)

    def room(self, example: Example) -> int:
        """R: the positions of the slot; 0 in other patterns."""
        if self.pattern is not Pattern.SLOT:
            return 0
        most = max(example.most_tokens, *map(len, example.passages))
        return slot_room(1, most, self.frame)

    def first_position(self, example: Example, at: int) -> int:
        """Where a cut's prompt begins: passages shorter than the slot stand at its end."""
        prompt = self._prompt(example, at, Slot(self.room(example)))
        return prompt.slot.room - len(prompt.slot.passage)

    def whole(self, example: Example) -> Prompt:
        """The context up to the last target, and what was in the slot meanwhile."""
        slot = Slot(self.room(example))
        for at in range(len(example.passages)):
            slot = self._prompt(example, at, slot).slot
        end = example.window.cuts[-1].boundary + example.window.stride - 1
        return Prompt(example.window.ids[:end], slot)


@dataclass(frozen=True)
class _Row:
    """A sequence whose last positions give the log-probabilities of the targets of some cuts."""

    at: tuple[tuple[int, int], ...]
    """Which cuts: the number of the example, the number of the cut."""
    ids: Ids
    targets: Ids
    seen: int = 0
    """How many positions of a shared context come before it."""
    first: int = 0
    """The position of its first token, if nothing comes before it."""


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
        slots = arrangement.pattern is Pattern.SLOT
        assert self.packs_appended or not slots, "see Reader.check_pattern"
        for number, example in enumerate(examples):
            if appends and example.window.shares_context:
                found |= self._branches(number, example, arrangement)
            elif slots and example.prompts_grow:
                found |= self._in_slot(number, example, arrangement)
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

    def _in_slot(
        self, number: int, example: Example, arrangement: Arrangement
    ) -> dict[tuple[int, int], Tensor]:
        """The passages, then the context in pieces: each sees its passage and what came before."""
        whole, room = arrangement.whole(example), arrangement.room(example)
        pieces = list(whole.pieces(0))
        passages = self._alone({passage for passage, _ in pieces if passage}, room)
        first = example.window.cuts[0].boundary - 1  # what the first target is read off
        context: list[States] = []
        logits: list[Tensor] = []
        done = 0
        for passage, ids in pieces:
            cache = _joined(passages.get(passage, []), context)
            keep = min(len(ids), done + len(ids) - first)
            rows = self._behind(cache, ids, room + done, max(keep, 1))
            logits.append(rows[:, rows.shape[1] - max(keep, 0) :])
            context = [_states(layer, len(passage)) for layer in cache.layers]
            done += len(ids)
        targets = example.window.ids[first + 1 : done + 1]
        log_probs = self._chosen(torch.cat(logits, 1), [targets], arrangement.forbidden)[0]
        parts = log_probs.chunk(len(example.passages))
        return {(number, at): part for at, part in enumerate(parts)}

    def _behind(self, cache: DynamicCache, ids: Ids, position: int, keep: int) -> Tensor:
        """Logits (1, keep, V) of `ids`, from `position` on; the cache grows by them."""
        inputs: dict[str, Any] = {"past_key_values": cache, "use_cache": True}
        if self._takes_positions:
            positions = torch.arange(position, position + len(ids), device=self._device)
            inputs["position_ids"] = positions[None]
        return self._logits(torch.tensor([ids], device=self._device), keep, inputs)

    def _alone(self, passages: Iterable[Ids], room: int) -> dict[Ids, list[States]]:
        """Keys and values of passages, each on its own at the positions before `room`."""
        found: dict[Ids, list[States]] = {}
        for rows in _batches([_Row((), passage, ()) for passage in passages], self._batch_tokens):
            width = max(len(row.ids) for row in rows)
            ids, mask = _padded(rows, 0, width)
            cache = DynamicCache()
            inputs: dict[str, Any] = {"past_key_values": cache, "use_cache": True}
            inputs["attention_mask"] = mask.to(self._device)
            if self._takes_positions:
                positions = torch.arange(room - width, room, device=self._device)
                inputs["position_ids"] = positions.expand(len(rows), -1)
            self._logits(ids.to(self._device), 1, inputs)
            for at, row in enumerate(rows):
                found[row.ids] = [_states(one, width - len(row.ids), at) for one in cache.layers]
        return found

    def _run(
        self, rows: Sequence[_Row], arrangement: Arrangement, context: DynamicCache | None = None
    ) -> dict[tuple[int, int], Tensor]:
        """One batch, padded on the left so that its last positions are everyone's targets."""
        width = max(len(row.ids) for row in rows)
        seen = max(row.seen for row in rows)
        ids, mask = _padded(rows, seen, width)
        firsts = torch.tensor([[row.first] for row in rows])
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, seen:] + firsts
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
        row = _Row(((number, at),), prompt + targets[:-1], targets, first=first)
    if row is not None:
        yield row


def _branches(number: int, example: Example, arrangement: Arrangement) -> Iterator[_Row]:
    """Branches begin with the context's last token, so that one without a passage has a token."""
    window = example.window
    for at, cut in enumerate(window.cuts):
        targets = window.targets(cut)
        prompt = arrangement.prompt(example, at)
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


def _padded(rows: Sequence[_Row], seen: int, width: int) -> tuple[Tensor, Tensor]:
    """Ids (n, width), padded on the left, and a mask (n, seen + width) of what each row has."""
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), seen + width, dtype=torch.long)
    for at, row in enumerate(rows):
        ids[at, width - len(row.ids) :] = torch.tensor(row.ids)
        mask[at, : row.seen] = 1
        mask[at, seen + width - len(row.ids) :] = 1
    return ids, mask


class _GivenLayer(DynamicLayer):
    """A layer that begins with keys and values computed before."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values


def _for_branches(context: DynamicCache, seen: int, branches: int) -> DynamicCache:
    """The first `seen` positions of a context's cache, once for each branch; nothing is copied."""
    cache = DynamicCache()
    for layer in context.layers:
        assert isinstance(layer, DynamicLayer)
        keys, values = (
            states[:, :, :seen].expand(branches, -1, -1, -1)
            for states in (layer.keys, layer.values)
            if states is not None
        )
        cache.layers.append(_GivenLayer(keys, values))
    return cache


def _states(layer: Any, start: int, row: int = 0) -> States:
    """Keys and values of a row of a layer, from a position on; (1, H, positions, D) each."""
    assert isinstance(layer, DynamicLayer)
    assert layer.keys is not None
    assert layer.values is not None
    return layer.keys[row : row + 1, :, start:], layer.values[row : row + 1, :, start:]


def _joined(passage: Sequence[States], context: Sequence[States]) -> DynamicCache:
    """A cache of a passage with the context behind it; either may be empty."""
    cache = DynamicCache()
    if not passage or not context:
        layers = [*passage, *context]
    else:
        layers = [
            (torch.cat([front[0], back[0]], 2), torch.cat([front[1], back[1]], 2))
            for front, back in zip(passage, context, strict=True)
        ]
    cache.layers.extend(_GivenLayer(*states) for states in layers)
    return cache
