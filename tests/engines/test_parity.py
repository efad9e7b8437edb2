"""The promise: cached generation equals full recomputation, on every family, whatever happens."""

from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig

import flashback.engines.cache.buffer as cache_module
from families import BY_COLUMN, ENGINE_FAMILIES, SLIDING
from flashback.engines.cache.sequence import CachedSequence
from flashback.engines.local import LocalEngine
from flashback.patterns.prompt import Prompt
from flashback.readers.reader import Reader
from flashback.sampling import Sampler
from flashback.settings import (
    FrameText,
    RetrievalSettings,
    SamplingSettings,
    Settings,
    StoppingSettings,
)
from flashback.writing.generator import Generator
from recompute import (
    TOLERANCE,
    cached_scores,
    check_greedy,
    common_prefix,
    largest_error,
    recomputed_logits,
)
from recorded import generate_and_record
from tiny_readers import MadeUpRetriever, tiny_reader


@pytest.fixture(autouse=True, scope="module")
def _little_room() -> Iterator[None]:
    """Cache buffers fill up all the time, so that growing and dropping are tested too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_module, "_SPARE", 4)
        yield


PAPER_PATTERNS = ("none", "prepend", "append")
"""What is in view is one sequence of tokens; for the slot see test_slot.py."""
PROMPT = st.lists(st.integers(2, 257), min_size=1, max_size=60)


@st.composite
def made_up_settings(draw: st.DrawFn) -> Settings:
    """Small strides and passages, so that a few hundred tokens hold jumps and repeats."""
    frame = draw(
        st.one_of(
            st.none(),
            st.builds(FrameText, st.just(""), st.just(""), st.integers(0, 9)),
            st.builds(FrameText, st.just("["), st.just("]"), st.integers(0, 9)),
        )
    )
    return Settings(
        RetrievalSettings(
            pattern=draw(st.sampled_from(PAPER_PATTERNS)),
            stride=draw(st.integers(1, 9)),
            query_tokens=draw(st.integers(1, 12)),
            passage_tokens=draw(st.integers(1, 24)),
            passages=draw(st.integers(1, 2)),
            frame=frame,
        ),
        stopping=StoppingSettings(max_new_tokens=draw(st.integers(1, 40)), ignore_eos=True),
        truncate=True,
    )


@cache
def shared_reader(family: str) -> Reader:
    return tiny_reader(family)


@cache
def shared_engine(family: str) -> LocalEngine:
    """One engine for all examples: what earlier ones left in its cache must not matter."""
    return LocalEngine(shared_reader(family).model, window=120)


@pytest.mark.parametrize("family", ENGINE_FAMILIES)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(prompt=PROMPT, made_up=made_up_settings(), seed=st.integers(0, 1000))
def test_cached_generation_equals_recomputation(
    family: str, prompt: list[int], made_up: Settings, seed: int
) -> None:
    reader = shared_reader(family)
    writer = Generator(reader, shared_engine(family), MadeUpRetriever(seed))
    generation, seen = generate_and_record(writer, [0, *prompt], made_up)
    assert largest_error(reader.model, generation, seen) <= TOLERANCE
    check_greedy(reader.model, generation, reader.forbidden)


@pytest.mark.parametrize("family", [*ENGINE_FAMILIES, *BY_COLUMN])
@pytest.mark.parametrize("pattern", PAPER_PATTERNS)
def test_a_long_text_with_jumps_equals_recomputation(family: str, pattern: str) -> None:
    """Contexts several times longer than any sliding window, and two jumps at least."""
    reader = shared_reader(family)
    retrieval = RetrievalSettings(pattern=pattern, stride=8, passage_tokens=16, query_tokens=8)
    made_up = Settings(retrieval, stopping=StoppingSettings(max_new_tokens=96, ignore_eos=True))
    engine = LocalEngine(reader.model, window=130)
    writer = Generator(reader, engine, MadeUpRetriever(1))
    generation, seen = generate_and_record(writer, list(range(70)), made_up)
    assert len(generation.jumps) >= 2
    found = [stride.passages for stride in generation.strides]
    if pattern != "none":
        assert () in found
        assert any(one and one == other for one, other in pairwise(found))
    assert largest_error(reader.model, generation, seen) <= TOLERANCE


@pytest.mark.parametrize("pattern", ["prepend", "append"])
def test_sampled_text_equals_recomputation(pattern: str) -> None:
    reader = shared_reader("llama")
    drawing = SamplingSettings(temperature=1.0, top_p=0.9, repetition_penalty=1.3, seed=3)
    made_up = Settings(RetrievalSettings(pattern=pattern, stride=5, passage_tokens=20), drawing)
    writer = Generator(reader, shared_engine("llama"), MadeUpRetriever(2))
    generation, seen = generate_and_record(writer, [0, 5, 6], made_up)
    assert largest_error(reader.model, generation, seen) <= TOLERANCE


@pytest.mark.parametrize("family", ENGINE_FAMILIES)
def test_keeping_a_stale_passage_is_noticed(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: a cache that is not cut back must fail the same comparison."""

    def keep_everything(sequence: CachedSequence, prompt: Prompt) -> int:
        return min(len(sequence.ids), len(prompt.ids) - 1)

    monkeypatch.setattr(CachedSequence, "common_prefix", keep_everything)
    reader = shared_reader(family)
    engine = LocalEngine(reader.model, window=180, self_check=False)
    made_up = Settings(
        RetrievalSettings("append", stride=4, passage_tokens=20),
        stopping=StoppingSettings(max_new_tokens=24, ignore_eos=True),
    )
    writer = Generator(reader, engine, MadeUpRetriever(0, empty=0, same=0))
    generation, seen = generate_and_record(writer, list(range(40)), made_up)
    assert largest_error(reader.model, generation, seen) > 100 * TOLERANCE


@pytest.mark.parametrize("family", SLIDING)
def test_a_cut_deeper_than_a_sliding_window_holds_starts_anew(family: str) -> None:
    """The deeper cut that is silently wrong on transformers' own cache."""
    reader = shared_reader(family)
    engine = LocalEngine(reader.model, window=180)
    ids = list(range(20))
    for _ in range(5):  # the text grows far beyond the window, stride by stride
        completion = engine.complete(Prompt.plain(ids), 16, Sampler(SamplingSettings(), ids))
        ids += list(completion)
    back = (*ids[:60], 99, 98)
    completion = engine.complete(Prompt.plain(back), 20, Sampler(SamplingSettings(), back))
    tokens = list(completion)
    rows = recomputed_logits(reader.model, [*back, *tokens[:-1]], 20)
    assert rows.argmax(-1).tolist() == tokens
    assert completion.usage.reused == 0


def largest_score_error(reader: Reader, ids: list[int], values: list[float]) -> float:
    """Against log-probabilities from one plain pass."""
    rows = recomputed_logits(reader.model, ids[:-1], len(values)).log_softmax(-1)
    targets = ids[len(ids) - len(values) :]
    return max(
        abs(float(row[target]) - value)
        for row, target, value in zip(rows, targets, values, strict=True)
    )


@pytest.mark.parametrize("family", ENGINE_FAMILIES)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_scores_equal_recomputation_through_any_sequence_of_cuts(
    family: str, data: st.DataObject
) -> None:
    reader, engine = shared_reader(family), shared_engine(family)
    ids = [0, *range(2, 100)]
    for _ in range(4):
        kept = data.draw(st.integers(1, len(ids) - 1), label="kept")
        more = data.draw(st.lists(st.integers(2, 257), min_size=2, max_size=40), label="more")
        ids = (ids[:kept] + more)[:120]
        start = data.draw(st.integers(1, len(ids) - 1), label="start")
        assert largest_score_error(reader, ids, cached_scores(engine, ids, start)) <= TOLERANCE


@pytest.mark.parametrize("family", ENGINE_FAMILIES)
def test_none_equals_the_models_own_generate(family: str) -> None:
    reader = shared_reader(family)
    prompt = [0, *range(10, 40)]
    made_up = Settings(
        RetrievalSettings(pattern="none", passage_tokens=16, stride=7),
        stopping=StoppingSettings(max_new_tokens=60, ignore_eos=True),
    )
    engine = LocalEngine(reader.model, window=160)
    written = Generator(reader, engine, None).generate(prompt, made_up)
    model: Any = reader.model
    unending = GenerationConfig(max_new_tokens=60, do_sample=False, pad_token_id=1)
    own = model.generate(torch.tensor([prompt]), unending, eos_token_id=None)
    assert list(written.tokens) == own[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", ENGINE_FAMILIES)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(prompt=PROMPT, made_up=made_up_settings(), seed=st.integers(0, 1000))
def test_prefilled_is_the_prompt_less_the_longest_common_prefix(
    family: str, prompt: list[int], made_up: Settings, seed: int
) -> None:
    reader = shared_reader(family)
    engine = LocalEngine(reader.model, window=120, self_check=False)
    writer = Generator(reader, engine, MadeUpRetriever(seed))
    generation = writer.generate([0, *prompt], made_up)
    cached: list[int] = []
    for stride in generation.strides:
        usage, length = stride.usage, len(stride.arranged)
        shared = min(common_prefix(cached, stride.arranged), length - 1)
        assert usage.reused + usage.prefilled == length
        if family in SLIDING:  # a cut deeper than the window starts anew
            assert usage.reused in (0, shared)
        else:
            assert usage.reused == shared
        assert usage.decoded == len(stride.tokens) - 1
        cached = [*stride.arranged, *stride.tokens[:-1]]


@pytest.mark.parametrize("family", ENGINE_FAMILIES)
def test_append_prefills_stride_passage_and_frame_whatever_the_length(family: str) -> None:
    """From the second stride on, with a changed passage and no jump; sliding windows included."""
    reader = shared_reader(family)
    engine = LocalEngine(reader.model, window=190)
    s, m = 6, 20
    made_up = Settings(
        RetrievalSettings("append", stride=s, passage_tokens=m, frame=FrameText("<<", ">>>", 0)),
        stopping=StoppingSettings(max_new_tokens=60, ignore_eos=True),
    )
    long_passages = MadeUpRetriever(5, longest=40, empty=0, same=0)
    writer = Generator(reader, engine, long_passages)
    generation = writer.generate(list(range(2, 60)), made_up)
    assert not generation.jumps
    for stride in generation.strides[1:]:
        passage = min(m, len(stride.passages[0].text))
        coincidence = 1 if stride.usage.prefilled < s + passage + 5 else 0  # first id equals "<"
        assert stride.usage.prefilled == s + passage + 5 - coincidence
