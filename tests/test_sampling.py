"""Sampling is transformers' own, drawn from (seed, position) and nothing else."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import GenerationConfig

from families import tiny_model
from flashback.sampling import Sampler
from flashback.settings import SamplingSettings

V = 40


def logits(seed: int = 0) -> Tensor:
    return torch.randn(V, generator=torch.Generator().manual_seed(seed)) * 3


def test_greedy_takes_the_most_probable_allowed_token() -> None:
    best, second = logits().topk(2).indices.tolist()
    assert Sampler(SamplingSettings(), []).choose(logits()) == best
    assert Sampler(SamplingSettings(), [], forbidden=[best]).choose(logits()) == second


@pytest.mark.parametrize("temperature", [1e-300, 1e-9, 0.0099])
def test_a_temperature_near_0_is_0(temperature: float) -> None:
    """As in other servers; the logits divided by it would overflow."""
    cold = SamplingSettings(temperature=temperature)
    assert cold.greedy
    assert Sampler(cold, []).choose(logits()) == logits().argmax()


def test_draws_follow_the_distribution() -> None:
    """20,000 positions, chi-square over tokens: the 99.9 % quantile of 39 degrees is 72."""
    sampler = Sampler(SamplingSettings(temperature=1.5, seed=7), [])
    counts = torch.zeros(V, dtype=torch.float64)
    for _ in range(20_000):
        counts[sampler.choose(logits())] += 1
    expected = (logits().double() / 1.5).softmax(-1) * 20_000
    likely = expected > 5
    assert ((counts - expected)[likely] ** 2 / expected[likely]).sum() < 72
    assert counts[~likely].sum() < 2 * expected[~likely].sum() + 20


@given(seed=st.integers(0, 2**64 - 1), position=st.integers(0, 50))
def test_a_draw_depends_on_seed_and_position_only(seed: int, position: int) -> None:
    drawing = SamplingSettings(temperature=1.0, seed=seed)
    left = Sampler(drawing, [1] * position)
    right = Sampler(drawing, [2] * position)
    assert left.choose(logits()) == right.choose(logits())


def test_other_seeds_and_positions_draw_other_tokens() -> None:
    flat = torch.zeros(1000)
    by_seed = {
        Sampler(SamplingSettings(temperature=1.0, seed=s), []).choose(flat) for s in range(50)
    }
    sampler = Sampler(SamplingSettings(temperature=1.0), [])
    by_position = {sampler.choose(flat) for _ in range(50)}
    assert len(by_seed) > 40
    assert len(by_position) > 40


@settings(max_examples=50, deadline=None)
@given(
    top_k=st.integers(0, V),
    top_p=st.floats(0.05, 1.0),
    min_p=st.floats(0.0, 1.0),
    seed=st.integers(0, 100),
)
def test_a_drawn_token_is_one_the_filters_allow(
    top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    drawing = SamplingSettings(temperature=1.0, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    token = Sampler(drawing, []).choose(logits(seed))
    probabilities = logits(seed).softmax(-1)
    order = probabilities.argsort(descending=True)
    rank = int((order == token).nonzero())
    assert not top_k or rank < top_k
    assert rank == 0 or probabilities[order[:rank]].sum() < top_p + 1e-6
    assert rank == 0 or probabilities[token] >= min_p * probabilities.max() - 1e-6


def test_penalty_and_order_are_those_of_transformers_generate() -> None:
    """Greedy with a repetition penalty, token by token against the model's own `generate`."""
    model = tiny_model("llama")
    prompt = [0, 5, 9, 7]
    config = GenerationConfig(
        do_sample=False, repetition_penalty=1.7, max_new_tokens=20, pad_token_id=1
    )
    own = model.generate(torch.tensor([prompt]), config, eos_token_id=None)  # type: ignore[operator]
    sampler = Sampler(SamplingSettings(repetition_penalty=1.7), prompt)
    with torch.inference_mode():
        for _ in range(20):
            sampler.choose(model(torch.tensor([sampler.history])).logits[0, -1])
    assert sampler.history == own[0].tolist()


def test_a_forbidden_token_is_never_drawn() -> None:
    forbidden = list(range(V - 1))
    sampler = Sampler(SamplingSettings(temperature=5.0), [], forbidden)
    assert {sampler.choose(logits(i)) for i in range(50)} == {V - 1}


@pytest.mark.parametrize("extreme", [torch.full((V,), -1e30), torch.eye(V)[3] * 1e30])
def test_extreme_logits_give_a_valid_token(extreme: Tensor) -> None:
    assert 0 <= Sampler(SamplingSettings(temperature=1.0), []).choose(extreme) < V
