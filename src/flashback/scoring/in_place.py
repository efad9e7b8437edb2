"""Log-probabilities of targets whose passages are exchanged at reserved positions.

As in generation, every passage is prefilled on its own, here in ordinary batches; then the window
segment by segment, each on the keys and values of its passage and of the segments before. No token
is computed twice, and no model needs a mask for it.

Symbols: R reserved positions, s stride, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from flashback.engines.kernels.states import States
from flashback.patterns.prompt import Ids
from flashback.scoring.examples import Arrangement, Example
from flashback.scoring.model import ScoringModel, Steps, cache_of, joined, part, states_of
from flashback.scoring.sequences import TargetSequence, batches, padded


def log_probs_in_place(
    model: ScoringModel, example: Example, arrangement: Arrangement, batch_tokens: int
) -> Steps[Tensor]:
    """Log-probabilities (cuts, s) of an example whose cuts continue each other.

    Args:
        batch_tokens: the most tokens of a batch of passages.
    """
    window, prompt = example.window, arrangement.whole(example)
    passages = {segment.passage for segment in prompt.segments} - {()}
    prefilled = yield from _prefilled(model, passages, prompt.reserved, batch_tokens)
    first = window.cuts[0].boundary
    context: list[States] = []
    logits = []
    for segment in prompt.segments:
        cache = cache_of(joined(prefilled.get(segment.passage, []), context))
        start = segment.start - prompt.reserved
        keep = start + len(segment.ids) - max(start, first - 1)
        logits.append(model.extend(cache, segment.ids, segment.start, keep))
        context = part(states_of(cache), slice(len(segment.passage), None))
        yield
    targets = window.ids[first : first + len(window.cuts) * window.stride]
    log_probs = model.log_probs(torch.cat(logits, 1), [targets], arrangement.forbidden)
    rows: Tensor = log_probs[0].unflatten(0, (-1, window.stride))
    return rows


def _prefilled(
    model: ScoringModel, passages: set[Ids], reserved: int, tokens: int
) -> Steps[dict[Ids, list[States]]]:
    """Keys and values of passages, each on its own at the last of the reserved positions.

    Args:
        reserved: R.
        tokens: the most of a batch.
    """
    found: dict[Ids, list[States]] = {}
    for batch in batches((TargetSequence((), ids, ()) for ids in sorted(passages)), tokens):
        ids, mask = padded([row.ids for row in batch], [0] * len(batch))
        cache = DynamicCache()
        inputs: dict[str, Any] = {
            "past_key_values": cache,
            "use_cache": True,
            "attention_mask": mask.to(model.device),
        }
        if model.takes_positions:
            positions = torch.arange(reserved - ids.shape[1], reserved, device=model.device)
            inputs["position_ids"] = positions.expand(len(batch), -1)
        model.logits(ids.to(model.device), 1, inputs)
        states = states_of(cache)
        found |= {
            row.ids: part(states, slice(-len(row.ids), None), at) for at, row in enumerate(batch)
        }
        yield
    return found
