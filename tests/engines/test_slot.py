"""The slot: cached generation equals one plain pass with a block mask, whatever happens."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import flashback.engines.cache.buffer as cache_module
from families import SLOTTED
from flashback.engines.cache.sequence import CachedSequence
from flashback.engines.local import LocalEngine
from flashback.engines.protocol import Completion, Usage
from flashback.errors import SettingsError
from flashback.patterns.frame import Frame
from flashback.patterns.pattern import Boundary
from flashback.patterns.prompt import Ids, Layout, Prompt, Segment, View
from flashback.patterns.registry import PATTERNS
from flashback.readers.reader import Reader
from flashback.sampling import Sampler
from flashback.settings import (
    FrameText,
    RetrievalSettings,
    SamplingSettings,
    Settings,
    StoppingSettings,
)
from flashback.writing.generator import Generation, Generator
from on_device import RecordingEngine
from recompute import TOLERANCE, block_mask_logits
from recorded import generate_and_record
from tiny_readers import MadeUpRetriever, tiny_reader

WINDOW = 180


@pytest.fixture(autouse=True, scope="module")
def _little_room() -> Iterator[None]:
    """Cache buffers grow all the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_module, "_SPARE", 4)
        yield


@cache
def shared_reader(family: str) -> Reader:
    return tiny_reader(family)


@cache
def shared_engine(family: str, window: int = WINDOW) -> RecordingEngine:
    """One engine for all examples: what earlier ones left in its caches must not matter."""
    return RecordingEngine(shared_reader(family).model, window, cache_bytes=60_000)


def slot_settings(**more: object) -> RetrievalSettings:
    given: dict[str, object] = {"stride": 5, "passage_tokens": 12, "query_tokens": 8}
    given |= {"recompute_tokens": 16, "frame": FrameText("[", "]")}
    return RetrievalSettings(pattern="slot", **(given | more))  # type: ignore[arg-type]


@st.composite
def made_up_settings(draw: st.DrawFn) -> Settings:
    """Small strides and passages, so that a few hundred tokens hold jumps and repeats."""
    retrieval = slot_settings(
        stride=draw(st.integers(1, 9)),
        query_tokens=draw(st.integers(1, 12)),
        passage_tokens=draw(st.integers(1, 24)),
        passages=draw(st.integers(1, 2)),
        recompute_tokens=draw(st.sampled_from([1, 4, 16])),
        history_tokens=draw(st.integers(0, 40)),
        frame=draw(
            st.sampled_from(
                [FrameText("", "", 0), FrameText("[", "]", 3), FrameText("(", "", sink="ab")]
            )
        ),
    )
    stopping = StoppingSettings(max_new_tokens=draw(st.integers(1, 70)), ignore_eos=True)
    return Settings(retrieval, stopping=stopping, truncate=True)


def write(
    reader: Reader, engine: RecordingEngine, retriever: MadeUpRetriever, ids: Ids, made_up: Settings
) -> tuple[Generation, float]:
    """A generation, and the largest difference of its logits from those of the reference."""
    engine.prompts = ()
    generator = Generator(reader, engine, retriever)
    generation, seen = generate_and_record(generator, ids, made_up)
    return generation, largest_error(reader, engine.prompts, generation, seen)


@torch.inference_mode()
def largest_error(
    reader: Reader, prompts: Sequence[Prompt], generation: Generation, seen: Sequence[Tensor]
) -> float:
    rows = iter(seen)
    error = 0.0
    for prompt, stride in zip(prompts, generation.strides, strict=True):
        assert prompt.arranged == stride.arranged
        for row in block_mask_logits(reader.model, prompt, stride.tokens):
            error = max(error, float((row - next(rows)).abs().max()))
    assert next(rows, None) is None
    return error


@pytest.mark.parametrize("family", SLOTTED)
def test_cached_generation_equals_one_pass_with_a_block_mask(family: str) -> None:
    """Strides, passage lengths, repeats, empty retrievals, jumps, kept and dropped passages."""
    reader, engine = shared_reader(family), shared_engine(family, window=90)
    met: set[str] = set()

    @settings(max_examples=14, deadline=None, derandomize=True)
    @given(
        prompt=st.lists(st.integers(2, 257), min_size=1, max_size=60),
        made_up=made_up_settings(),
        seed=st.integers(0, 3),
    )
    def check(prompt: list[int], made_up: Settings, seed: int) -> None:
        generation, error = write(reader, engine, MadeUpRetriever(seed), (0, *prompt), made_up)
        assert error <= TOLERANCE
        found = [stride.passages for stride in generation.strides]
        met.update({"jump"} if generation.jumps else ())
        met.update({"empty"} if () in found else ())
        met.update({"repeat"} if any(one and one == two for one, two in pairwise(found)) else ())

    check()
    assert met == {"jump", "empty", "repeat"}


def test_the_examples_meet_kept_and_dropped_passages() -> None:
    """Or the property above would say less than it seems to."""
    engine = RecordingEngine(shared_reader("llama").model, WINDOW, cache_bytes=60_000)
    made_up = Settings(slot_settings(), stopping=StoppingSettings(200, ignore_eos=True))
    for seed in (0, 1, 0, 1):
        generation, error = write(
            shared_reader("llama"), engine, MadeUpRetriever(seed), (0, 5, 6), made_up
        )
        assert error <= TOLERANCE
        assert generation.jumps
    assert engine.passages.count.hits > 0
    assert engine.passages.count.evicted > 0
    assert engine.passages.bytes <= 60_000


def test_an_empty_cache_gives_the_same_as_a_warm_one() -> None:
    """The continuation is a function of the prompt: evicting everything changes no token."""
    reader = shared_reader("llama")
    made_up = Settings(slot_settings(), stopping=StoppingSettings(60, ignore_eos=True))

    class Forgetful(RecordingEngine):
        def complete(self, prompt: Prompt, max_tokens: int, sampler: Sampler) -> Completion:
            self.forget()
            return super().complete(prompt, max_tokens, sampler)

    warm, _ = write(reader, shared_engine("llama"), MadeUpRetriever(4), tuple(range(30)), made_up)
    cold, error = write(
        reader, Forgetful(reader.model, WINDOW), MadeUpRetriever(4), tuple(range(30)), made_up
    )
    assert cold.tokens == warm.tokens
    assert error <= TOLERANCE
    assert cold.prefilled > 4 * warm.prefilled


@pytest.mark.parametrize("again", [1, 7])
def test_a_stride_prefills_its_passage_and_a_few_tokens(again: int) -> None:
    """A passage that comes back costs nothing."""
    reader = shared_reader("opt")
    engine = RecordingEngine(reader.model, WINDOW)
    retriever = MadeUpRetriever(0, longest=8, empty=0, same=0)
    retrieval = slot_settings(recompute_tokens=again)
    made_up = Settings(retrieval, stopping=StoppingSettings(30, ignore_eos=True))
    generation, _ = write(reader, engine, retriever, tuple(range(20)), made_up)
    first, *later = generation.strides
    sink = len(reader.bos)
    assert (first.usage.prefilled, first.usage.reused) == (len(first.arranged) + sink, 0)
    for stride in later:
        passage = len(stride.passages[0].text) + 2
        assert (stride.usage.prefilled, stride.usage.decoded) == (sink + passage + again, 4)
        assert (stride.usage.sink, stride.usage.reused) == (
            sink,
            len(stride.arranged) - passage - again,
        )
    repeated, _ = write(
        reader, engine, MadeUpRetriever(0, longest=8, empty=0, same=0), tuple(range(20)), made_up
    )
    assert repeated.tokens == generation.tokens
    assert [stride.usage.prefilled for stride in repeated.strides[1:]] == [again] * 5


def test_an_unchanged_passage_stays() -> None:
    reader = shared_reader("llama")
    engine = RecordingEngine(reader.model, WINDOW, cache_bytes=0)
    retriever = MadeUpRetriever(0, empty=0, same=1)
    made_up = Settings(slot_settings(), stopping=StoppingSettings(20, ignore_eos=True))
    generation, error = write(reader, engine, retriever, (0, 7), made_up)
    assert error <= TOLERANCE
    assert [stride.usage.prefilled for stride in generation.strides[1:]] == [1, 1, 1]
    assert engine.prompts[-1].views[1:] == engine.prompts[0].views[1:]


def test_another_history_is_another_prefix() -> None:
    """A cache computed with other passages in view is kept up to where they differ, no further."""
    engine = LocalEngine(shared_reader("llama").model, WINDOW)
    context = tuple(range(30))

    def reused(*views: View) -> int:
        prompt = Prompt.with_views(context, views, Layout(1, 4, (0,)))
        completion = engine.complete(prompt, 1, Sampler(SamplingSettings(), []))
        list(completion)
        return completion.usage.reused

    reused(View(1, (7, 8)), View(20, (9,)))
    assert reused(View(1, (7, 8)), View(20, (9,))) == 29 + 1
    assert reused(View(1, (7, 8)), View(20, (5, 5))) == 20
    assert reused(View(1, (7, 8)), View(15, (9,))) == 15 + 1
    assert reused(View(1, (9,))) == 1 + 1  # the sink, and the passage
    assert reused() == 1


def test_segments_with_the_same_passage_are_one_prefix() -> None:
    engine = LocalEngine(shared_reader("llama").model, WINDOW)
    layout = Layout(0, 4)
    halves = Segment(tuple(range(10)), 0, (7, 8)), Segment(tuple(range(10, 30)), 10, (7, 8))
    whole = Prompt.with_views(tuple(range(30)), (View(0, (7, 8)),), layout)
    tokens, reused = [], []
    for prompt in (Prompt(halves, layout), whole):
        for _ in range(2):
            completion = engine.complete(prompt, 3, Sampler(SamplingSettings(), []))
            tokens.append(list(completion))
            reused.append(completion.usage.reused)
    assert reused == [0, 29 + 2, 29 + 2, 29 + 2]
    assert tokens == [tokens[0]] * 4


@pytest.mark.parametrize(
    ("segments", "why"),
    [
        ((Segment((1,), 0), Segment((3,), 3)), "starts at 3; expected 1"),
        ((Segment((1, 2), 4),), "starts at 4; expected 0"),
        ((Segment((1,), 0), Segment((2, 3), 1, (1, 2, 3, 4, 5))), "longer than R"),
        ((Segment((1,), 0, (1, 2)), Segment((2, 3), 1)), "in view before it stands"),
        ((Segment((1, 2), 0),), "before and behind the reserved positions"),
    ],
)
def test_a_prompt_has_no_gaps_and_no_passage_beyond_its_positions(
    segments: tuple[Segment, ...], why: str
) -> None:
    with pytest.raises(AssertionError, match=why):
        Prompt(segments, Layout(1, 4, (0,)))


@pytest.mark.parametrize("family", SLOTTED)
def test_a_stale_passage_is_noticed(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: a slot that is not exchanged must fail the same comparison."""
    prefill = RecordingEngine._prefill

    def prefill_behind_the_first(
        engine: LocalEngine, sequence: CachedSequence, segment: Segment, usage: Usage
    ) -> Tensor:
        stale = replace(segment, passage=sequence.passage or segment.passage)
        return prefill(engine, sequence, stale, usage)

    monkeypatch.setattr(RecordingEngine, "_prefill", prefill_behind_the_first)
    reader = shared_reader(family)
    engine = RecordingEngine(reader.model, WINDOW, self_check=False)
    made_up = Settings(slot_settings(), stopping=StoppingSettings(20, ignore_eos=True))
    _, error = write(reader, engine, MadeUpRetriever(0, empty=0, same=0), (0, 9, 8), made_up)
    assert error > 100 * TOLERANCE


def test_exchanging_a_passage() -> None:
    def shown(passage: Ids, length: int, before: Prompt | None = None) -> Prompt:
        frame = Frame(sink=(0,))
        boundary = Boundary(
            tuple(range(length)), passage, frame, 1, 4, 3, recomputed=5, before=before
        )
        return PATTERNS["slot"].arrange(boundary)

    first = shown((1, 2), 10)
    assert first.views == (View(0, ()), View(3, (1, 2)))
    assert shown((1, 2), 14, first).views == first.views
    exchanged = shown((3,), 14, first)
    assert exchanged.views == (View(0, ()), View(3, (1, 2)), View(9, (3,)))
    assert [exchanged.layout.position(one.start) for one in exchanged.segments] == [0, 5, 11]
    assert exchanged.arranged == (0, 1, 2, 3, *range(3, 14))
    assert shown((), 14, first).passage == ()
    # A longer one needs more positions: all behind the history is computed again.
    grown = shown((7, 8, 9), 14, exchanged)
    assert grown.views == (View(0, ()), View(3, (7, 8, 9)))
    assert [one.layout.reserved for one in (first, exchanged, grown)] == [2, 2, 3]
    assert shown((1, 2), 16, grown).layout.reserved == 3
    assert shown((3,), 6, first).views == (View(0, ()), View(3, (3,)))  # all behind the history
    with pytest.raises(SettingsError, match="passage of 5 tokens"):
        shown((1, 2, 3, 4, 5), 14, first)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(length=st.integers(1, 40), start=st.integers(0, 39), seed=st.integers(0, 99))
def test_segments_tile_the_context(length: int, start: int, seed: int) -> None:
    draw = random.Random(seed)
    history = draw.randrange(length)
    starts = sorted({history, *draw.sample(range(length), draw.randrange(min(length, 5)))})
    starts = [at for at in starts if at >= history]
    views = tuple(View(at, (at,)) for at in starts)
    prompt = Prompt.with_views(tuple(range(length)), views, Layout(history, 3))
    segments = list(prompt.after(min(start, length - 1)))
    assert [token for one in segments for token in one.ids] == list(
        range(min(start, length - 1), length)
    )
    for one in segments:
        assert one.start == one.ids[0]
        for token in one.ids:
            assert prompt.layout.position(token) == token + (3 if token >= history else 0)
            seen = [at for at in starts if at <= token]
            assert one.passage == ((max(seen),) if seen else ())


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("mistral", "mistral has sliding-window attention in all layers, which lose sight of"),
        ("gpt_neo", "gpt_neo measures sliding-window attention in columns of its cache"),
    ],
)
def test_a_reader_says_why_it_has_no_slot(family: str, reason: str) -> None:
    reader = tiny_reader(family)
    writer = Generator(reader, LocalEngine(reader.model, WINDOW), MadeUpRetriever())
    with pytest.raises(SettingsError, match=reason):
        writer.stream([0, 5], Settings(slot_settings()))
