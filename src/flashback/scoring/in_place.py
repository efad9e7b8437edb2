"""Log-probabilities of targets whose passages stand in a slot before the context.

Every passage is encoded on its own, in ordinary batches, and then the context piece by piece, each
piece on the keys and values of its passage and of the context so far. No token is encoded twice,
and every model can do it: there is no mask to hand over.

Other layouts than the slot's own are there to be measured (`SlotLayout`, docs/slot.md).

Symbols: R positions of the slot, b a boundary, s stride, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from flashback.engines.cache.layers import States
from flashback.patterns.prompt import Ids
from flashback.scoring.examples import Arrangement, Example
from flashback.scoring.passes import Passes, Steps, cache_of, joined, part, states_of
from flashback.scoring.rows import Row, batches, padded


def slot_log_probs(
    passes: Passes, example: Example, arrangement: Arrangement, batch_tokens: int
) -> Steps[Tensor]:
    """Log-probabilities (cuts, s) of an example whose cuts go on from one another.

    Args:
        batch_tokens: the most tokens of a batch of passages.
    """
    scored = _SlotExample(passes, example, arrangement)
    yield from scored.encode_alone(batch_tokens)
    logits = yield from scored.grown() if arrangement.layout.kept else scored.branched()
    first = example.window.cuts[0].boundary
    targets = example.window.ids[first : first + logits.shape[1]]
    log_probs = passes.log_probs(logits, [targets], arrangement.forbidden)
    rows: Tensor = log_probs[0].unflatten(0, (-1, example.window.stride))
    return rows


class _SlotExample:
    """One example, and the keys and values of its passages."""

    def __init__(self, passes: Passes, example: Example, arrangement: Arrangement) -> None:
        self._passes = passes
        self._window = example.window
        self._layout = arrangement.layout
        self._shown = [arrangement.in_slot(example, at) for at in range(len(example.passages))]
        self._room = arrangement.room(example)
        self._start = self._room + self._layout.gap
        """The position of the context's first token."""
        self._alone: dict[Ids, list[States]] = {}

    def grown(self) -> Steps[Tensor]:
        """Logits (1, targets, V); every piece of the context keeps the states it was given."""
        cuts, ids = self._window.cuts, self._window.ids
        first, end = cuts[0].boundary - 1, cuts[-1].boundary + self._window.stride - 1
        starts = [0, *(cut.boundary - 1 for cut in cuts[1:]), end]
        context: list[States] = []
        logits = []
        for at, shown in enumerate(self._shown):
            piece = ids[starts[at] : starts[at + 1]]
            targets = starts[at + 1] - max(starts[at], first)
            rows, context = self._behind(shown, context, piece, starts[at], targets)
            logits.append(rows)
            yield
        return torch.cat(logits, 1)

    def branched(self) -> Steps[Tensor]:
        """The same, but every stride on a context that has never seen a passage."""
        window, clean = self._window, DynamicCache()
        self._passes.behind(clean, window.ids[: window.cuts[-1].boundary], self._start, 1)
        yield
        logits = []
        for cut, shown in zip(window.cuts, self._shown, strict=True):
            last = cut.boundary - 1
            context = part(states_of(clean), slice(last))
            ids = window.ids[last : last + window.stride]
            rows, _ = self._behind(shown, context if last else [], ids, last, len(ids))
            logits.append(rows)
            yield
        return torch.cat(logits, 1)

    def _behind(
        self, shown: Sequence[Ids], context: list[States], ids: Ids, done: int, keep: int
    ) -> tuple[Tensor, list[States]]:
        """Logits (1, keep, V) of the tokens behind `done` others, and the context's states then."""
        front = joined(*(self._states(passage, context) for passage in shown))
        cache = cache_of(joined(front, context))
        logits = self._passes.behind(cache, ids, self._start + done, keep)
        passage_tokens = sum(map(len, shown))
        return logits, part(states_of(cache), slice(passage_tokens, None))

    def _states(self, passage: Ids, context: list[States]) -> list[States]:
        if passage in self._alone:
            return self._alone[passage]
        cache = cache_of(context)
        ids = self._layout.dropped + passage
        self._passes.behind(cache, ids, self._room - len(ids), 1)
        return part(states_of(cache), slice(-len(passage), None))

    def encode_alone(self, tokens: int) -> Steps[None]:
        """Keys and values of passages, each on its own at the positions before R.

        Args:
            tokens: the most of a batch.
        """
        if not self._layout.alone:
            return
        dropped = self._layout.dropped
        passages = {passage for shown in self._shown for passage in shown}
        rows = [Row((), dropped + passage, ()) for passage in passages]
        for batch in batches(rows, tokens):
            width = max(len(row.ids) for row in batch)
            ids, mask = padded(batch, 0, width)
            cache = DynamicCache()
            inputs: dict[str, Any] = {
                "past_key_values": cache,
                "use_cache": True,
                "attention_mask": mask.to(self._passes.device),
            }
            if self._passes.takes_positions:
                device = self._passes.device
                positions = torch.arange(self._room - width, self._room, device=device)
                inputs["position_ids"] = positions.expand(len(batch), -1)
            self._passes.logits(ids.to(self._passes.device), 1, inputs)
            states = states_of(cache)
            for at, row in enumerate(batch):
                passage = row.ids[len(dropped) :]
                self._alone[passage] = part(states, slice(-len(passage), None), at)
            yield
