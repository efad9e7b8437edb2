"""The slot of a server with the connector: its texts are those of our engine, whatever it lost."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_vllm import MODEL, FakeVllm, fake_vllm, saved_tokenizer
from flashback.engines.local import LocalEngine
from flashback.engines.openai import OpenAIEngine
from flashback.engines.openai_settings import RemoteSettings
from flashback.engines.openai_slot import RemoteSlot
from flashback.engines.openai_wire import Wire
from flashback.engines.protocol import Request
from flashback.errors import EngineError, SettingsError
from flashback.loading import load
from flashback.patterns.prompt import Layout, Prompt, View
from flashback.readers.text_reader import TextReader
from flashback.sampling import Sampler
from flashback.settings import RetrievalSettings, SamplingSettings, Settings, StoppingSettings
from flashback.writing.generator import Generator
from servers import chat_reader
from tiny_readers import MadeUpRetriever

PROMPT = "The tides of the sea follow the moon"
BLOCK, PASSAGES = 4, 64


@pytest.fixture(scope="module")
def served() -> Iterator[FakeVllm]:
    with fake_vllm(chat_reader()) as fake:
        fake.block, fake.passages = BLOCK, PASSAGES
        yield fake


@pytest.fixture
def fake(served: FakeVllm) -> FakeVllm:
    served.forget()
    served.passages = PASSAGES
    served.requests.clear()
    return served


def engine_of(fake: FakeVllm) -> OpenAIEngine:
    wire = Wire(RemoteSettings(base_url=fake.url))
    slot = RemoteSlot(wire, MODEL, fake.block, PASSAGES)
    return OpenAIEngine(wire, MODEL, fake.reader.window, slot)


def writers(fake: FakeVllm, seed: int = 0) -> tuple[Generator, Generator]:
    """Through the wire, and in this process with the same blocks."""
    local = LocalEngine(fake.reader.model, fake.reader.window)
    local.capabilities = replace(local.capabilities, block=fake.block)
    tokenizer = fake.reader.tokenizer
    reader = TextReader(name="tiny", tokenizer=tokenizer, window=192, window_reason="a test")
    return (
        Generator(reader, engine_of(fake), MadeUpRetriever(seed)),
        Generator(fake.reader, local, MadeUpRetriever(seed)),
    )


def own(tokens: int = 20, *, stride: int = 5, e: int = 6, **more: Any) -> Settings:
    retrieval = RetrievalSettings(
        "slot", stride=stride, query_tokens=8, passage_tokens=24, recompute_tokens=e
    )
    made = Settings(retrieval, stopping=StoppingSettings(tokens, ignore_eos=True))
    return replace(made, **more)


LOSSES: dict[str, Callable[[FakeVllm], None]] = {
    "nothing": lambda _: None,
    "all": FakeVllm.forget,
    "texts": lambda fake: fake.forget(passages=False),
    "passages": lambda fake: fake.forget(texts=False),
    "tails": lambda fake: fake.lose_behind(48),
}


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 99),
    size=st.integers(1, 60),
    stride=st.integers(1, 9),
    e=st.integers(1, 30),
    lost=st.sampled_from(sorted(LOSSES)),
)
def test_greedy_texts_are_those_of_our_own_engine(
    served: FakeVllm, seed: int, size: int, stride: int, e: int, lost: str
) -> None:
    served.passages = PASSAGES
    theirs, ours = writers(served, seed)
    prompt = (PROMPT * 3)[:size]
    for again in (own(stride=stride, e=e), own(stride=stride + 1, e=e + 9), own(stride=stride)):
        found = theirs.stream(prompt, again)
        for number, _ in enumerate(found):
            if number == 2 * stride:
                LOSSES[lost](served)
        assert found.result.tokens == ours.generate(prompt, again).tokens


def test_a_text_written_again_does_not_see_what_another_time_left(fake: FakeVllm) -> None:
    engine, local = engine_of(fake), LocalEngine(fake.reader.model, fake.reader.window)
    first, second = tuple(range(60, 68)), tuple(range(70, 78))
    ids = tuple(range(20, 34))
    layout = Layout(0, 8)

    def written(text: tuple[int, ...], *views: View) -> list[int]:
        prompt = Prompt.with_views(text, views, layout)
        found = list(engine.complete(prompt, 8, Sampler(SamplingSettings(), text)))
        assert found == list(local.complete(prompt, 8, Sampler(SamplingSettings(), text)))
        return found

    begun = (*ids, *written(ids, View(0, first)))
    written(begun, View(0, first), View(12, second))
    written(ids, View(0, first))
    written(begun, View(0, first))


def test_a_text_is_found_again_and_only_e_tokens_and_a_new_passage_are_computed(
    fake: FakeVllm,
) -> None:
    found = writers(fake)[0].generate(PROMPT, own(40))
    room = len(found.strides[0].arranged) - len(found.prompt_tokens)
    for before, stride in zip(found.strides, found.strides[1:], strict=False):
        new = room if stride.passages != before.passages else 0
        assert stride.usage.prefilled - new <= 6 + BLOCK + 5
        usage = stride.usage
        assert usage.reused + usage.prefilled - usage.sink == len(stride.arranged)


def test_a_passage_that_is_kept_is_not_computed_again(fake: FakeVllm) -> None:
    engine = engine_of(fake)
    passages = [tuple(range(60, 68)), tuple(range(70, 78)), tuple(range(60, 68))]
    computed = []
    for number, passage in enumerate(passages):
        ids = tuple(range(20 + number, 40))
        fake.requests.clear()
        prompt = Prompt.with_views(ids, [View(0, passage)], Layout(0, 8))
        list(engine.complete(prompt, 2, Sampler(SamplingSettings(), ids)))
        asked = [one["kv_transfer_params"]["flashback"] for one in fake.requests]
        computed.append(sum("keep" in one for one in asked))
    assert computed == [1, 1, 0]


def test_what_the_server_lost_is_computed_in_the_prompts_own_order(fake: FakeVllm) -> None:
    engine = engine_of(fake)
    ids = tuple(range(20, 50))
    first, second = tuple(range(60, 68)), tuple(range(70, 78))
    prompt = Prompt.with_views(ids, [View(0, first), View(16, second)], Layout(0, 8))
    local = LocalEngine(fake.reader.model, fake.reader.window)
    expected = list(local.complete(prompt, 4, Sampler(SamplingSettings(), ids)))
    for _ in range(2):
        assert list(engine.complete(prompt, 4, Sampler(SamplingSettings(), ids))) == expected
        fake.forget()
    other = Prompt.with_views(ids, [View(0, first)], Layout(0, 8))
    assert list(local.complete(other, 4, Sampler(SamplingSettings(), ids))) == list(
        engine.complete(other, 4, Sampler(SamplingSettings(), ids))
    )


def test_a_server_that_keeps_failing_is_asked_twice(fake: FakeVllm) -> None:
    theirs, _ = writers(fake)
    theirs.retriever = MadeUpRetriever(empty=0.0)
    writing = iter(theirs.stream(PROMPT, own(10, stride=5)))
    for _ in range(6):
        next(writing)
    fake.requests.clear()
    fake.replies.extend([(500, b"{}", {})] * 4)
    with pytest.raises(EngineError, match=r"\(status 500\)"):
        list(writing)
    fake.replies.clear()
    assert len(fake.requests) == 2


def test_passages_in_use_at_a_time_are_as_many_as_the_server_keeps(fake: FakeVllm) -> None:
    fake.passages = 8  # of blocks: two passages of four
    wire = Wire(RemoteSettings(base_url=fake.url))
    slot = RemoteSlot(wire, MODEL, fake.block, fake.passages)
    engine = OpenAIEngine(wire, MODEL, fake.reader.window, slot)
    local = LocalEngine(fake.reader.model, fake.reader.window)
    ids, layout = tuple(range(20, 40)), Layout(0, 16)
    prompts = [
        Prompt.with_views(ids, [View(0, tuple(range(start, start + 16)))], layout)
        for start in range(40, 50)
    ]
    requests = [Request(one, 4, Sampler(SamplingSettings(), ids)) for one in prompts]
    found: dict[int, list[int]] = {number: [] for number in range(len(prompts))}
    for tokens in engine.batch(len(prompts)).complete(requests):
        for number, token in tokens:
            found[number].append(token)
    for number, prompt in enumerate(prompts):
        expected = list(local.complete(prompt, 4, Sampler(SamplingSettings(), ids)))
        assert found[number] == expected


def test_a_stop_text_leaves_no_counts(fake: FakeVllm) -> None:
    theirs, _ = writers(fake)
    text = theirs.generate(PROMPT, own(20)).text
    theirs.retriever = MadeUpRetriever(0)
    stopped = own(20, stopping=StoppingSettings(20, ignore_eos=True, stop=(text[2:4],)))
    usage = theirs.generate(PROMPT, stopped).strides[-1].usage
    assert (usage.reused, usage.prefilled, usage.sink) == (0, 0, 0)


def test_salts_keep_passages_apart(fake: FakeVllm) -> None:
    theirs, _ = writers(fake)
    theirs.retriever = MadeUpRetriever(empty=0.0)
    for salt in ("a", "b"):
        theirs.generate(PROMPT, own(5, cache_salt=salt))
    kept = {salt for salt, _ in fake.kept}
    assert kept == {"a", "b"}


def test_texts_that_end_early_are_not_held(fake: FakeVllm) -> None:
    theirs, ours = writers(fake)
    writing = theirs.stream(PROMPT, own(20))
    for _ in range(9):  # into the second stride
        next(iter(writing))
    writing.close()
    theirs.retriever = MadeUpRetriever(1)
    ours.retriever = MadeUpRetriever(1)
    assert theirs.generate(PROMPT, own(20)).tokens == ours.generate(PROMPT, own(20)).tokens


def test_a_slot_that_is_not_in_blocks_in_front_is_one_line(fake: FakeVllm) -> None:
    engine = engine_of(fake)
    ids = tuple(range(20, 40))
    layouts = [
        (Layout(0, 6), tuple(range(6))),
        (Layout(0, 8), tuple(range(6))),
        (Layout(4, 8), tuple(range(8))),
    ]
    for layout, passage in layouts:
        prompt = Prompt.with_views(ids, [View(layout.history, passage)], layout)
        with pytest.raises(SettingsError, match="in front of a text, and in whole blocks of 4"):
            engine.complete(prompt, 2, Sampler(SamplingSettings(), ids))
    large = Prompt.with_views(ids, [View(0, (5,) * 400)], Layout(0, 400))
    with pytest.raises(SettingsError, match="the server keeps 256 of passages; raise"):
        engine.complete(large, 2, Sampler(SamplingSettings(), ids))


def test_the_probe_finds_the_connector(fake: FakeVllm, tmp_path: Path) -> None:
    remote = RemoteSettings(fake.url, saved_tokenizer(fake.reader, tmp_path))
    writer = load(MODEL, engine="openai", remote=remote, retriever=MadeUpRetriever(0))
    assert writer.engine.capabilities.slot
    assert writer.engine.capabilities.block == BLOCK
    with pytest.warns(match="has a slot in front of texts only"):
        assert writer.settled(Settings()).retrieval.pattern == "prepend"
    fake.passages = 0
    other = load(MODEL, engine="openai", remote=remote, retriever=MadeUpRetriever(0))
    assert not other.engine.capabilities.slot


def test_a_chat_with_a_slot_is_refused_in_one_line(fake: FakeVllm, tmp_path: Path) -> None:
    remote = RemoteSettings(fake.url, saved_tokenizer(fake.reader, tmp_path))
    writer = load(MODEL, engine="openai", remote=remote, retriever=MadeUpRetriever(0))
    messages = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Who follows the moon?"},
    ]
    with pytest.raises(SettingsError, match="in front of a text only, not in a chat"):
        writer.chat(messages, own())
