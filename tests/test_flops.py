"""The cost model counts what PyTorch counts, pass by pass, on real models."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from families import FAMILIES, tiny_model
from flashback.benchmark.flops import (
    Pass,
    Shape,
    paper_lora,
    paper_recomputation,
    pass_bytes,
    pass_operations,
    stride_passes,
)
from flashback.engines.cache import new_cache
from flashback.engines.local import LocalEngine
from flashback.settings import PATTERNS, Pattern

EXACT = [name for name in FAMILIES if name not in ("gemma3", "gemma2", "mistral", "bloom")]
"""Sliding windows see less than all pairs; Bloom's ALiBi adds products of its own."""


def counted(model: PreTrainedModel, one: Pass) -> int:
    """What PyTorch's counter sees of one pass behind a cache."""
    model.set_attn_implementation("eager")  # the counter does not know the CPU's fused kernel
    cache = new_cache(model)
    with torch.inference_mode():
        if one.cached:
            model(torch.zeros(one.batch, one.cached, dtype=torch.long), past_key_values=cache)
        with FlopCounterMode(display=False) as counter:
            model(
                torch.zeros(one.batch, one.new, dtype=torch.long),
                past_key_values=cache,
                logits_to_keep=one.logits,
            )
    return int(counter.get_total_flops())


@pytest.mark.parametrize("family", EXACT)
@pytest.mark.parametrize(
    "one", [Pass(1, 40), Pass(30, 0, 30), Pass(17, 50), Pass(9, 20, 1, batch=3)]
)
def test_operations_are_what_pytorch_counts(family: str, one: Pass) -> None:
    model = tiny_model(family)
    expected = counted(model, one)
    # Rotary embeddings multiply a little, too: less than 1 % even of a tiny model's work.
    assert pass_operations(Shape.of(model), one) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("family", EXACT)
def test_a_passage_on_its_own_ends_with_its_keys_and_values(family: str) -> None:
    model = tiny_model(family)
    model.set_attn_implementation("eager")
    engine = LocalEngine(model, 128, self_check=False)
    with FlopCounterMode(display=False) as counter:
        engine.encode_passage((1,) * 30, 64)
    counted = pass_operations(Shape.of(model), Pass(30, 0, states_only=True))
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert counted < 0.75 * pass_operations(Shape.of(model), Pass(30, 0))


def test_bytes_are_weights_and_cache() -> None:
    model = tiny_model("llama")
    shape = Shape.of(model)
    matrices = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    head = 300 * 32
    used = matrices - head  # the embedding is looked up, the (untied) head is multiplied
    cache = 2 * 2 * (2 * 8)  # keys and values, layers, key-value heads x head size
    assert pass_bytes(shape, Pass(1, 99)) == 4 * (used + cache * (100 + 1))
    assert pass_bytes(shape, Pass(1, 99, batch=8)) == 4 * (used + 8 * cache * (100 + 1))


@given(
    context=st.integers(20, 2000),
    stride=st.integers(1, 16),
    passage=st.integers(1, 200),
)
def test_passes_of_a_stride_encode_what_the_design_says(
    context: int, stride: int, passage: int
) -> None:
    first = {p: next(stride_passes(p, context, stride, passage)) for p in PATTERNS}
    assert first[Pattern.NONE] == Pass(1, context - 1)
    assert first[Pattern.APPEND] == Pass(stride + passage, context - stride)
    assert first[Pattern.PREPEND] == Pass(context + passage, 0)
    assert first[Pattern.SLOT] == Pass(passage, 0, states_only=True)
    for pattern in PATTERNS:
        passes = list(stride_passes(pattern, context, stride, passage))
        alone = 1 if pattern is Pattern.SLOT else 0  # the passage, before the boundary's one token
        assert len(passes) == stride + alone
        assert all(one.new == 1 for one in passes[1:])
        seen = context if pattern is Pattern.NONE else context + passage
        assert passes[alone].cached + passes[alone].new == seen


def test_the_papers_formulas() -> None:
    assert paper_recomputation(2048, 16, 1, 4096, 32) == 2 * 2048 * 2064 * 4096**2 * 32 / 16
    assert paper_lora(2048, 16, 128, 1, 4096, 32, 16) == 2 * 32 * 65 * 4096 * 2048 * 160 / 16
