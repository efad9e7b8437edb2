"""The cost of passes and strides: the paper's formulas and exact counts, as small pure functions.

Symbols, the paper's where it has them:

    T   length of the whole sequence      s   stride            l   layers
    h   hidden size                       b   batch size        r   rank of LoRA
    d   tokens of a passage with frame    c   tokens already cached
    n   tokens encoded in a pass          k   positions whose logits are computed
    V   vocabulary

A multiplication and the addition that follows it are two floating-point operations.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from flashback.engines.support import key_value_heads


def paper_recomputation(length: int, stride: int, batch: int, hidden: int, layers: int) -> float:
    """C0 = 2T(T+s)bh²l/s: what prepending spends on computing keys and values again (paper)."""
    return 2 * length * (length + stride) * batch * hidden**2 * layers / stride


def paper_lora(
    length: int, stride: int, passage: int, batch: int, hidden: int, layers: int, rank: int
) -> float:
    """C1 = 2l(4r+1)bhT(d+2s)/s: what unmerged LoRA adds to appending (paper)."""
    return 2 * layers * (4 * rank + 1) * batch * hidden * length * (passage + 2 * stride) / stride


@dataclass(frozen=True)
class Shape:
    """What a model's cost depends on."""

    layers: int
    """l"""
    hidden: int
    """h"""
    vocabulary: int
    """V"""
    layer_weights: int
    """Weights of all matrices in all layers: each is used once per token."""
    attention_width: int
    """Heads x head size: what a query is compared over."""
    cache_width: int
    """Key-value heads x head size: what a cached key or value takes per layer."""
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


@dataclass(frozen=True)
class Pass:
    """One forward pass."""

    new: int
    """n"""
    cached: int
    """c"""
    logits: int = 1
    """k: the last layer is computed for these alone; 0: it gives keys and values only."""
    batch: int = 1
    """b: rows, n, c, d and k each."""
    passage: int = 0
    """d: tokens of a slot's passage, encoded beside them and among the c that they see."""

    @property
    def tokens(self) -> int:
        """d + n"""
        return self.passage + self.new


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
    read = 2 * (one.cached + one.new) * shape.cache_width * shape.layers
    written = 2 * one.tokens * shape.cache_width * shape.layers
    return (weights + one.batch * (read + written)) * shape.bytes_per_value


def _projections(shape: Shape) -> int:
    """Weights of a layer's queries, keys and values: h(a+2g)."""
    return shape.hidden * (shape.attention_width + 2 * shape.cache_width)


def stride_passes(
    pattern: str,
    context: int,
    stride: int,
    passage: int,
    *,
    first: bool = False,
    known: bool = False,
    behind_passage: bool = True,
    every_logit: bool = False,
    batch: int = 1,
    joint: bool = False,
) -> Iterator[Pass]:
    """The passes of a stride, without a jump.

    Args:
        context: c, tokens of the context at the boundary.
        passage: d, tokens of passage and frame.
        first: nothing is cached yet.
        known: the passage is that of the stride before; in a slot: its keys and values are kept.
        behind_passage: the stride before had a passage, so that its tokens stood behind one.
        every_logit: logits at every position of the boundary pass, as the authors' code has it.
        batch: b.
        joint: a slot's passage is encoded in the pass of the tokens behind it.
    """
    if pattern == "none":
        passage = 0
    encoded = 0 if known or pattern != "slot" else passage
    if encoded and not joint:
        yield Pass(encoded, 0, logits=0, batch=batch)
    prompt = context + passage
    if first:
        new = context if pattern == "slot" else prompt
    elif pattern == "append":
        new = passage + (stride if behind_passage else 1)
    elif pattern == "prepend" and not known:
        new = prompt
    else:
        new = 1  # all but the token that was chosen last is cached
    logits = new if every_logit else 1
    yield Pass(new, prompt - new, logits, batch, passage=encoded if joint else 0)
    for length in range(prompt, prompt + stride - 1):
        yield Pass(1, length, batch=batch)
