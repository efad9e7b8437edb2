"""How the layers of a model are built: the parts that a decode step is made of.

They are found by their names, so that relatives of a family are, too. What computes with them is
compared with the model itself, for one may have a factor of its own.

Symbols: B rows, W width, H key-value heads, G query heads of each, D head size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from flashback.engines.kernels.linear import joined

Function = Callable[[Tensor], Tensor]
_QUERIES_KEYS_VALUES = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True)
class BlockParts:
    """A layer, as it is built."""

    attention_norm: nn.Module
    project: Any
    """(B, W) to queries, keys and values side by side, (B, (H·G + 2 H) D)."""
    queries: int
    """H·G."""
    keys: int
    """H."""
    size: int
    """D."""
    scale: float
    output: Any
    feed_forward_norm: nn.Module
    up: Any
    act: Function
    down: Any
    gated: bool = False
    """Half of what `up` gives is a gate for the other."""
    query_norm: nn.Module | None = None
    key_norm: nn.Module | None = None


@dataclass(frozen=True)
class ModelParts:
    """A model, as it is built."""

    embed: Callable[[Tensor, Tensor], Tensor]
    """Ids and positions, (B, 1) each, to (B, 1, W)."""
    rotate: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None
    """Embeddings and positions to cosines and sines, (B, 1, D) each."""
    blocks: Sequence[BlockParts]
    norm: nn.Module
    head: Any


def parts_of(model: PreTrainedModel) -> ModelParts | None:
    """The parts of a model; None: it is built in another way."""
    return next(filter(None, (build(model) for build in (_llama, _opt))), None)


def _has(module: Any, parts: Sequence[str], also: Sequence[str] = ()) -> bool:
    """Whether a module has these parts and no others, but for some that it may have."""
    names = {name for name, _ in module.named_children()}
    return set(parts) <= names <= {*parts, *also}


def _llama(model: Any) -> ModelParts | None:
    """Llama and its relatives: rotary positions, RMS norms, a gated feed-forward network."""
    base: Any = getattr(model, "model", None)
    if not _has(model, ("model", "lm_head")) or not _has(
        base, ("embed_tokens", "layers", "norm", "rotary_emb")
    ):
        return None
    if not all(map(_is_llama_layer, base.layers)):
        return None
    return ModelParts(
        lambda ids, _: base.embed_tokens(ids),
        lambda x, positions: base.rotary_emb(x, position_ids=positions),
        [_llama_parts(layer) for layer in base.layers],
        base.norm,
        model.lm_head,
    )


def _is_llama_layer(layer: Any) -> bool:
    return (
        _has(layer, ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm"))
        and _has(layer.self_attn, (*_QUERIES_KEYS_VALUES, "o_proj"), ("q_norm", "k_norm"))
        and _has(layer.mlp, ("gate_proj", "up_proj", "down_proj", "act_fn"))
    )


def _llama_parts(layer: Any) -> BlockParts:
    attention, network = layer.self_attn, layer.mlp
    normed = hasattr(attention, "q_norm") and hasattr(attention, "k_norm")
    size = attention.head_dim
    return BlockParts(
        layer.input_layernorm,
        joined(attention, _QUERIES_KEYS_VALUES),
        *(len(attention.q_proj.weight) // size, len(attention.k_proj.weight) // size, size),
        attention.scaling,
        attention.o_proj,
        layer.post_attention_layernorm,
        joined(network, ("gate_proj", "up_proj")),
        network.act_fn,
        network.down_proj,
        gated=True,
        query_norm=attention.q_norm if normed else None,
        key_norm=attention.k_norm if normed else None,
    )


def _opt(model: Any) -> ModelParts | None:
    """OPT: learned positions, norms before attention and network, no gate."""
    base: Any = getattr(getattr(model, "model", None), "decoder", None)
    if base is None or not _has(
        base, ("embed_tokens", "embed_positions", "layers", "final_layer_norm")
    ):
        return None

    def embed(ids: Tensor, positions: Tensor) -> Tensor:
        placed = base.embed_positions(torch.ones_like(ids), position_ids=positions)
        embedded: Tensor = placed + base.embed_tokens(ids)
        return embedded

    parts = [_opt_parts(layer) for layer in base.layers]
    return ModelParts(embed, None, parts, base.final_layer_norm, model.lm_head)


def _opt_parts(layer: Any) -> BlockParts:
    attention = layer.self_attn
    heads = attention.num_heads
    return BlockParts(
        layer.self_attn_layer_norm,
        joined(attention, _QUERIES_KEYS_VALUES),
        *(heads, heads, attention.head_dim, attention.scaling),
        attention.out_proj,
        layer.final_layer_norm,
        layer.fc1,
        layer.activation_fn,
        layer.fc2,
    )
