"""Log-probabilities of targets whose passages are exchanged at reserved positions.

As in generation, every passage is prefilled on its own behind the sink, here in ordinary batches;
then the window segment by segment, each on the keys and values of its passage and of the text
before it. No model needs a mask for it.

Symbols: s stride, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from flashback.engines.kernels.states import States
from flashback.patterns.held import HeldTokens
from flashback.patterns.prompt import Ids, PlacedPassage, Prompt
from flashback.scoring.examples import Arrangement, Example
from flashback.scoring.model import ScoringModel, Steps, cache_of, joined, part, states_of
from flashback.scoring.sequences import TargetSequence, batches, padded

Prefilled = dict[PlacedPassage, list[States]]


def log_probs_in_place(
    model: ScoringModel, example: Example, arrangement: Arrangement, batch_tokens: int
) -> Steps[Tensor]:
    """Log-probabilities (cuts, s) of an example's targets.

    Args:
        batch_tokens: the most tokens of a batch of passages.
    """
    window, prompts = example.window, list(arrangement.prompts(example))
    passages = {
        prompt.placed(segment.passage)
        for prompt in prompts
        for segment in prompt.segments
        if segment.passage
    }
    prefilled = yield from _prefilled(model, passages, batch_tokens)
    text = _Text(model, prefilled)
    logits, targets = [], [window.targets(cut) for cut in window.cuts]
    for prompt, own in zip(prompts, targets, strict=True):
        logits.append((yield from text.logits(prompt, own)))
    return model.log_probs(torch.cat(logits), targets, arrangement.forbidden)


class _Text(HeldTokens):
    """The text's keys and values so far, and what was in view when they were computed."""

    def __init__(self, model: ScoringModel, prefilled: Prefilled) -> None:
        super().__init__()
        self._model = model
        self._prefilled = prefilled
        self._states: list[States] = []

    def logits(self, prompt: Prompt, targets: Ids) -> Steps[Tensor]:
        """Logits (1, s, V) that give the targets behind a prompt."""
        shared = self.common_prefix(prompt)
        self.keep(shared)
        self._states = part(self._states, slice(shared))
        self.layout = prompt.layout
        whole = Prompt.with_views(prompt.ids + targets[:-1], prompt.views, prompt.layout)
        keep = len(targets)
        found: list[Tensor] = []
        for segment in whole.after(shared):
            self.passage = segment.passage
            found.append(self._extend(prompt, segment.ids, min(keep, len(segment.ids))))
            yield
        return torch.cat(found, 1)[:, -keep:]

    def _extend(self, prompt: Prompt, ids: Ids, keep: int) -> Tensor:
        """Compute tokens behind the text: the logits of the last ones, (1, keep, V)."""
        placed = prompt.placed(self.passage)
        passage = self._prefilled[placed] if self.passage else []
        seen = [*placed.positions][len(placed.sink) :] + self.positions(0, len(self.ids))
        cache = cache_of(joined(passage, self._states))
        logits = self._model.extend(cache, ids, self.position, keep, seen)
        self._states = part(states_of(cache), slice(len(self.passage), None))
        self.append(ids)
        return logits


def _prefilled(model: ScoringModel, passages: set[PlacedPassage], tokens: int) -> Steps[Prefilled]:
    """Keys and values of passages, each on its own behind the sink.

    Args:
        tokens: the most of a batch.
    """
    found: Prefilled = {}
    ordered = sorted(passages, key=lambda one: (one.ids, one.sink, one.end))
    rows = {
        TargetSequence(((number, 0),), one.behind_sink, ()): one
        for number, one in enumerate(ordered)
    }
    for batch in batches(rows, tokens):
        some = [rows[row] for row in batch]
        ids, mask = padded([row.ids for row in batch], [0] * len(batch))
        cache = DynamicCache()
        inputs: dict[str, Any] = {
            "past_key_values": cache,
            "use_cache": True,
            "attention_mask": mask.to(model.device),
        }
        if model.takes_positions:
            positions = [
                [0] * (ids.shape[1] - len(one.positions)) + [*one.positions] for one in some
            ]
            inputs["position_ids"] = torch.tensor(positions, device=model.device)
        model.logits(ids.to(model.device), 1, inputs)
        states = states_of(cache)
        found |= {one: part(states, slice(-len(one.ids), None), at) for at, one in enumerate(some)}
        yield
    return found
