"""The engine as the run-time test runs it: given text, several rows, every logit if asked."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from flashback.benchmark.ceilings import synchronize
from flashback.benchmark.material import Dictation
from flashback.engines.kernels.attention import Attention
from flashback.engines.kernels.last_layer import LastLayer
from flashback.engines.kernels.single_step import SingleStep
from flashback.engines.local import LocalEngine
from flashback.engines.passes import Passes
from flashback.engines.protocol import Completion
from flashback.patterns.prompt import PlacedPassage, Prompt
from flashback.readers.reader import Reader
from flashback.sampling import Sampler


class TimedPasses(Passes):
    """Passes of B rows of equal length, each with other tokens.

    Row b reads the tokens of row 0 moved on by b V/B places in the vocabulary. All rows are
    computed, cached and chosen from; the engine sees row 0.
    """

    def __init__(
        self,
        reader: Reader,
        *,
        rows: int = 1,
        every_logit: bool = False,
        attention: Attention | None = None,
        last_layer: LastLayer | None = None,
        step: SingleStep | None = None,
    ) -> None:
        """Take over a reader's model.

        Args:
            rows: B.
            every_logit: compute the logits of every position of a pass, as the authors' code does.
            attention, last_layer, step: see `Passes`.
        """
        super().__init__(reader.model, attention=attention, last_layer=last_layer, step=step)
        self._every_logit = every_logit
        self._size = reader.vocabulary_size
        numbers = torch.arange(rows, device=reader.model.device)[:, None]
        self._moves = numbers * (self._size // rows)

    def run(
        self, ids: Tensor, positions: Tensor, cache: DynamicCache, keep: int, **more: Any
    ) -> Tensor:
        """See `Passes.run`; of all rows, the logits of row 0, (1, keep, V)."""
        rows = (ids + self._moves) % self._size  # (B, T)
        computed = ids.shape[1] if self._every_logit else keep
        logits = super().run(rows, positions.expand_as(rows), cache, computed, **more)
        logits[1:, -1].argmax(-1)  # every row chooses
        return logits[:1, -keep:]


class TimedEngine(LocalEngine):
    """An engine that begins empty and writes the text that it is given."""

    def __init__(
        self,
        reader: Reader,
        text: Iterator[int],
        *,
        rows: int = 1,
        every_logit: bool = False,
        cache_bytes: int = sys.maxsize,
        fixed_passes: bool | None = None,
        step: SingleStep | None = None,
        passes: Passes | None = None,
    ) -> None:
        """Take over a reader's model.

        Args:
            text: the tokens that are written, in order.
            rows, every_logit, step: see `TimedPasses`.
            cache_bytes, fixed_passes: see `LocalEngine`.
            passes: run the model; None: `TimedPasses`.
        """
        self._text = text
        super().__init__(
            reader.model,
            reader.window,
            cache_bytes=cache_bytes,
            self_check=False,
            fixed_passes=fixed_passes,
            passes=passes or TimedPasses(reader, rows=rows, every_logit=every_logit, step=step),
        )

    def complete(self, prompt: Prompt, max_tokens: int, sampler: Sampler) -> Completion:
        """See `Engine.complete`; the tokens are the text's."""
        return super().complete(prompt, max_tokens, Dictation(sampler, self._text))

    def keep(self, passages: Iterable[PlacedPassage]) -> None:
        """Put passages into the passage cache."""
        with self.passes.running():
            for passage in passages:
                self.passages.get(passage, self.passes.prefill_passage)
        synchronize(self.model.device)  # before a stride is timed
