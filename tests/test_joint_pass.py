"""A slot's passage in the pass of the tokens behind it: as if it had a pass of its own."""

import threading
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from families import FAMILIES, SLIDING, tiny_model
from flashback.arrangement import Ids, InView, Prompt, Slot
from flashback.engines.cache import States, full_layers
from flashback.engines.joint_pass import PassageApart
from flashback.engines.local import CachedSequence, LocalEngine
from flashback.sampling import Sampler
from flashback.settings import SamplingSettings

JOINED = tuple(family for family in FAMILIES if family not in (*SLIDING, "bloom"))
"""Bloom is not told where its tokens stand."""
ROOM = 12
PIECES: tuple[tuple[Ids, Ids], ...] = (
    ((5, 6, 7), tuple(range(20, 40))),  # nothing cached, several tokens behind the passage
    ((8, 9, 10, 11, 12, 13, 14), (41,)),  # a boundary
    ((15,), (42, 43, 44)),
    (tuple(range(50, 62)), (45,)),  # the whole slot
)


def engine_of(family: str) -> LocalEngine:
    return LocalEngine(tiny_model(family), 100, self_check=False)


@torch.inference_mode()
def joint(engine: LocalEngine, sequence: CachedSequence, passage: Ids, ids: Ids) -> Tensor:
    return engine.joint_pass(sequence, passage, ids)


@torch.inference_mode()
def apart(engine: LocalEngine, sequence: CachedSequence, passage: Ids, ids: Ids) -> Tensor:
    sequence.show(passage, engine.encode_passage(passage, ROOM))
    return engine._forward(sequence, ids, 1)


def slots(sequence: CachedSequence) -> list[States]:
    return [layer.shown for layer in full_layers(sequence.cache)]


def assert_same(found: Sequence[States], expected: Sequence[States]) -> None:
    for pair, other in zip(found, expected, strict=True):
        for states, alone in zip(pair, other, strict=True):
            torch.testing.assert_close(states, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", JOINED)
def test_logits_and_slots_are_those_of_two_passes(family: str) -> None:
    engine = engine_of(family)
    one, two = engine.new_sequence(ROOM), engine.new_sequence(ROOM)
    for passage, ids in PIECES:
        logits, expected = joint(engine, one, passage, ids), apart(engine, two, passage, ids)
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
        assert_same(slots(one), slots(two))
        assert (one.ids, one.views, one.shown) == (two.ids, two.views, two.shown)
        one.check()


@pytest.mark.parametrize("family", JOINED)
def test_an_engine_finds_out_that_it_can(family: str) -> None:
    assert engine_of(family).joins_passages


@pytest.mark.parametrize("family", [*SLIDING, "bloom"])
def test_and_that_it_cannot(family: str) -> None:
    assert not engine_of(family).joins_passages


def test_attention_that_cannot_be_told_apart_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: passages that see the context must fail the comparison."""
    eager = tiny_model("llama")
    eager.set_attn_implementation("eager")
    assert not LocalEngine(eager, 100, self_check=False).joins_passages
    monkeypatch.setattr(PassageApart, "_attend", torch.nn.functional.scaled_dot_product_attention)
    assert not engine_of("llama").joins_passages


def test_recorded_passes_and_short_windows_have_passages_of_their_own() -> None:
    assert not LocalEngine(tiny_model("llama"), 100, fixed_passes=True).joins_passages
    assert not LocalEngine(tiny_model("llama"), 8, self_check=False).joins_passages


def test_a_generation_makes_one_pass_at_a_boundary(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of("llama")
    assert engine.joins_passages
    passes: list[int] = []
    plain = engine.run

    def counting(ids: Tensor, *arguments: object, **more: object) -> Tensor:
        passes.append(ids.shape[1])
        return plain(ids, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(engine, "run", counting)
    context = tuple(range(20, 60))
    views = (InView(0, (1, 2)), InView(30, (3, 4, 5)), InView(39, ()))
    completion = engine.complete(
        Prompt(context, Slot(4, views)), 2, Sampler(SamplingSettings(), [])
    )
    list(completion)
    assert passes == [2 + 30, 3 + 9, 1, 1]
    assert completion.usage.encoded == 2 + 30 + 3 + 9 + 1
    # Both passages are kept, and not as parts of a cache that goes on.
    kept = engine.passages.find((1, 2), 4)
    assert kept is not None
    assert_same(kept, engine.encode_passage((1, 2), 4))
    assert engine.passages.count.encoded == 2
    assert engine.passages.find((3, 4, 5), 4) is not None


def test_other_threads_are_not_told() -> None:
    query = torch.randn(1, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    attend = torch.nn.functional.scaled_dot_product_attention
    expected, found = attend(query, query, query), []
    with PassageApart(3, 2):
        other = threading.Thread(target=lambda: found.append(attend(query, query, query)))
        other.start()
        other.join()
        assert not torch.equal(attend(query, query, query), expected)
    assert torch.equal(found[0], expected)
