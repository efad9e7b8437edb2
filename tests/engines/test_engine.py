"""The local engine: leases, forks, counts, refusals and its self-check."""

import copy
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from families import ENGINE_FAMILIES, SLIDING, tiny_config, tiny_model
from flashback.engines.cache.layers import BufferedLayer, BufferedSlidingLayer, new_cache
from flashback.engines.cache.sequence import CachedSequence
from flashback.engines.kernels import last_layer
from flashback.engines.kernels.attention import Attention, UsualAttention, attend
from flashback.engines.local import LocalEngine
from flashback.engines.protocol import CacheUse
from flashback.errors import SettingsError, UnsupportedReader
from flashback.patterns.prompt import Layout, Prompt, View
from flashback.sampling import Sampler
from flashback.settings import SamplingSettings

PROMPT = tuple(range(20))


@pytest.fixture
def engine() -> LocalEngine:
    return LocalEngine(tiny_model("llama"), window=192)


def greedy() -> Sampler:
    return Sampler(SamplingSettings(), [])


def complete(engine: LocalEngine, ids: tuple[int, ...], count: int) -> tuple[list[int], int]:
    """The tokens, and how many prompt tokens were reused."""
    completion = engine.complete(Prompt.plain(ids), count, greedy())
    return list(completion), completion.usage.reused


def test_another_engine_knows_what_the_first_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = LocalEngine(tiny_model("llama"), window=192, fixed_passes=True)
    narrowed = last_layer._narrowed
    monkeypatch.setattr(last_layer, "_narrowed", lambda *given: 0 * narrowed(*given))
    whole = LocalEngine(tiny_model("llama"), window=192)
    expected, _ = complete(whole, PROMPT, 5)
    assert whole.joins_passages
    for check in ("local.has_joint_passes", "self_check.has_fixed_passes"):
        monkeypatch.setattr(f"flashback.engines.{check}", lambda *_: [][0])
    monkeypatch.setattr("flashback.engines.self_check.check_cache_reuse", lambda *_: [][0])
    other = whole.fresh(4)
    assert (other.joins_passages, other.passes.fixed) == (True, None)
    assert other.budget.limit == whole.budget.limit // 4
    assert complete(other, PROMPT, 5) == (expected, 0)
    recorded = engine.fresh(4)
    assert recorded.passes.fixed is not None
    assert not recorded.joins_passages


def test_a_sequence_whose_pass_failed_is_not_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some layers have grown by then, others not; no other completion may see it."""
    engine = LocalEngine(tiny_model("llama"), window=192)
    gives_up = engine.leases.give_up
    seen: list[tuple[bool, int]] = []

    def given_up(sequence: CachedSequence) -> None:
        gives_up(sequence)
        locked: bool = engine.passes.lock._is_owned()  # type: ignore[attr-defined]
        seen.append((locked, len(engine.leases.taken)))

    monkeypatch.setattr(engine.leases, "give_up", given_up)
    monkeypatch.setattr(engine.passes, "run", lambda *_, **__: [][0])
    with pytest.raises(IndexError):
        complete(engine, PROMPT, 2)
    assert seen[0] == (True, 0)


def test_a_last_layer_that_cannot_be_narrowed_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = complete(LocalEngine(tiny_model("llama"), window=192), PROMPT, 5)
    narrowed = last_layer._narrowed
    for spoiled in (
        lambda *given: 0 * narrowed(*given),  # the keys are right, what it gives is wrong
        lambda *_: [][0],
    ):
        monkeypatch.setattr(last_layer, "_narrowed", spoiled)
        engine = LocalEngine(tiny_model("llama"), window=192, fixed_passes=True)
        assert engine.passes.fixed is not None
        assert complete(engine, PROMPT, 5) == (expected, 0)
        assert engine.cache_use.sequences == 1


def test_a_token_holds_the_model_once(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for the prompt, once for every further token; not again inside."""
    running, held = engine.passes.running, []

    def counted() -> AbstractContextManager[None]:
        held.append(1)
        return running()

    monkeypatch.setattr(engine.passes, "running", counted)
    complete(engine, PROMPT, 5)
    assert len(held) == 5


def test_the_same_prompt_again_prefills_one_token(engine: LocalEngine) -> None:
    first, reused = complete(engine, PROMPT, 5)
    assert reused == 0
    assert complete(engine, PROMPT, 5) == (first, len(PROMPT) - 1)


def test_forgetting_starts_from_nothing(engine: LocalEngine) -> None:
    first, _ = complete(engine, PROMPT, 5)
    engine.forget()
    assert complete(engine, PROMPT, 5) == (first, 0)


def test_a_sequence_in_use_is_forked_not_cropped(engine: LocalEngine) -> None:
    """Three completions advance in turn; each gives what it gives alone."""
    prompts = [PROMPT, PROMPT[:15], (*PROMPT, 30, 31)]
    alone = []
    for prompt in prompts:
        engine.forget()
        alone.append(complete(engine, prompt, 8)[0])
    engine.forget()
    running = [iter(engine.complete(Prompt.plain(prompt), 8, greedy())) for prompt in prompts]
    together = [[next(tokens)] for tokens in running]
    for _ in range(7):
        for written, tokens in zip(together, running, strict=True):
            written.append(next(tokens))
    assert together == alone


@pytest.mark.parametrize("family", SLIDING)
def test_forks_of_sliding_windows_are_exact(family: str) -> None:
    engine = LocalEngine(tiny_model(family), window=192)
    long = tuple(range(60))
    alone = complete(engine, (*long[:50], 99), 6)[0]
    engine.forget()
    first = iter(engine.complete(Prompt.plain(long), 30, greedy()))
    next(first)
    assert complete(engine, (*long[:50], 99), 6)[0] == alone
    rest = [*first]
    engine.forget()
    assert rest == complete(engine, long, 30)[0][1:]


def test_closing_early_gives_the_cache_back_whole(engine: LocalEngine) -> None:
    expected = complete(engine, PROMPT, 10)[0]
    engine.forget()
    with engine.complete(Prompt.plain(PROMPT), 10, greedy()) as completion:
        tokens = iter(completion)
        begun = [next(tokens), next(tokens)]
    assert begun == expected[:2]
    # The last token that was given out is not in the cache yet.
    assert complete(engine, (*PROMPT, *begun), 8) == (expected[2:], len(PROMPT) + 1)


def test_a_failure_inside_a_pass_drops_the_cache(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = complete(engine, PROMPT, 5)[0]
    layer = engine.model.model.layers[1]
    monkeypatch.setattr(layer, "forward", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        complete(engine, (*PROMPT[:10], 40, 41), 5)
    monkeypatch.undo()
    assert complete(engine, PROMPT, 5) == (expected, 0)


def test_idle_caches_are_kept_up_to_the_limit() -> None:
    """Prompts in turn, with nothing in common but a beginning of text."""
    engine = LocalEngine(tiny_model("llama"), window=192, idle_sequences=2)
    first, second, third = ((0, *range(start, start + 20)) for start in (10, 60, 110))
    reused = [complete(engine, ids, 2)[1] for ids in (first, second, first, second)]
    assert reused == [0, 0, 20, 20]
    assert complete(engine, third, 2)[1] == 1  # cuts one of the two
    assert len(engine.leases.idle) == 2


@pytest.mark.parametrize("limit", range(1, 6))
def test_as_many_idle_caches_are_kept_as_was_asked_for(limit: int) -> None:
    engine = LocalEngine(tiny_model("llama"), window=192, idle_sequences=limit)
    for number in range(8):  # prompts with nothing in common
        complete(engine, tuple(range(15 * number, 15 * number + 15)), 2)
        assert len(engine.leases.idle) == min(number + 1, limit)


def test_what_does_not_fit_is_refused(engine: LocalEngine) -> None:
    with pytest.raises(SettingsError, match="exceed the window of 192"):
        engine.complete(Prompt.plain(range(190)), 3, greedy())
    with pytest.raises(SettingsError, match="0 tokens asked for"):
        engine.complete(Prompt.plain((1,)), 0, greedy())
    with pytest.raises(SettingsError, match="prompt is empty"):
        engine.complete(Prompt.plain(()), 3, greedy())
    with pytest.raises(SettingsError, match="10 slot, 180 prompt and 3 new tokens exceed"):
        engine.complete(Prompt.with_views(tuple(range(180)), (), Layout(reserved=10)), 3, greedy())


def test_a_slot_out_of_sight_is_refused() -> None:
    engine = LocalEngine(tiny_model("mistral"), window=192)
    assert not engine.capabilities.slot
    with pytest.raises(SettingsError, match="sliding-window attention in all layers"):
        engine.complete(Prompt.with_views((1,), (View(0, (2,)),), Layout(reserved=2)), 3, greedy())


def _mamba() -> PreTrainedModel:
    return MambaForCausalLM(MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2))


def _qwen3_next() -> PreTrainedModel:
    config = Qwen3NextConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        intermediate_size=32,
        num_experts=0,
    )
    return Qwen3NextForCausalLM(config)


def _bart() -> PreTrainedModel:
    config = BartConfig(vocab_size=50, d_model=16, encoder_layers=1, decoder_layers=1)
    return BartForConditionalGeneration(config)


def _llama4() -> PreTrainedModel:
    config = Llama4TextConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=32,
        intermediate_size_mlp=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=2,
        moe_layers=[],
    )
    return Llama4ForCausalLM(config)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (_mamba, "cannot be cut back"),
        (_qwen3_next, "LinearAttention"),
        (_bart, "encoder-decoder"),
        (_llama4, "chunked-attention"),
    ],
)
def test_models_whose_state_cannot_be_cut_back_are_refused(
    build: Callable[[], PreTrainedModel], reason: str
) -> None:
    with pytest.raises(UnsupportedReader, match=reason):
        LocalEngine(build(), window=100)


def test_the_self_check_refuses_a_model_whose_positions_ignore_the_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a model with wrong positions behind a cache would be: right alone, wrong when reused."""
    model = tiny_model("opt")
    plain = model.forward

    def from_zero(**inputs: object) -> object:
        positions = inputs.pop("position_ids", None)
        if isinstance(positions, torch.Tensor):
            inputs["position_ids"] = positions - positions[:, :1]
        return plain(**inputs)

    monkeypatch.setattr(model, "forward", from_zero)
    from_zero.__signature__ = inspect.signature(plain)  # type: ignore[attr-defined]
    with pytest.raises(UnsupportedReader, match="fails the self-check"):
        LocalEngine(model, window=100)


@pytest.mark.parametrize("family", ENGINE_FAMILIES)
def test_the_self_check_leaves_no_trace(family: str) -> None:
    model = tiny_model(family)
    before = copy.deepcopy(model.state_dict())
    engine = LocalEngine(model, window=tiny_config(family).hidden_size)
    assert complete(engine, PROMPT, 1)[1] == 0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_an_empty_cache_has_the_models_kinds_of_layers() -> None:
    kinds = [type(layer) for layer in new_cache(tiny_model("gemma3")).layers]
    assert kinds == [BufferedSlidingLayer, BufferedSlidingLayer, BufferedLayer]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("family", ENGINE_FAMILIES)
def test_cached_equals_recomputed_on_cuda(family: str) -> None:
    model = tiny_model(family)
    model.to(torch.device("cuda"))  # type: ignore[arg-type]
    LocalEngine(model, window=100)  # the self-check raises if not


def by_turns(engine: LocalEngine, prompts: list[tuple[int, ...]]) -> tuple[list[list[int]], int]:
    """Texts written five tokens at a time, in turns; and how many prompt tokens were reused."""
    samplers = [greedy() for _ in prompts]
    texts = [list(prompt) for prompt in prompts]
    reused = 0
    for _ in range(4):
        for text, sampler in zip(texts, samplers, strict=True):
            completion = engine.complete(Prompt.plain(text), 5, sampler)
            text.extend(completion)
            reused += completion.usage.reused
    return texts, reused


@pytest.mark.parametrize("family", ["llama", *SLIDING])
@pytest.mark.parametrize("budget", [0, 60_000, 1 << 30])
def test_texts_by_turns_are_exact_whatever_the_budget(family: str, budget: int) -> None:
    """They share a beginning, so each could be tempted to cut another's cache."""
    prompts = [(*PROMPT, 30 + number) for number in range(4)]
    engine = LocalEngine(tiny_model(family), window=192, idle_sequences=None, cache_bytes=budget)
    alone = []
    for prompt in prompts:
        engine.forget()
        alone += by_turns(engine, [prompt])[0]
    engine.forget()
    together, reused = by_turns(engine, prompts)
    assert together == alone
    count, held = engine.cache_use.sequences, engine.cache_use.sequence_bytes
    assert held <= budget
    if budget == 0:
        assert (count, reused) == (0, 0)
    if budget == 1 << 30:
        assert count == 4  # none cut another's
        # Texts of 26, 31 and 36 tokens have their last one to prefill; at first they share 20.
        assert reused == 4 * (25 + 30 + 35) + 3 * 20


def test_the_cache_used_longest_ago_goes_first() -> None:
    prompts = [(0, *range(start, start + 20)) for start in (10, 60, 110)]
    engine = LocalEngine(tiny_model("llama"), window=192, idle_sequences=None, cache_bytes=1 << 30)
    complete(engine, prompts[0], 2)
    one = engine.cache_use.sequence_bytes
    engine = LocalEngine(tiny_model("llama"), window=192, idle_sequences=None, cache_bytes=2 * one)
    engine.forget()
    for prompt in prompts:
        complete(engine, prompt, 2)
    assert engine.cache_use == CacheUse(2, 2 * one, 0)
    assert [complete(engine, prompt, 2)[1] for prompt in (prompts[2], prompts[1])] == [20, 20]
    assert complete(engine, prompts[0], 2)[1] <= 1


def test_an_unfinished_texts_cache_is_copied_and_a_finished_ones_is_taken() -> None:
    engine = LocalEngine(tiny_model("llama"), window=192, idle_sequences=None, cache_bytes=1 << 30)
    engine.forget()
    writer = greedy()
    list(engine.complete(Prompt.plain(PROMPT), 5, writer))
    assert complete(engine, PROMPT, 5)[1] == len(PROMPT) - 1
    assert engine.cache_use.sequences == 2
    del writer
    assert complete(engine, PROMPT, 5)[1] == len(PROMPT) - 1
    assert engine.cache_use.sequences == 2


@pytest.mark.parametrize("idle", [None, 1])
def test_a_text_that_shares_nothing_with_the_last_takes_over_its_buffers(idle: int | None) -> None:
    """So prepending has one cache, not two; what was in it is gone."""
    engine = LocalEngine(tiny_model("llama"), window=192, idle_sequences=idle)
    engine.forget()
    writer = greedy()
    caches = []
    for start in (10, 60, 110):
        ids = tuple(range(start, start + 40))
        text = list(engine.complete(Prompt.plain(ids), 6, writer))
        alone = LocalEngine(tiny_model("llama"), window=192)
        assert text == list(alone.complete(Prompt.plain(ids), 6, greedy()))
        caches.append(engine.leases.idle[0].cache)
    assert engine.cache_use.sequences == 1
    assert all(cache is caches[0] for cache in caches)


def test_single_tokens_at_fixed_places_are_attended_to_by_matrix_products() -> None:
    model = tiny_model("llama")
    usual = model.config._attn_implementation
    with Attention(model).for_pass(1, fixed=True):
        assert model.config._attn_implementation == "eager"
    assert model.config._attn_implementation == usual
    with Attention(model).for_pass(2, fixed=True):
        assert model.config._attn_implementation == usual


@pytest.mark.parametrize("masked", [None, "boolean", "added"])
@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_a_single_query_in_bfloat16_is_as_near_to_the_truth(
    masked: str | None, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    rows, heads, columns, size = 2, 5, 50, 8
    room = at_once * 2 * rows * columns * size * torch.float32.itemsize
    monkeypatch.setattr("flashback.engines.kernels.attention._CACHED_BYTES", room)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    counts = []

    def counted(*given: Any, **more: Any) -> Any:
        counts.append(given[1].shape[1])
        return sdpa_attention_forward(*given, **more)

    monkeypatch.setattr("flashback.engines.kernels.attention.sdpa_attention_forward", counted)
    query = torch.randn(rows, heads, 1, size).bfloat16()
    key, value = (torch.randn(rows, heads, columns, size).bfloat16() for _ in range(2))
    seen = torch.rand(rows, 1, 1, columns) < 0.7
    added = torch.zeros(seen.shape).masked_fill(~seen, -1e9)
    mask = {None: None, "boolean": seen, "added": added.bfloat16()}[masked]
    module = torch.nn.Module()
    found, _ = attend(module, query, key, value, mask, scaling=0.3)
    usual, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.3)
    expected, _ = sdpa_attention_forward(
        *(module, query.double(), key.double(), value.double()),
        *(None if masked is None else added.double(),),
        scaling=0.3,
    )
    assert found.shape == expected.shape == (rows, 1, heads, size)
    assert found.dtype is torch.bfloat16

    def error(output: Tensor) -> float:
        return float((output.double() - expected).abs().max())

    assert error(found) <= max(error(usual), 0.01)
    assert counts == {1: [1] * 5, 2: [2, 2, 1], 5: [5]}[at_once]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    if at_once < 3:  # one core would idle
        found, _ = attend(module, query, key, value, mask, scaling=0.3)
        assert torch.equal(found, usual)


def test_what_a_mask_adds_to_each_head_stays_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    query = torch.randn(1, 4, 1, 8).bfloat16()
    key, value = (torch.randn(1, 4, 30, 8).bfloat16() for _ in range(2))
    two_heads = 2 * 2 * 30 * 8 * torch.float32.itemsize
    monkeypatch.setattr("flashback.engines.kernels.attention._CACHED_BYTES", two_heads)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    module, bias = torch.nn.Module(), torch.randn(1, 4, 1, 30).bfloat16()
    ways: tuple[tuple[Tensor | None, dict[str, Any]], ...]
    ways = ((bias, {}), (None, {"position_bias": bias}))
    for mask, more in ways:
        expected, _ = sdpa_attention_forward(module, query, key, value, mask, **more)
        assert torch.equal(attend(module, query, key, value, mask, **more)[0], expected)


@pytest.mark.parametrize(("family", "wide"), [("opt", True), ("phi", True), ("qwen3", False)])
def test_single_tokens_in_bfloat16_are_attended_to_in_float32_unless_heads_share_keys(
    family: str, wide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family).bfloat16()
    engine = LocalEngine(model, window=120)
    met: list[tuple[int, torch.dtype]] = []

    def noted(module: Any, query: Tensor, *given: Any, **more: Any) -> Any:
        met.append((query.shape[-2], query.dtype))
        return sdpa_attention_forward(module, query, *given, **more)

    monkeypatch.setattr("flashback.engines.kernels.attention.sdpa_attention_forward", noted)
    text = complete(engine, PROMPT, 5)[0]
    layers = model.config.num_hidden_layers
    assert met == [(1, torch.float32 if wide else torch.bfloat16)] * layers * 4
    assert model.config._attn_implementation == "sdpa"
    monkeypatch.setattr(
        "flashback.engines.kernels.attention.Attention.for_pass", UsualAttention.for_pass
    )
    assert text == complete(LocalEngine(model, window=120), PROMPT, 5)[0]


def test_a_short_text_does_not_keep_the_buffers_of_a_long_one() -> None:
    model = tiny_model("llama")
    model.config.max_position_embeddings = 4000
    engine = LocalEngine(model, window=4000)
    engine.forget()
    list(engine.complete(Prompt.plain(tuple(range(2, 290)) * 10), 1, greedy()))
    before = engine.cache_use.sequence_bytes
    complete(engine, PROMPT, 4)
    assert engine.cache_use.sequence_bytes < before / 4
