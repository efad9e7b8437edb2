"""PEFT's trainable token rows without a copy of the whole embedding in every pass.

PEFT writes the trained rows into a copy of the embedding (and of a head that is tied to it), and
collects a gradient of that size to keep two rows of it. Here what the rows add is added to what
the frozen layer gives: the same outputs and gradients to rounding, for the price of two rows.

Symbols: n trained rows, V vocabulary, H hidden size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch import Tensor, nn


class MarkingRows(TrainableTokensLayer):
    """Trained rows of an embedding, or the columns of a head that are tied to them."""

    def forward_adapters(
        self, x: Tensor, active_adapters: Sequence[str], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Hidden states (…, H) of ids, or logits (…, V) of hidden states."""
        if self.disable_adapters or self.merged or not active_adapters:
            result: Tensor = super().forward_adapters(x, active_adapters, *args, **kwargs)
            return result
        frozen: Any = self.get_base_layer()
        result = frozen(x, *args, **kwargs)
        for name in active_adapters:
            rows = torch.tensor(self.token_indices[name], device=x.device)  # (n,)
            change = self.trainable_tokens_delta[name].to(result.dtype) - frozen.weight[rows]
            if isinstance(frozen, nn.Embedding):
                scale = self._get_embed_scale()  # type: ignore[no-untyped-call]  # some embeddings multiply what they look up
                change = change if scale is None else change * scale.to(change.dtype)
                result = result + (x[..., None] == rows).to(change.dtype) @ change
            else:
                result = result.index_add(-1, rows, x @ change.T)
        return result


def use_marking_rows(model: PeftModel) -> None:
    """Compute a model's trainable token rows as `MarkingRows`; their values stay."""
    for module in model.modules():
        if type(module) is TrainableTokensLayer:
            module.__class__ = MarkingRows
