"""The reader: a language model in this process, with its tokenizer."""

import warnings
from dataclasses import dataclass
from functools import cached_property

import torch
from transformers import PreTrainedModel

from flashback.engines.support import Support, support_of
from flashback.patterns.pattern import ContextPattern
from flashback.readers.placement import Placement
from flashback.readers.text_reader import TextReader, ids_of


@dataclass(frozen=True, kw_only=True)
class Reader(TextReader):
    """A loaded language model and everything needed to talk to it in token ids."""

    model: PreTrainedModel
    placement: Placement

    @property
    def runs_on(self) -> str:
        """Device, dtype, and why."""
        return str(self.placement)

    @cached_property
    def eos(self) -> frozenset[int]:
        """The ids that end a text: the generation configuration's, else the tokenizer's."""
        generation = self.model.generation_config
        given = None if generation is None else generation.eos_token_id
        return ids_of(given) if given is not None else ids_of(self.tokenizer.eos_token_id)

    @cached_property
    def vocabulary_size(self) -> int:
        """Rows of the embedding: how many ids the model has."""
        embedding = self.model.get_input_embeddings()
        assert isinstance(embedding.weight, torch.Tensor)
        return embedding.weight.shape[0]

    @cached_property
    def support(self) -> Support:
        """The properties of the model's family."""
        return support_of(self.model)

    @property
    def can_have_slot(self) -> bool:
        """Deprecated: `can_have`."""
        warnings.warn(
            "Reader.can_have_slot is now Reader.can_have(PATTERNS['slot'])",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.support.reserved_positions

    def why_not(self, pattern: ContextPattern) -> str | None:
        """Why the model does not support a pattern; None: it does."""
        return self.support.without_slot if pattern.isolated else None
