"""The cost of forward passes: the paper's formulas and exact counts, as small pure functions.

Symbols, the paper's where it has them:

    T   length of the whole sequence      s   stride            l   layers
    h   hidden size                       b   batch size        r   rank of LoRA
    d   tokens of a passage with frame    c   tokens already cached
    n   tokens computed in a pass         k   positions whose logits are computed
    V   vocabulary

A multiplication and the addition that follows it are two floating-point operations.
"""

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from flashback.engines.support import key_value_heads
from flashback.patterns.cost import Pass


def paper_recomputation(length: int, stride: int, batch: int, hidden: int, layers: int) -> float:
    """C0 = 2T(T+s)bh²l/s: the cost of computing keys and values again when prepending (paper)."""
    return 2 * length * (length + stride) * batch * hidden**2 * layers / stride


def paper_lora(
    length: int, stride: int, passage: int, batch: int, hidden: int, layers: int, rank: int
) -> float:
    """C1 = 2l(4r+1)bhT(d+2s)/s: the cost that unmerged LoRA adds to appending (paper)."""
    return 2 * layers * (4 * rank + 1) * batch * hidden * length * (passage + 2 * stride) / stride


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that its floating-point operations depend on."""

    layers: int
    """l"""
    hidden: int
    """h"""
    vocabulary: int
    """V"""
    layer_weights: int
    """Weights of all matrices in all layers: each is used once per token."""
    attention_width: int
    """Heads x head size."""
    cache_width: int
    """Key-value heads x head size: the values of a cached key in a layer."""
    bytes_per_value: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Shape":
        """Read the shape off a loaded model."""
        config = model.config.get_text_config()
        heads = config.num_attention_heads
        head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
        matrices = [
            module.weight.numel()
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and not _is_head(module, model)
        ]
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            vocabulary=config.vocab_size,
            layer_weights=sum(matrices),
            attention_width=heads * head_size,
            cache_width=key_value_heads(config) * head_size,
            bytes_per_value=next(model.parameters()).element_size(),
        )


def _is_head(module: nn.Module, model: PreTrainedModel) -> bool:
    return module is model.get_output_embeddings()


def pass_operations(shape: Shape, one: Pass) -> float:
    """Floating-point operations of a pass: b times the sum of these.

        2(d+n)(W - W/l) + 4(n(c+n) + d²)a(l-1)      the layers but the last
        2(d+n)h(a+2g) + 2kW/l + 4k(c+n)a            the last one's projections, and k of its rows
        2khV                                        the head

    W are the layers' weights, a the attention's width and g the cache's; with k = d + n, the last
    layer is like the others. Attention is counted over all pairs, masked ones too, as kernels
    without block skipping compute it; a passage's tokens are compared among themselves.
    """
    layer, seen = shape.layer_weights / shape.layers, one.cached + one.new
    matrices = 2 * one.tokens * layer
    attention = 4 * (one.new * seen + one.passage**2) * shape.attention_width
    head = 2 * one.logits * shape.hidden * shape.vocabulary
    if one.logits == one.tokens:
        return one.batch * (shape.layers * (matrices + attention) + head)
    row = 2 * layer + 4 * seen * shape.attention_width
    last = 2 * one.tokens * _projections(shape) + one.logits * row
    return one.batch * ((shape.layers - 1) * (matrices + attention) + last + head)


def pass_bytes(shape: Shape, one: Pass) -> float:
    """Bytes that a pass must move at least: every weight once, the cache read and written once."""
    weights: float = shape.layer_weights + shape.hidden * shape.vocabulary
    if one.logits == 0:
        layer = shape.layer_weights / shape.layers
        weights = shape.layer_weights - layer + _projections(shape)
    return weights * shape.bytes_per_value + cache_bytes(shape, one)


def cache_bytes(shape: Shape, one: Pass) -> float:
    """Of `pass_bytes`, those of keys and values."""
    read = 2 * (one.cached + one.new) * shape.cache_width * shape.layers
    written = 2 * one.tokens * shape.cache_width * shape.layers
    return one.batch * (read + written) * shape.bytes_per_value


def _projections(shape: Shape) -> int:
    """Weights of a layer's queries, keys and values: h(a+2g)."""
    return shape.hidden * (shape.attention_width + 2 * shape.cache_width)
