"""Decoding at fixed places in memory computes what recomputing does; recorded on CUDA."""

import copy
from unittest.mock import patch

import pytest
import torch

from families import FAMILIES, SLIDING, tiny_model
from flashback.arrangement import Prompt
from flashback.engines import decode_graph
from flashback.engines.decode_graph import DecodeGraph
from flashback.engines.local import LocalEngine
from flashback.sampling import Sampler
from flashback.settings import PATTERNS, Pattern, SamplingSettings
from test_cuda import CUDA, check_a_long_text

FULL = [family for family in FAMILIES if family not in SLIDING]
FIXED = [family for family in FULL if family not in ("falcon", "bloom")]
"""Whose passes take a mask of every position; the others decode as before."""


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("family", FULL)
def test_a_long_text_equals_recomputing_everything(
    family: str, pattern: Pattern, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_graph, "_COLUMNS", 64)  # several graphs for each text
    steps: list[int] = []
    plain = DecodeGraph.step

    def counted(graph: DecodeGraph, token: int, column: int, first: int) -> torch.Tensor:
        steps.append(graph.columns)
        return plain(graph, token, column, first)

    monkeypatch.setattr(DecodeGraph, "step", counted)
    check_a_long_text(family, pattern, device, monkeypatch, decode_graphs=True)
    if family in FIXED:
        assert len(steps) > 100
        assert len(set(steps)) > 1


def greedy(engine: LocalEngine, prompt: list[int], count: int) -> list[int]:
    sampler = Sampler(SamplingSettings(), prompt, ())
    with engine.complete(Prompt(tuple(prompt)), count, sampler) as completion:
        return list(completion)


def test_texts_by_turns_do_not_disturb_each_other() -> None:
    """Every cache has a graph of its own, and a forked one another."""
    fixed = LocalEngine(tiny_model("llama"), 128, idle_sequences=3, decode_graphs=True)
    plain = LocalEngine(tiny_model("llama"), 128, decode_graphs=False)
    assert fixed._graphs is not None
    assert plain._graphs is None
    prompts = [[5, 6, 7, 8, 9, 10, 11, 12, 13, last] for last in (20, 21, 22)]
    expected = [greedy(plain, prompt, 12) for prompt in prompts]
    open_ones = [
        iter(fixed.complete(Prompt(tuple(prompt)), 12, Sampler(SamplingSettings(), prompt, ())))
        for prompt in prompts
    ]
    taken = [[next(one) for one in open_ones] for _ in range(12)]
    assert [list(tokens) for tokens in zip(*taken, strict=True)] == expected


def test_an_engine_whose_reader_cannot_decodes_as_before() -> None:
    with patch.object(decode_graph.DecodeGraphs, "step", side_effect=RuntimeError("not captured")):
        engine = LocalEngine(tiny_model("llama"), 128, decode_graphs=True)
    assert engine._graphs is None
    assert len(greedy(engine, [5, 6, 7], 4)) == 4
    for family in SLIDING:
        assert LocalEngine(tiny_model(family), 128, decode_graphs=True)._graphs is None


def test_a_copy_of_a_cache_moves_its_graph_nowhere() -> None:
    engine = LocalEngine(tiny_model("gpt2"), 128, decode_graphs=True)
    assert engine._graphs is not None
    greedy(engine, [5, 6, 7], 6)
    (held,) = engine._idle
    copied = copy.deepcopy(held)
    assert held.cache in engine._graphs._graphs
    assert copied.cache not in engine._graphs._graphs
