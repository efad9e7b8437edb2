"""From logits to a token: transformers' own logits processors and one reproducible draw.

Penalties and randomness belong to the text that is written, not to the engine: a `Sampler` knows
the context and the continuation, never the passage, and draws at one number of (seed, position), so
a sample depends on the logits and the seed alone, not on the engine or the timing.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from flashback.settings import SamplingSettings

OnToken = Callable[[Tensor | None, int], None]
"""Called with every token as it is chosen: the logits (V,), if they are here, and the token."""


class Constraint(Protocol):
    """The tokens that may come next in one text, where not all may."""

    @property
    def schema(self) -> str:
        """The JSON schema that the text obeys, for engines that choose elsewhere."""
        ...

    def allowed(self, scores: Tensor) -> Tensor:
        """The scores (1, V), those of tokens that may not come next at minus infinity."""
        ...

    def accept(self, token: int) -> None:
        """A token was written."""
        ...


class Sampler:
    """Chooses the next tokens of one text, and keeps its history."""

    def __init__(
        self,
        settings: SamplingSettings,
        history: Sequence[int],
        forbidden: Iterable[int] = (),
        on_token: OnToken | None = None,
        constraint: Constraint | None = None,
        ends: Iterable[int] = (),
    ) -> None:
        """Begin a text.

        Args:
            settings: how to draw.
            history: the tokens of the text so far, without any passage.
            forbidden: ids that are never chosen (marking tokens).
            on_token: called with every token; what it raises ends the completion.
            constraint: None: any token may come next.
            ends: ids that end the text, for engines that choose elsewhere.
        """
        self.constraint = constraint
        self.settings = settings
        self.history = list(history)
        self.forbidden = tuple(forbidden)
        self.ends = frozenset(ends)
        self._processors = _processors(settings, self.forbidden)
        self._on_token = on_token

    def choose(self, logits: Tensor) -> int:
        """Pick a token from `logits` (V,) and append it to the history."""
        scores = logits.float()[None]
        if self.constraint is not None:
            scores = self.constraint.allowed(scores)
        if self._processors:
            # Only the repetition penalty reads the ids; building them costs as much as a draw.
            seen = self.history if self.settings.repetition_penalty != 1 else []
            ids = torch.tensor([seen], dtype=torch.long, device=logits.device)
            scores = self._processors(cast(torch.LongTensor, ids), cast(torch.FloatTensor, scores))
        token = int(scores.argmax()) if self.settings.greedy else self._draw(scores[0])
        self._take(token, logits)
        return token

    def accept(self, token: int) -> None:
        """Append a token that an engine chose elsewhere, by these settings and this history."""
        self._take(token, None)

    def _take(self, token: int, logits: Tensor | None) -> None:
        self.history.append(token)
        if self.constraint is not None:
            self.constraint.accept(token)
        if self._on_token is not None:
            self._on_token(logits, token)

    def _draw(self, scores: Tensor) -> int:
        """Invert the cumulative distribution at the one uniform number of (seed, position)."""
        position = len(self.history)
        bits = np.random.Philox(key=self.settings.seed, counter=[0, 0, 0, position])
        uniform = np.random.Generator(bits).random()
        cumulative = scores.cpu().double().softmax(-1).cumsum(-1)
        target = torch.tensor(uniform * float(cumulative[-1]), dtype=torch.float64)
        drawn = int(torch.searchsorted(cumulative, target, right=True))
        return min(drawn, int(scores.isfinite().nonzero()[-1]))


def _processors(settings: SamplingSettings, forbidden: Sequence[int]) -> LogitsProcessorList:
    """In the order of transformers' `generate`: penalty, suppression, then the warpers."""
    processors = LogitsProcessorList()
    if settings.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    if forbidden:
        processors.append(SuppressTokensLogitsProcessor(list(forbidden)))
    if settings.greedy:
        return processors
    if settings.temperature != 1:
        processors.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        processors.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        processors.append(TopPLogitsWarper(settings.top_p))
    if settings.min_p:
        processors.append(MinPLogitsWarper(settings.min_p))
    return processors
