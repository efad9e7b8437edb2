"""The engine as the run-time test runs it: given text, several rows, every logit if asked."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from flashback.benchmark.ceilings import synchronize
from flashback.benchmark.material import Dictation
from flashback.engines.local import LocalEngine
from flashback.engines.protocol import Completion
from flashback.patterns.prompt import Ids, Prompt
from flashback.readers.reader import Reader
from flashback.sampling import Sampler


class TimedEngine(LocalEngine):
    """An engine that begins empty and writes what it is given.

    With several rows, every pass has B of them, of equal length and each with other tokens: row b
    reads the tokens of row 0 moved on by b V/B places in the vocabulary. All are computed, cached
    and chosen from; row 0 is what the loop sees.
    """

    def __init__(
        self,
        reader: Reader,
        text: Iterator[int],
        *,
        rows: int = 1,
        every_logit: bool = False,
        passage_bytes: int = sys.maxsize,
        fixed_passes: bool | None = None,
    ) -> None:
        """Take over a reader's model.

        Args:
            text: the tokens that are written, in order.
            rows: B.
            every_logit: compute the logits of every position of a pass, as the authors' code does.
            passage_bytes: keys and values of slot passages to keep, at most.
            fixed_passes: see `LocalEngine`.
        """
        self._text = text
        self._every_logit = every_logit
        size = reader.vocabulary_size
        self._moves = torch.arange(rows, device=reader.model.device)[:, None] * (size // rows)
        self._size = size
        super().__init__(
            reader.model,
            reader.window,
            passage_bytes=passage_bytes,
            self_check=False,
            fixed_passes=fixed_passes,
        )

    def complete(self, prompt: Prompt, max_tokens: int, sampler: Sampler) -> Completion:
        """See `Engine.complete`; the tokens are the text's."""
        return super().complete(prompt, max_tokens, Dictation(sampler, self._text))

    @torch.inference_mode()
    def keep(self, passages: Iterable[Ids], room: int) -> None:
        """Put passages into the passage cache."""
        for passage in passages:
            self.passages.get(passage, room, self.encode_passage)
        synchronize(self.model.device)  # before a stride is timed

    def run(
        self, ids: Tensor, positions: Tensor, cache: DynamicCache, keep: int, **more: Any
    ) -> Tensor:
        """See `LocalEngine.run`; of all rows, the logits of row 0, (1, keep, V)."""
        rows = (ids + self._moves) % self._size  # (B, T)
        computed = ids.shape[1] if self._every_logit else keep
        logits = super().run(rows, positions.expand_as(rows), cache, computed, **more)
        logits[1:, -1].argmax(-1)  # every row chooses
        return logits[:1, -keep:]
