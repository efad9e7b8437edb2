"""The properties of model families, in one table: all that depends on the kind of a model.

The rest of FlashBack asks for these properties and never for the name of a family.
"""

import inspect
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

from flashback.engines.kernels.window_masks import KINDS
from flashback.errors import UnsupportedReader

_ALIBI = {"bloom", "mpt"}
"""Biases by distance instead of positions."""
_DISTANCES_IN_COLUMNS = {"mpt"}
"""Distances are measured in columns of the cache, those that a mask hides included."""
_ROPE_BY_LENGTH = {"dynamic", "longrope"}
"""Rotary positions whose frequencies depend on the furthest position of a pass."""
_CUTTABLE = {DynamicLayer, DynamicSlidingWindowLayer, DummyLayer}
"""Cache layers that can be cut back to a prefix."""


@dataclass(frozen=True)
class Support:
    """Which arguments a model takes, and how it attends."""

    takes_positions: bool
    """`position_ids` say where tokens stand."""
    takes_logits_to_keep: bool
    """`logits_to_keep` says for which tokens logits are computed."""
    full_attention_only: bool
    """Every layer sees all positions."""
    every_layer_caches: bool
    """Every layer has keys and values of its own; False where layers share them."""
    windows_in_columns: bool
    """Local layers measure their window in columns of a cache that holds everything (GPT-Neo)."""
    distances_in_columns: bool
    """Distances count columns of the cache, those that a mask hides included (MPT)."""
    alibi: bool
    """Biases by distance instead of positions: right for a passage of p columns before the text
    (Bloom, MPT)."""
    window: int | None
    """W of those layers that see a sliding window, if others see everything; such a model takes a
    mask for each kind of layer. None: all layers see the same."""
    positions_by_length: bool
    """A rotation depends on the furthest position of its pass (dynamic, longrope)."""

    @property
    def reserved_positions(self) -> bool:
        """Whether passages can stand at reserved positions, see `patterns.slot`."""
        return self.without_slot is None

    @property
    def without_slot(self) -> str | None:
        """Why passages cannot stand at reserved positions; None: they can."""
        mixed = self.window is not None
        if not self.takes_positions and (mixed or not self.alibi):
            return "takes no positions, so that none can be reserved"
        if self.windows_in_columns:
            return "measures sliding-window attention in columns of its cache"
        if not mixed and not self.full_attention_only:
            return "has sliding-window attention in all layers, which lose sight of the passage"
        if mixed and not self.every_layer_caches:
            return "has layers that share keys and values beside sliding-window attention"
        return None

    @property
    def explicit_positions(self) -> bool:
        """Whether positions and a mask alone decide what a token sees, as fixed and joint passes
        need it.
        """
        return self.takes_positions and self.full_attention_only

    @property
    def skips_hidden_columns(self) -> bool:
        """Whether columns of a cache that a mask hides are as if they were not there."""
        return self.full_attention_only and not self.distances_in_columns


def support_of(model: nn.Module) -> Support:
    """The properties of a causal language model of transformers, without an adapter around it."""
    config: Any = model.config
    kind = config.model_type
    parameters = inspect.signature(model.forward).parameters
    layers = [type(layer) for layer in DynamicCache(config=config).layers]
    windows_in_columns = "local" in getattr(config, "attention_layers", ())
    full = all(layer in (DynamicLayer, DummyLayer) for layer in layers)
    return Support(
        takes_positions="position_ids" in parameters,
        takes_logits_to_keep="logits_to_keep" in parameters,
        full_attention_only=full and not windows_in_columns,
        every_layer_caches=DummyLayer not in layers,
        windows_in_columns=windows_in_columns,
        distances_in_columns=kind in _DISTANCES_IN_COLUMNS,
        alibi=kind in _ALIBI,
        window=_mixed_window(config),
        positions_by_length=bool(rotations_by_length(config)),
    )


def _mixed_window(config: Any) -> int | None:
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ())
    window: int | None = text.sliding_window if kinds == {*KINDS} else None
    return window


def check_supported(model: PreTrainedModel) -> None:
    """Refuse, before running it, a model whose cache cannot be cut back to a prefix.

    Raises:
        UnsupportedReader: it is no decoder, or keeps a state that cannot be cut; names which.
    """
    name = label(model)
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedReader(f"{name} is an encoder-decoder; expected a decoder-only model")
    if "past_key_values" not in inspect.signature(model.forward).parameters:
        raise UnsupportedReader(
            f"{name} keeps no key-value cache (a recurrent state cannot be cut back to a prefix); "
            "expected an attention-only model"
        )
    layer_types = getattr(model.config.get_text_config(), "layer_types", None)
    if "chunked_attention" in (layer_types or ()):
        raise UnsupportedReader(f"{name} has chunked-attention layers, which are not verified")
    for layer in DynamicCache(config=model.config).layers:
        if type(layer) not in _CUTTABLE:
            raise UnsupportedReader(
                f"{name} has layers of type {type(layer).__name__}, whose state cannot be cut back "
                "to a prefix; expected full or sliding-window attention only"
            )


def label(model: PreTrainedModel) -> str:
    """How messages name a model."""
    kind = model.config.model_type
    return f"model {model.name_or_path} ({kind})" if model.name_or_path else f"model {kind}"


def key_value_heads(config: Any) -> int:
    """How many heads have keys and values of their own."""
    if getattr(config, "multi_query", False) and not config.new_decoder_architecture:  # Falcon
        return 1
    found: int = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return found


def rotations_by_length(config: Any) -> list[dict[str, Any]]:
    """The parameters of those rotary positions of a model that depend on a pass's length.

    Some models have one set of parameters for each kind of layer.
    """
    found = getattr(config.get_text_config(), "rope_parameters", None) or {}
    sets = [found, *(one for one in found.values() if isinstance(one, dict))]
    return [one for one in sets if one.get("rope_type") in _ROPE_BY_LENGTH]
