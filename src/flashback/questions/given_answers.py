"""How probable given answers are, by the engine that writes.

An answer's tokens are chosen in its place, one after the other, so what is held of its prompt is
not computed again, and whatever engine chooses here can be asked.
"""

import math
from collections.abc import Sequence

from torch import Tensor

from flashback.engines.protocol import Batch, Engine, Request
from flashback.errors import TrainingError
from flashback.patterns.prompt import Ids, Prompt
from flashback.sampling import Sampler
from flashback.scoring.model import without_forbidden
from flashback.settings import SamplingSettings


class GivenTokens(Sampler):
    """Chooses the tokens of a given answer, whatever is probable, and adds up its -log p."""

    def __init__(self, targets: Ids, history: Sequence[int], forbidden: Ids) -> None:
        """Begin behind a text.

        Args:
            targets: the answer's tokens.
            history, forbidden: see `Sampler`.
        """
        super().__init__(SamplingSettings(), history, forbidden)
        self._left = list(targets)
        self.nats = 0.0

    def choose(self, logits: Tensor) -> int:
        """The answer's next token."""
        token = self._left.pop(0)
        scores = without_forbidden(logits.float()[None], self.forbidden).log_softmax(-1)
        self.nats -= float(scores[0, token])
        self.history.append(token)
        return token


def given_nats(
    prompts: Sequence[Prompt],
    answers: Sequence[Ids],
    forbidden: Ids,
    engine: Engine,
    batch: Batch | None = None,
) -> list[float]:
    """-log p of an answer behind each prompt.

    Args:
        prompts: with `batch`, no more than its rows.
        answers: the tokens of each.
        forbidden: ids that are never written.
        engine: what computes them, one by one; its `capabilities.chooses_here` is true.
        batch: computes them together instead.

    Raises:
        TrainingError: log-probabilities are not finite.
    """
    given = [
        GivenTokens(ids, prompt.ids, forbidden)
        for prompt, ids in zip(prompts, answers, strict=True)
    ]
    requests = [
        Request(prompt, len(ids), one)
        for prompt, ids, one in zip(prompts, answers, given, strict=True)
    ]
    if batch is not None:
        for _ in batch.complete(requests):
            pass
    else:
        for one in requests:
            with engine.complete(one.prompt, one.max_tokens, one.sampler) as completion:
                for _ in completion:
                    pass
    if not all(math.isfinite(one.nats) for one in given):
        raise TrainingError(
            "the model's log-probabilities are not finite; use --dtype='float32', or another model"
        )
    return [one.nats for one in given]
