"""Texts written together are what each would be alone, whatever happens to their neighbours."""

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import families
import flashback.engines.cache.buffer as cache_module
from families import ENGINE_FAMILIES, SLIDING, tiny_model
from flashback.engines.batch import BatchRow, LocalBatch, together
from flashback.engines.local import LocalEngine
from flashback.engines.protocol import Capabilities, Completion, Request
from flashback.errors import FlashBackWarning, SettingsError
from flashback.patterns.prompt import Layout, Prompt, View
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
from recompute import TOLERANCE, check_greedy, largest_error
from recorded import PassagesByQuery, write_recorded
from tiny_readers import tiny_reader

TOGETHER = tuple(family for family in ENGINE_FAMILIES if family != "bloom")
"""ALiBi's biases are made from a mask of one kind only: Bloom's rows are written one by one."""
SLOTTED = tuple(family for family in TOGETHER if family in families.SLOTTED)


@pytest.fixture(autouse=True, scope="module")
def _little_room() -> Iterator[None]:
    """Buffers grow all the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_module, "_SPARE", 4)
        yield


@cache
def shared_reader(family: str) -> Reader:
    return tiny_reader(family)


@cache
def shared_engine(family: str) -> LocalEngine:
    return LocalEngine(shared_reader(family).model, window=120)


@st.composite
def made_up_settings(draw: st.DrawFn, patterns: Sequence[str]) -> Settings:
    """Small strides and windows: jumps, repeats and texts that end early."""
    frames = st.builds(FrameText, st.just("["), st.just("]"), st.integers(0, 9))
    return Settings(
        RetrievalSettings(
            pattern=draw(st.sampled_from(patterns)),
            stride=draw(st.integers(1, 9)),
            query_tokens=draw(st.integers(1, 12)),
            passage_tokens=draw(st.integers(1, 24)),
            passages=draw(st.integers(1, 2)),
            frame=draw(st.one_of(st.none(), frames)),
        ),
        SamplingSettings(
            temperature=draw(st.sampled_from([0.0, 1.0])),
            repetition_penalty=draw(st.sampled_from([1.0, 1.2])),
        ),
        StoppingSettings(max_new_tokens=draw(st.integers(1, 40)), stop=("e", "\n")),
        truncate=True,
    )


SMALL = Settings(RetrievalSettings("append", passage_tokens=20))
PROMPTS = st.lists(st.lists(st.integers(2, 257), min_size=1, max_size=60), min_size=2, max_size=5)
PAPER_PATTERNS = ("none", "prepend", "append")


@pytest.mark.parametrize("family", TOGETHER)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(prompts=PROMPTS, made_up=made_up_settings(PAPER_PATTERNS), rows=st.integers(2, 4))
def test_a_batch_equals_recomputation(
    family: str, prompts: list[list[int]], made_up: Settings, rows: int
) -> None:
    """More texts than rows, of different lengths, some of which stop early or jump."""
    reader = shared_reader(family)
    writer = Generator(reader, shared_engine(family), PassagesByQuery())
    texts, seen = write_recorded(writer, [[0, *ids] for ids in prompts], made_up, rows)
    for text, logits in zip(texts, seen, strict=True):
        assert largest_error(reader.model, text, logits) <= TOLERANCE
        if made_up.sampling == SamplingSettings():
            check_greedy(reader.model, text, reader.forbidden)


@pytest.mark.parametrize(
    ("family", "pattern"),
    [
        *((family, "append") for family in TOGETHER),
        *product(("llama", "gemma3"), ("none", "prepend")),  # without windows and with
    ],
)
def test_long_texts_with_jumps_are_those_of_one_by_one(family: str, pattern: str) -> None:
    """Beyond any sliding window; rows jump at different times and end at different strides."""
    made_up = Settings(
        RetrievalSettings(pattern=pattern, stride=8, passage_tokens=16, query_tokens=8),
        stopping=StoppingSettings(max_new_tokens=72, ignore_eos=True),
    )
    prompts = [
        [0, *range(at, at + n)] for at, n in ((10, 40), (60, 3), (65, 70), (140, 21), (2, 66))
    ]
    reader = shared_reader(family)
    writer = Generator(reader, LocalEngine(reader.model, window=138), PassagesByQuery())
    together = writer.generate_batch(prompts, made_up, batch_size=3)
    assert sum(len(text.jumps) for text in together) >= 3
    for at, (prompt, text) in enumerate(zip(prompts, together, strict=True)):
        writer.engine.forget()  # type: ignore[attr-defined]
        alone = writer.generate(prompt, made_up)
        assert text.tokens == alone.tokens
        assert text.jumps == alone.jumps
        assert [one.passages for one in text.strides] == [one.passages for one in alone.strides]
        # Prepended passages may be found in a neighbour's row; a single sequence of sliding-window
        # layers sometimes starts anew, where a batch does not; and a text beyond the first three
        # begins in the row of one that ended, and may share its first token.
        if pattern != "prepend" and family not in SLIDING:
            own, expected = text.strides[at >= 3 :], alone.strides[at >= 3 :]
            assert [one.usage.reused for one in own] == [one.usage.reused for one in expected]
            assert text.strides[0].usage.reused <= (at >= 3)


@pytest.mark.parametrize("family", SLOTTED)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(prompts=PROMPTS, made_up=made_up_settings(("slot",)), rows=st.integers(2, 3))
def test_slots_in_a_batch_are_those_of_one_by_one(
    family: str, prompts: list[list[int]], made_up: Settings, rows: int
) -> None:
    writer = Generator(shared_reader(family), shared_engine(family), PassagesByQuery())
    prompts = [[0, *ids] for ids in prompts]
    together, logits = write_recorded(writer, prompts, made_up, rows)
    alone, expected = write_recorded(writer, prompts, made_up, 1)
    assert [text.tokens for text in together] == [text.tokens for text in alone]
    for seen, wanted in zip(logits, expected, strict=True):
        assert torch.allclose(torch.stack(seen), torch.stack(wanted), atol=TOLERANCE)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_columns_are_placed_only_where_there_is_a_window(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    placed = BatchRow.column_positions

    def counted(self: BatchRow, end: int, device: torch.device) -> Tensor:
        calls.append(end)
        return placed(self, end, device)

    monkeypatch.setattr(BatchRow, "column_positions", counted)
    writer = Generator(shared_reader(family), shared_engine(family), PassagesByQuery())
    writer.generate_batch([[0, 5, 6], [0, 7]], SMALL)
    assert bool(calls) == (family in SLIDING)


def test_samples_do_not_depend_on_the_batch() -> None:
    reader = shared_reader("llama")
    writer = Generator(reader, shared_engine("llama"), PassagesByQuery())
    made_up = Settings(
        RetrievalSettings("append", stride=5, passage_tokens=20),
        SamplingSettings(temperature=1.0, top_p=0.9, repetition_penalty=1.3, seed=3),
        StoppingSettings(max_new_tokens=30, ignore_eos=True),
    )
    prompts = ["one", "another one", "three", "and a much longer one than those before"]
    alone = [writer.generate(prompt, made_up).tokens for prompt in prompts]
    for rows in (2, 3, 4):
        batch = writer.generate_batch(prompts, made_up, batch_size=rows)
        assert [text.tokens for text in batch] == alone


def test_one_search_serves_the_whole_batch() -> None:
    retriever = PassagesByQuery()
    writer = Generator(shared_reader("llama"), shared_engine("llama"), retriever)
    made_up = Settings(
        RetrievalSettings("append", stride=4, passage_tokens=20),
        stopping=StoppingSettings(12, (), True),
    )
    writer.generate_batch([[5, 6], [7], [8, 9]], made_up, batch_size=3)
    assert retriever.asked == [3, 3, 3]


def test_a_text_that_ends_makes_room_for_the_next() -> None:
    """Five texts of two strides on two rows: three rounds of two strides, never a row idle."""
    retriever = PassagesByQuery()
    writer = Generator(shared_reader("opt"), shared_engine("opt"), retriever)
    made_up = Settings(
        RetrievalSettings("append", stride=4, passage_tokens=20),
        stopping=StoppingSettings(8, (), True),
    )
    finished = writer.stream_batch([[n] for n in range(5, 10)], made_up, batch_size=2)
    assert [number for number, _ in finished] == [0, 1, 2, 3, 4]
    assert retriever.asked == [2, 2, 2, 2, 1, 1]


def test_the_texts_share_the_time_they_took() -> None:
    writer = Generator(shared_reader("opt"), shared_engine("opt"), PassagesByQuery())
    texts = writer.generate_batch([[5], [6, 7]], SMALL, batch_size=2)
    for text in texts:
        own = sum(one.usage.prefill_seconds + one.usage.decode_seconds for one in text.strides)
        assert 0 < own <= text.seconds


def test_no_prompts_give_no_texts() -> None:
    writer = Generator(shared_reader("opt"), shared_engine("opt"), PassagesByQuery())
    assert writer.generate_batch([], SMALL) == []


def test_a_bad_prompt_is_refused_when_its_turn_comes() -> None:
    writer = Generator(shared_reader("opt"), shared_engine("opt"), PassagesByQuery())
    finished = writer.stream_batch([[5], [6], []], SMALL, batch_size=2)
    assert [next(finished)[0], next(finished)[0]] == [0, 1]
    with pytest.raises(SettingsError, match="prompt is empty"):
        next(finished)


@pytest.mark.parametrize(("family", "why"), [("bloom", "cannot"), ("gpt_neo", "measures its")])
def test_a_family_that_cannot_be_batched_says_so_and_is_written_one_by_one(
    family: str, why: str
) -> None:
    reader = shared_reader(family)
    writer = Generator(reader, shared_engine(family), PassagesByQuery())
    with pytest.warns(FlashBackWarning, match=rf"{family}\)? {why} .* are written one by one"):
        texts = writer.generate_batch([[5, 6], [7]], SMALL)
    assert [text.tokens for text in texts] == [
        writer.generate(ids, SMALL).tokens for ids in ([5, 6], [7])
    ]


class OneAtATime:
    """An engine of the plain protocol."""

    def __init__(self, engine: LocalEngine) -> None:
        self._engine = engine
        self.capabilities: Capabilities = engine.capabilities

    def complete(self, prompt: Prompt, max_tokens: int, sampler: Sampler) -> Completion:
        return self._engine.complete(prompt, max_tokens, sampler)


def test_an_engine_without_batches_writes_one_by_one() -> None:
    writer = Generator(shared_reader("opt"), OneAtATime(shared_engine("opt")), PassagesByQuery())
    with pytest.warns(FlashBackWarning, match="one text at a time"):
        assert len(writer.generate_batch([[5, 6], [7]], SMALL)) == 2


def test_the_self_check_refuses_a_model_that_ignores_the_mask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = LocalEngine(tiny_model("llama"), window=100)
    plain = engine.passes.run

    def unmasked(*arguments: object, **more: object) -> Tensor:
        more.pop("attention_mask", None)
        return plain(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(engine.passes, "run", unmasked)
    writer = Generator(shared_reader("llama"), engine, None)
    none = Settings(RetrievalSettings("none", passage_tokens=8))
    with pytest.warns(FlashBackWarning, match="fails the self-check"):
        assert len(writer.generate_batch([[5, 6], [7]], none)) == 2


def requests_for(prompts: Sequence[Sequence[int]], count: int) -> list[Request]:
    return [Request(Prompt.plain(ids), count, Sampler(SamplingSettings(), ids)) for ids in prompts]


def completed(batch: LocalBatch, prompts: Sequence[Sequence[int]], count: int) -> list[Request]:
    requests = requests_for(prompts, count)
    for _ in batch.complete(requests):
        pass
    return requests


def test_rows_are_found_again_in_any_order_and_keep_what_is_shared() -> None:
    batch = LocalEngine(tiny_model("llama"), window=100).batch(3)
    prompts = [[0, *range(start, start + 20)] for start in (10, 60, 110)]
    completed(batch, prompts, 4)
    longer = [[*ids, 200, 201] for ids in prompts]
    again = completed(batch, [longer[2], longer[0]], 4)  # the middle one is gone
    assert [request.usage.reused for request in again] == [21, 21]
    assert [request.usage.reused for request in completed(batch, longer, 4)] == [22, 0, 22]


@pytest.mark.parametrize("ended", range(3))
def test_a_text_that_ends_is_still_held_for_the_next(ended: int) -> None:
    batch = LocalEngine(tiny_model("llama"), window=100).batch(3)
    prompts = [[0, *range(start, start + n)] for start, n in ((10, 20), (60, 33), (110, 9))]
    requests = requests_for(prompts, 6)
    for _ in batch.complete(requests):
        requests[ended].closed = True
    longer = [
        [*ids, *request.sampler.history[len(ids) :], 200]
        for ids, request in zip(prompts, requests, strict=True)
    ]
    again = completed(batch, longer, 4)
    # The token that a text ended with was chosen, and never computed.
    reused = [len(ids) + (0 if at == ended else 5) for at, ids in enumerate(prompts)]
    assert [one.usage.reused for one in again] == reused
    alone = [
        completed(LocalEngine(tiny_model("llama"), window=100).batch(3), [ids], 4) for ids in longer
    ]
    assert [one.sampler.history for one in again] == [one.sampler.history for (one,) in alone]


def test_rows_that_were_exchanged_in_some_layers_are_not_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = LocalEngine(tiny_model("llama"), window=100).batch(2)
    prompts = [list(range(20)), list(range(30, 39))]
    expected = [request.sampler.history for request in completed(batch, prompts, 6)]
    with monkeypatch.context() as patch:
        patch.setattr(batch._layers[1], "swap", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            completed(batch, prompts[1:], 6)
    again = completed(batch, prompts, 6)
    assert [one.usage.reused for one in again] == [0, 0]
    assert [one.sampler.history for one in again] == expected


def test_a_failure_inside_a_pass_leaves_the_rows_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = LocalEngine(tiny_model("llama"), window=100)
    batch = engine.batch(2)
    prompts = [list(range(20)), list(range(30, 35))]
    expected = [request.sampler.history for request in completed(batch, prompts, 6)]
    layer = engine.model.model.layers[1]
    monkeypatch.setattr(layer, "forward", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        completed(batch, [ids[:3] for ids in prompts], 6)
    monkeypatch.undo()
    assert [one.sampler.history for one in completed(batch, prompts, 6)] == expected


def test_a_passage_whose_pass_failed_is_not_in_view(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = LocalEngine(tiny_model("llama"), window=100, cache_bytes=0)
    batch = engine.batch(2)
    context = tuple(range(20))
    first = Prompt.with_views(context, (View(1, (30, 31)),), Layout(1, 4, (0,)))
    second = Prompt.with_views(
        (*context, 40), (View(1, (30, 31)), View(20, (50, 51, 52))), Layout(1, 4, (0,))
    )
    batch.logits([first])
    with monkeypatch.context() as patch:
        patch.setattr(engine.passes, "run", lambda *_, **__: [][0])
        with pytest.raises(IndexError):
            batch.logits([second])
    expected = engine.batch(2).logits([second])
    torch.testing.assert_close(batch.logits([second]), expected, atol=TOLERANCE, rtol=0)


def test_what_does_not_fit_is_refused() -> None:
    batch = LocalEngine(tiny_model("llama"), window=100).batch(2)
    with pytest.raises(SettingsError, match="exceed the window of 100"):
        completed(batch, [[5], list(range(99))], 2)


@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=12))
def test_rows_that_share_a_pass_have_little_padding(lengths: list[int]) -> None:
    groups = together(lengths)
    assert sorted(at for group in groups for at in group) == list(range(len(lengths)))
    for group in groups:
        longest = max(lengths[at] for at in group)
        assert all(4 * lengths[at] >= 3 * longest for at in group)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("family", TOGETHER)
def test_a_batch_is_exact_on_cuda(family: str) -> None:
    model = tiny_model(family)
    model.to(torch.device("cuda"))  # type: ignore[arg-type]
    LocalEngine(model, window=100).batch(2)  # the self-check raises if not


def test_one_text_is_no_list_of_prompts() -> None:
    writer = Generator(tiny_reader(), LocalEngine(tiny_model("llama"), window=192), None)
    for write in (writer.generate_batch, writer.stream_batch):
        with pytest.raises(SettingsError, match="expected several texts, found one"):
            write("The json")
