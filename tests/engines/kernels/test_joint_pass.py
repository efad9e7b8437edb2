"""A slot's passage in the pass of the tokens behind it: as if it were prefilled alone."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from families import FAMILIES, JOINED, tiny_model
from flashback.engines.cache.layers import full_layers
from flashback.engines.cache.sequence import CachedSequence
from flashback.engines.kernels.joint_pass import PassageApart
from flashback.engines.kernels.states import States
from flashback.engines.local import LocalEngine
from flashback.errors import UnsupportedReader
from flashback.patterns.prompt import Ids, Layout, Prompt, View
from flashback.sampling import Sampler
from flashback.settings import SamplingSettings

RESERVED = 12
LAYOUT = Layout(3, RESERVED, (17, 18))
PIECES: tuple[tuple[Ids, Ids], ...] = (
    ((5, 6, 7), tuple(range(20, 40))),  # several tokens behind the passage
    ((8, 9, 10, 11, 12, 13, 14), (41,)),  # a boundary
    ((15,), (42, 43, 44)),
    (tuple(range(50, 62)), (45,)),  # the whole slot
)


def engine_of(family: str) -> LocalEngine:
    return LocalEngine(tiny_model(family), 100, self_check=False)


def begun(engine: LocalEngine) -> CachedSequence:
    """A history of three tokens, two of them seen by passages."""
    sequence = engine.passes.new_sequence()
    sequence.lay_out(LAYOUT)
    with engine.passes.running():
        engine.passes.extend(sequence, (17, 18, 19))
    return sequence


def joint(engine: LocalEngine, sequence: CachedSequence, passage: Ids, ids: Ids) -> Tensor:
    with engine.passes.running():
        return engine.passes.extend_with_passage(sequence, sequence.placed(passage), ids)


def apart(engine: LocalEngine, sequence: CachedSequence, passage: Ids, ids: Ids) -> Tensor:
    with engine.passes.running():
        sequence.show(passage, engine.passes.prefill_passage(sequence.placed(passage)))
        return engine.passes.extend(sequence, ids)


def slots(sequence: CachedSequence) -> list[States]:
    return [layer.shown for layer in full_layers(sequence.cache)]


def assert_same(found: Sequence[States], expected: Sequence[States]) -> None:
    for pair, other in zip(found, expected, strict=True):
        for states, alone in zip(pair, other, strict=True):
            torch.testing.assert_close(states, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", JOINED)
def test_logits_and_slots_are_those_of_two_passes(family: str) -> None:
    engine = engine_of(family)
    one, two = begun(engine), begun(engine)
    for passage, ids in PIECES:
        logits, expected = joint(engine, one, passage, ids), apart(engine, two, passage, ids)
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
        assert_same(slots(one), slots(two))
        assert (one.ids, one.views, one.passage) == (two.ids, two.views, two.passage)
        one.check()


@pytest.mark.parametrize("family", JOINED)
def test_an_engine_finds_out_that_it_can(family: str) -> None:
    assert engine_of(family).joins_passages


@pytest.mark.parametrize("family", sorted({*FAMILIES} - {*JOINED}))
def test_and_that_it_cannot(family: str) -> None:
    assert not engine_of(family).joins_passages


@pytest.mark.parametrize(("heads", "groups"), [(8, 2), (8, 1), (12, 2), (16, 2)])
def test_queries_that_share_keys_are_not_taken_for_tokens(heads: int, groups: int) -> None:
    """transformers packs the single query of a narrowed layer: n heads of a group look like n
    tokens.
    """
    more = {"hidden_size": 4 * heads, "num_attention_heads": heads, "head_dim": 4}
    more |= {"num_key_value_heads": groups}
    engine = LocalEngine(tiny_model("llama", **more), 100, self_check=False)
    assert engine.joins_passages
    one, two = begun(engine), begun(engine)
    for length in range(1, RESERVED + 1):
        for new in ((40 + length,), (60 + length, 61)):
            passage = tuple(range(3, 3 + length))
            logits, expected = joint(engine, one, passage, new), apart(engine, two, passage, new)
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_slots_in_bfloat16_are_those_of_two_passes() -> None:
    engine = LocalEngine(tiny_model("llama").bfloat16(), 100)
    assert engine.joins_passages
    one, two = begun(engine), begun(engine)
    for passage, ids in PIECES:
        joint(engine, one, passage, ids)
        apart(engine, two, passage, ids)
        for pair, other in zip(slots(one), slots(two), strict=True):
            for states, alone in zip(pair, other, strict=True):
                torch.testing.assert_close(states, alone, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_that_is_not_kept_apart_is_noticed(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: passages that see the context must fail the comparison."""
    monkeypatch.setattr(
        PassageApart, "_attend", lambda _, *given, **m: sdpa_attention_forward(*given, **m)
    )
    model = tiny_model("llama")
    torch.nn.Module.to(model, dtype)
    assert not LocalEngine(model, 100).joins_passages


def test_attention_that_is_not_pytorchs_is_noticed_at_any_time() -> None:
    model = tiny_model("llama")
    model.set_attn_implementation("eager")
    assert not LocalEngine(model, 100, self_check=False).joins_passages
    model.set_attn_implementation("sdpa")
    engine = LocalEngine(model, 100)
    assert engine.joins_passages
    one = begun(engine)
    model.set_attn_implementation("eager")
    with pytest.raises(UnsupportedReader, match="called PyTorch's attention 0 times in 2 layers"):
        joint(engine, one, *PIECES[0])


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_positions_that_depend_on_the_context_keep_a_passage_apart(kind: str) -> None:
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
        rope |= {"original_max_position_embeddings": 64}
    model = tiny_model("llama", rope_parameters=rope)
    assert not LocalEngine(model, 100, self_check=False).joins_passages


def test_a_pass_that_fails_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of("llama")
    assert engine.joins_passages
    prompt = Prompt.with_views(tuple(range(20, 40)), (View(3, (1, 2, 3)),), LAYOUT)

    def complete() -> list[int]:
        return list(engine.complete(prompt, 4, Sampler(SamplingSettings(), [])))

    expected = complete()
    engine.forget()
    with monkeypatch.context() as patch:
        patch.setattr(PassageApart, "_attend", lambda *_, **__: [][0])
        with pytest.raises(IndexError):
            complete()
    assert engine.cache_use.sequences == 0
    assert complete() == expected


def test_recorded_passes_and_short_windows_have_passages_of_their_own() -> None:
    assert not LocalEngine(tiny_model("llama"), 100, fixed_passes=True).joins_passages
    assert not LocalEngine(tiny_model("llama"), 8, self_check=False).joins_passages


def test_a_generation_makes_one_pass_at_a_boundary(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of("llama")
    assert engine.joins_passages
    passes: list[int] = []
    plain = engine.passes.run

    def counting(ids: Tensor, *arguments: object, **more: object) -> Tensor:
        passes.append(ids.shape[1])
        return plain(ids, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(engine.passes, "run", counting)
    context = tuple(range(20, 60))
    views = (View(1, (1, 2)), View(30, (3, 4, 5)), View(39, ()))
    prompt = Prompt.with_views(context, views, Layout(1, 4, (0,)))
    completion = engine.complete(prompt, 2, Sampler(SamplingSettings(), []))
    list(completion)
    assert passes == [1, 1 + 2 + 29, 1 + 3 + 9, 1, 1]
    assert completion.usage.prefilled == 1 + (1 + 2 + 29) + (1 + 3 + 9) + 1
    # Both passages are kept, and not as parts of a cache that goes on.
    kept = engine.passages.find(prompt.placed((1, 2)))
    assert kept is not None
    with engine.passes.running():
        assert_same(kept, engine.passes.prefill_passage(prompt.placed((1, 2))))
    assert engine.passages.count.prefilled == 2
    assert engine.passages.find(prompt.placed((3, 4, 5))) is not None


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("length", [1, 64])
def test_a_passage_that_is_kept_holds_nothing_else_in_memory(family: str, length: int) -> None:
    """GPT-2's keys are a third of what a layer computes; a prompt's first pass has much else."""
    engine = LocalEngine(tiny_model(family), 180, self_check=False)
    assert engine.joins_passages
    passage, context = tuple(range(3, 35)), tuple(range(40, 40 + length))
    prompt = Prompt.with_views(context, (View(0, passage),), Layout(reserved=32))
    list(engine.complete(prompt, 1, Sampler(SamplingSettings(), [])))
    states = engine.passages.find(prompt.placed(passage))
    assert states is not None
    held = {part.untyped_storage().data_ptr(): part for pair in states for part in pair}
    bytes_held = sum(part.untyped_storage().nbytes() for part in held.values())
    assert engine.passages.bytes <= bytes_held <= 1.125 * engine.passages.bytes


def test_other_threads_keep_their_attention() -> None:
    model = tiny_model("llama")
    ids = torch.tensor([[5, 6, 7, 8, 9]])

    def logits() -> Tensor:
        with torch.inference_mode():
            found: Tensor = model(input_ids=ids).logits
        return found

    expected = logits()
    apart = PassageApart(0, 3, 2)
    with apart.of(model.config):
        with ThreadPoolExecutor(1) as pool:
            assert torch.equal(pool.submit(logits).result(), expected)
        assert apart.calls == 0
        logits()
        assert apart.calls == 2
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(logits(), expected)
