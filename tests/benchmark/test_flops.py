"""The cost model counts what PyTorch counts, pass by pass, on real models."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from families import FAMILIES, JOINED, tiny_model
from flashback.benchmark.flops import (
    Shape,
    paper_lora,
    paper_recomputation,
    pass_bytes,
    pass_operations,
)
from flashback.engines.cache.layers import new_cache
from flashback.engines.local import LocalEngine
from flashback.patterns.cost import Pass, StrideShape
from flashback.patterns.prompt import Layout, PlacedPassage
from flashback.patterns.registry import PATTERNS

EXACT = [name for name in FAMILIES if name not in ("gemma3", "gemma2", "mistral", "bloom")]
"""Sliding windows see less than all pairs; Bloom's ALiBi adds products of its own."""


def eager_engine(family: str) -> LocalEngine:
    model = tiny_model(family)
    model.set_attn_implementation("eager")  # the counter does not know the CPU's fused kernel
    return LocalEngine(model, 128, self_check=False)


def counted(engine: LocalEngine, one: Pass) -> int:
    """What PyTorch's counter sees of one pass behind a cache."""
    ids = torch.zeros(one.batch, one.cached + one.new, dtype=torch.long)
    positions = torch.arange(one.cached + one.new).expand_as(ids)
    before, new = slice(one.cached), slice(one.cached, None)
    cache = new_cache(engine.model)
    with torch.inference_mode():
        if one.cached:
            engine.passes.run(ids[:, before], positions[:, before], cache, 1)
        with FlopCounterMode(display=False) as counter:
            engine.passes.run(ids[:, new], positions[:, new], cache, one.logits)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("family", EXACT)
@pytest.mark.parametrize(
    "one",
    [Pass(1, 40), Pass(30, 0, 30), Pass(30, 0), Pass(17, 50), Pass(17, 50, 17), Pass(9, 20, 3, 3)],
)
def test_operations_are_what_pytorch_counts(family: str, one: Pass) -> None:
    engine = eager_engine(family)
    # Rotary embeddings multiply a little, too: less than 1 % even of a tiny model's work.
    expected = pytest.approx(counted(engine, one), rel=0.01)
    assert pass_operations(Shape.of(engine.model), one) == expected


@pytest.mark.parametrize("family", EXACT)
def test_a_passage_on_its_own_ends_with_its_keys_and_values(family: str) -> None:
    engine = eager_engine(family)
    with engine.passes.running(), FlopCounterMode(display=False) as counter:
        engine.passes.prefill_passage(PlacedPassage((1,) * 30, 64))
    shape = Shape.of(engine.model)
    counted = pass_operations(shape, Pass(30, 0, logits=0))
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert counted < 0.75 * pass_operations(shape, Pass(30, 0, 30))


@pytest.mark.parametrize("family", [name for name in EXACT if name in JOINED])
def test_a_passage_beside_the_first_token_that_sees_it(family: str) -> None:
    engine = LocalEngine(tiny_model(family), 160, self_check=False)
    sequence = engine.passes.new_sequence()
    sequence.lay_out(Layout(reserved=30))
    with engine.passes.running(), sdpa_kernel(SDPBackend.MATH):  # in products that are counted
        engine.passes.extend_with_passage(sequence, PlacedPassage((1,) * 30, 30), (2,) * 40)
        with FlopCounterMode(display=False) as counter:
            engine.passes.extend_with_passage(sequence, PlacedPassage((3,) * 30, 30), (2,))
    counted = pass_operations(Shape.of(engine.model), Pass(1, 30 + 40, passage=30))
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.01)


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
    shape = StrideShape(context, stride, passage)
    first = {name: next(pattern.passes(shape)) for name, pattern in PATTERNS.items()}
    assert first["none"] == Pass(1, context - 1)
    assert first["append"] == Pass(stride + passage, context - stride)
    assert first["prepend"] == Pass(context + passage, 0)
    assert first["slot"] == Pass(passage, 0, logits=0)
    for pattern, arranged in PATTERNS.items():
        passes = list(arranged.passes(shape))
        alone = 1 if pattern == "slot" else 0  # the passage, before the boundary's one token
        assert len(passes) == stride + alone
        assert all(one.new == 1 for one in passes[1:])
        seen = context if pattern == "none" else context + passage
        assert passes[alone].cached + passes[alone].new == seen
    joint = list(PATTERNS["slot"].passes(replace(shape, joint=True)))
    assert joint[0] == Pass(1, context + passage - 1, passage=passage)
    assert len(joint) == stride


def test_the_papers_formulas() -> None:
    assert paper_recomputation(2048, 16, 1, 4096, 32) == 2 * 2048 * 2064 * 4096**2 * 32 / 16
    assert paper_lora(2048, 16, 128, 1, 4096, 32, 16) == 2 * 32 * 65 * 4096 * 2048 * 160 / 16
