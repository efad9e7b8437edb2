"""Steps of single tokens by few calls, and by one: the model's own logits, or the model itself."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from families import tiny_model
from flashback.engines.cache.layers import new_cache
from flashback.engines.kernels.choice import always
from flashback.engines.kernels.linear import JoinedLinear, joined, lay_out
from flashback.engines.kernels.products import COMPILED, PACKED, PLAIN
from flashback.engines.kernels.single_step import Block, SingleStep, single_steps
from flashback.engines.local import LocalEngine
from flashback.engines.self_check import fastest_step
from flashback.readers.inference import for_inference
from flashback.readers.reader import Reader
from flashback.readers.weight_settings import Weights
from flashback.settings import RetrievalSettings, Settings, StoppingSettings
from flashback.writing.generator import Generator
from recompute import TOLERANCE, check_greedy, largest_error
from recorded import generate_and_record
from tiny_readers import MadeUpRetriever, tiny_reader

BUILT = ["llama", "qwen3", "opt"]
"""Families that a step is built for."""


def forced(family: str, way: str) -> Reader:
    if way != COMPILED:
        return for_inference(tiny_reader(family), choose=always(way))
    pytest.importorskip("numba", reason="numba is not installed: make extras")
    return for_inference(tiny_reader(family), Weights.NUMBA)


@pytest.mark.parametrize("pattern", ["none", "append", "slot"])
@pytest.mark.parametrize("way", [PLAIN, PACKED, COMPILED])
@pytest.mark.parametrize("family", BUILT)
def test_steps_write_what_the_plain_model_does(family: str, way: str, pattern: str) -> None:
    reader, plain = forced(family, way), tiny_reader(family)
    engine = LocalEngine(reader.model, window=120)
    step = engine.passes.step
    assert step is not None
    assert (step.compute is not None) == (way == COMPILED)
    retrieval = RetrievalSettings(pattern, stride=5, passage_tokens=20, recompute_tokens=3)
    settings = Settings(retrieval, stopping=StoppingSettings(48, ignore_eos=True))
    writer = Generator(reader, engine, MadeUpRetriever(3))
    generation, seen = generate_and_record(writer, [0, *range(10, 40)], settings)
    if pattern == "slot":  # which test_slot.py compares with recomputation
        unstepped = LocalEngine(plain.model, window=120)
        unstepped.passes.step = None
        other = Generator(plain, unstepped, MadeUpRetriever(3))
        expected, logits = generate_and_record(other, [0, *range(10, 40)], settings)
        assert generation.tokens == expected.tokens
        assert float((torch.stack(seen) - torch.stack(logits)).abs().max()) <= TOLERANCE
        return
    assert largest_error(plain.model, generation, seen) <= TOLERANCE
    check_greedy(plain.model, generation, reader.forbidden)


@pytest.mark.parametrize("family", ["gpt2", "gemma3", "bloom", "gpt_oss"])
def test_models_that_are_built_otherwise_compute_themselves(family: str) -> None:
    assert fastest_step(tiny_model(family)) is None


def test_a_model_with_a_factor_of_its_own_computes_itself() -> None:
    model: Any = tiny_model("llama")
    assert fastest_step(model) is not None
    network = model.model.layers[0].mlp
    network.forward = lambda x, own=network.forward: 1.1 * own(x)
    assert list(single_steps(model))
    assert fastest_step(model) is None


def test_several_rows_are_computed_together() -> None:
    model = tiny_model("qwen3")
    step = fastest_step(model)
    assert step is not None
    ids = torch.arange(10, 22).view(2, 6)
    positions = torch.arange(6).expand(2, 6)
    cache = new_cache(model)
    with torch.inference_mode():
        expected = model(input_ids=ids).logits
        model(input_ids=ids[:, :4], past_key_values=cache, use_cache=True)
        for at in (4, 5):
            found = step(ids[:, at, None], positions[:, at, None], cache)
            assert float((found[:, 0] - expected[:, at]).abs().max()) <= TOLERANCE


def test_layers_of_one_input_are_one_product_whoever_is_asked_first() -> None:
    model: Any = tiny_model("llama")
    plain: Any = tiny_model("llama")
    lay_out(model, always(PACKED))
    attention, expected = model.model.layers[0].self_attn, plain.model.layers[0].self_attn
    names = ("q_proj", "k_proj", "v_proj")
    assert all(isinstance(getattr(attention, name), JoinedLinear) for name in names)
    width = expected.q_proj.weight.shape[1]
    with torch.inference_mode():
        for order in (names, names[::-1], ("k_proj", "k_proj", "q_proj")):
            x = torch.randn(1, 3, width)
            for name in order:
                found, wanted = getattr(attention, name)(x), getattr(expected, name)(x)
                assert torch.allclose(found, wanted, atol=1e-5)
        y = torch.randn(1, 1, width)
        side_by_side = torch.cat([getattr(expected, name)(y) for name in names], -1)
        for whole in (joined(attention, names), joined(expected, names)):
            assert torch.allclose(whole(y), side_by_side, atol=1e-5)


def test_an_input_is_not_taken_for_another_of_the_same_numbers_in_memory() -> None:
    model: Any = tiny_model("llama")
    lay_out(model, always(PACKED))
    attention = model.model.layers[0].self_attn
    width = attention.q_proj.weight.shape[1]
    with torch.inference_mode():
        first = attention.q_proj(torch.ones(1, 1, width))  # its keys are never asked for
        second = attention.k_proj(torch.zeros(1, 1, width))
        assert float(first.abs().max()) > 0
        assert float(second.abs().max()) == 0


def test_the_first_token_of_all_is_a_step_too() -> None:
    reader = forced("llama", COMPILED)
    engine = LocalEngine(reader.model, window=120)
    sequence = engine.passes.new_sequence()
    with engine.passes.running():
        found = engine.passes.extend(sequence, [5]).clone()
        expected: Tensor = reader.model(input_ids=torch.tensor([[5]])).logits[0]
    assert float((found - expected).abs().max()) <= TOLERANCE


def test_a_block_takes_any_norm() -> None:
    model: Any = tiny_model("llama")
    step = fastest_step(model)
    assert isinstance(step, SingleStep)
    assert all(isinstance(block, Block) for block in step.blocks)
    assert not isinstance(step.norm, nn.Module)
