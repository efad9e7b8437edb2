"""The engine `openai`: what it writes is what the server's model writes, token by token."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flashback
from command_line import refused, run
from fake_vllm import MODEL, FakeVllm, fake_vllm, saved_tokenizer, until_left
from flashback.engines.local import LocalEngine
from flashback.engines.openai import OpenAIEngine
from flashback.engines.openai_body import seed_of
from flashback.engines.openai_settings import RemoteSettings
from flashback.engines.openai_wire import Wire
from flashback.engines.protocol import BatchingEngine, CachingEngine, Request
from flashback.errors import FlashBackWarning, SettingsError
from flashback.patterns.prompt import Prompt
from flashback.readers.text_reader import TextReader
from flashback.sampling import Sampler
from flashback.settings import RetrievalSettings, SamplingSettings, Settings, StoppingSettings
from flashback.writing.generator import Generation, Generator, StrideStart, TextPiece
from servers import chat_reader
from tiny_readers import MadeUpRetriever

PROMPT = "The tides of the sea follow the moon"


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeVllm]:
    with fake_vllm(chat_reader(marks=True)) as served:
        yield served


def text_reader(fake: FakeVllm) -> TextReader:
    tokenizer = fake.reader.tokenizer
    return TextReader(name="tiny", tokenizer=tokenizer, window=192, window_reason="a test")


def engine_of(fake: FakeVllm) -> OpenAIEngine:
    return OpenAIEngine(Wire(RemoteSettings(base_url=fake.url)), MODEL, fake.reader.window)


def writers(fake: FakeVllm, seed: int = 0) -> tuple[Generator, Generator]:
    """Through the wire, and in this process."""
    local = LocalEngine(fake.reader.model, fake.reader.window)
    return (
        Generator(text_reader(fake), engine_of(fake), MadeUpRetriever(seed)),
        Generator(fake.reader, local, MadeUpRetriever(seed)),
    )


def own(pattern: str = "append", tokens: int = 20, **more: Any) -> Settings:
    retrieval = RetrievalSettings(pattern, stride=5, query_tokens=8, passage_tokens=24)
    made = Settings(retrieval, stopping=StoppingSettings(tokens, ignore_eos=True))
    return replace(made, **more)


def test_it_is_an_engine_that_batches_and_caches_nothing(fake: FakeVllm) -> None:
    engine = engine_of(fake)
    assert isinstance(engine, BatchingEngine)
    assert not isinstance(engine, CachingEngine)
    assert not engine.capabilities.slot
    assert engine.capabilities.concurrent > 1


@settings(max_examples=15, deadline=None)
@given(
    pattern=st.sampled_from(["none", "append", "prepend"]),
    seed=st.integers(0, 99),
    size=st.integers(1, 90),
    stride=st.integers(1, 9),
)
def test_greedy_texts_are_those_of_our_own_engine(
    fake: FakeVllm, pattern: str, seed: int, size: int, stride: int
) -> None:
    remote, local = writers(fake, seed)
    chosen = own(pattern)
    chosen = replace(chosen, retrieval=replace(chosen.retrieval, stride=stride))
    prompt = (PROMPT * 4)[:size]
    theirs, ours = remote.generate(prompt, chosen), local.generate(prompt, chosen)
    assert theirs.tokens == ours.tokens
    assert theirs.text == ours.text
    assert [one.arranged for one in theirs.strides] == [one.arranged for one in ours.strides]


def test_ids_go_out_and_come_back_and_nothing_is_left_to_the_server(fake: FakeVllm) -> None:
    remote, _ = writers(fake)
    fake.requests.clear()
    found = remote.generate(PROMPT, own())
    assert [tuple(body["prompt"]) for body in fake.requests] == [
        one.arranged for one in found.strides
    ]
    body = fake.requests[0]
    assert (body["temperature"], body["top_p"], body["top_k"], body["min_p"]) == (0.0, 1.0, -1, 0.0)
    assert body["repetition_penalty"] == 1.0
    assert (body["presence_penalty"], body["frequency_penalty"]) == (0.0, 0.0)
    assert body["max_tokens"] == 5
    assert "seed" not in body
    assert "cache_salt" not in body


def test_marks_are_never_written(fake: FakeVllm) -> None:
    remote, _ = writers(fake)
    remote.generate(PROMPT, own())
    marks = fake.reader.marks
    assert marks is not None
    assert fake.requests[-1]["logit_bias"] == {str(token): -100.0 for token in marks}


def test_counts_are_the_servers(fake: FakeVllm) -> None:
    remote, _ = writers(fake)
    found = remote.generate(PROMPT * 2, own("append"))
    shares = [one.usage.cached / len(one.arranged) for one in found.strides[1:]]
    assert min(shares) > 0.5
    for one in found.strides:
        assert one.usage.reused + one.usage.prefilled == len(one.arranged)
        assert one.usage.decoded == len(one.tokens) - 1


def test_salts_keep_caches_apart(fake: FakeVllm) -> None:
    remote, _ = writers(fake)
    prompt = "Salt of the sea, and of the earth"
    cached = [
        remote.generate(prompt, own("none", 5, cache_salt=salt)).strides[0].usage.cached
        for salt in ("a", "b", "a")
    ]
    assert cached[:2] == [0, 0]
    assert cached[2] > 0


def sampled(seed: int) -> SamplingSettings:
    return SamplingSettings(temperature=1.3, top_k=40, top_p=0.9, min_p=0.01, seed=seed)


def test_a_seed_gives_the_same_text_again_and_every_stride_has_its_own(fake: FakeVllm) -> None:
    remote, _ = writers(fake)
    fake.requests.clear()
    first, again, other = (
        remote.generate(PROMPT, own("none", sampling=sampled(seed))).tokens for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other
    seeds = [body["seed"] for body in fake.requests]
    assert len(set(seeds[:4])) == 4
    assert seeds[:4] == seeds[4:8]
    body = fake.requests[0]
    assert (body["temperature"], body["top_k"], body["top_p"], body["min_p"]) == (
        1.3,
        40,
        0.9,
        0.01,
    )


@given(st.integers(0, (1 << 64) - 1), st.integers(0, 1 << 20))
def test_seeds_are_ones_that_every_server_takes(seed: int, position: int) -> None:
    assert 0 <= seed_of(seed, position) < 1 << 31


def test_a_penalty_is_passed_and_what_it_counts_is_said_once(fake: FakeVllm) -> None:
    remote, _ = writers(fake)
    penalty = own("prepend", sampling=SamplingSettings(repetition_penalty=1.5))
    with pytest.warns(FlashBackWarning, match="counts tokens of passages, too") as told:
        remote.generate(PROMPT, penalty)
    assert len(told) == 1
    assert fake.requests[-1]["repetition_penalty"] == 1.5


def eos_after(fake: FakeVllm, tokens: int) -> TextReader:
    """A reader for which the text ends with one of its first tokens."""
    _, local = writers(fake)
    written = local.generate(PROMPT, own("none")).tokens
    return replace(text_reader(fake), ends=frozenset({written[tokens]}))


def test_the_end_of_a_text_ends_the_servers_too_with_its_counts(fake: FakeVllm) -> None:
    reader = eos_after(fake, 7)
    remote = Generator(reader, engine_of(fake), None)
    found = remote.generate(PROMPT, own("none", stopping=StoppingSettings(20)))
    assert found.finish_reason == "eos"
    last = found.strides[-1]
    assert last.usage.reused + last.usage.prefilled == len(last.arranged)
    on = remote.generate(PROMPT, own("none"))
    assert len(on.tokens) == 20
    assert fake.requests[-1]["stop_token_ids"] == []


def test_a_stop_text_ends_the_request_at_its_token(fake: FakeVllm) -> None:
    remote, _ = writers(fake)
    left = threading.Event()

    def wait(number: int, connection: Any) -> None:
        if len(fake.requests) == 2 and number == 3:
            try:
                until_left(connection)
            finally:
                left.set()

    fake.requests.clear()
    fake.forced, fake.at_token = b"abcdefghijklmnop", wait
    try:
        stopping = StoppingSettings(20, stop=("jkl",), ignore_eos=True)
        found = remote.generate("abc", own("none", stopping=stopping))
        assert left.wait(60)
    finally:
        fake.forced, fake.at_token = b"", lambda *_: None
    assert (found.text, found.finish_reason) == ("efghi", "stop")
    assert [len(one.tokens) for one in found.strides] == [5, 3]
    assert found.strides[-1].usage.reused == found.strides[-1].usage.prefilled == 0


def test_who_leaves_ends_the_servers_request(fake: FakeVllm) -> None:
    left = threading.Event()

    def wait(number: int, connection: Any) -> None:
        if number == 2:
            try:
                until_left(connection)
            finally:
                left.set()

    remote, _ = writers(fake)
    fake.at_token = wait
    try:
        writing = remote.stream(PROMPT, own("none"))
        events = iter(writing)
        assert isinstance(next(events), StrideStart)
        assert isinstance(next(events), TextPiece)
        writing.close()
        assert left.wait(60)
    finally:
        fake.at_token = lambda *_: None


def test_a_batch_is_what_each_text_is_alone(fake: FakeVllm) -> None:
    prompts = [PROMPT[:size] for size in (3, 11, 20, 36, 5)]
    remote, local = writers(fake)
    together = remote.generate_batch(prompts, own("none"), batch_size=3)
    alone = [local.generate(prompt, own("none")) for prompt in prompts]
    assert [one.tokens for one in together] == [one.tokens for one in alone]


def test_a_row_that_stops_leaves_the_others_alone(fake: FakeVllm) -> None:
    remote, _ = writers(fake)
    fake.forced = b"abcdefghijklmnopqrstuvwxyz"
    try:
        stopping = StoppingSettings(20, stop=("m",), ignore_eos=True)
        found = remote.generate_batch(["ab", "abcdefg"], own("none", stopping=stopping))
    finally:
        fake.forced = b""
    assert [one.text for one in found] == ["defghijkl", "ijkl"]
    assert [one.finish_reason for one in found] == ["stop", "stop"]


def test_rows_of_a_batch_are_computed_at_the_same_time(fake: FakeVllm) -> None:
    together = threading.Barrier(3)
    fake.at_token = lambda number, _: together.wait(60) if number == 1 else None
    try:
        remote, _ = writers(fake)
        found = remote.generate_batch(["a", "b", "c"], own("none", 5), batch_size=3)
    finally:
        fake.at_token = lambda *_: None
    assert [len(one.tokens) for one in found] == [5, 5, 5]


def test_times_of_a_batch_add_up_to_the_whole(fake: FakeVllm) -> None:
    sampler = Sampler(SamplingSettings(), (5,))
    requests = [Request(Prompt.plain((5, 6)), 4, sampler) for _ in range(3)]
    batch = engine_of(fake).batch(3)
    assert len(list(batch.complete(requests))) == 12
    assert all(one.usage.prefill_seconds > 0 for one in requests)
    assert all(one.usage.decoded == 3 for one in requests)


def test_a_prompt_beyond_the_window_is_refused_before_it_is_sent(fake: FakeVllm) -> None:
    sampler = Sampler(SamplingSettings(), ())
    engine = engine_of(fake)
    fake.requests.clear()
    with pytest.raises(SettingsError, match="190 prompt and 5 new tokens exceed the server's wind"):
        engine.complete(Prompt.plain([5] * 190), 5, sampler)
    with pytest.raises(SettingsError, match="is empty"):
        engine.complete(Prompt.plain([]), 5, sampler)
    with pytest.raises(SettingsError, match="expected at least 1"):
        engine.complete(Prompt.plain([5]), 0, sampler)
    assert fake.requests == []


def test_a_slot_is_refused_by_name(fake: FakeVllm) -> None:
    remote, _ = writers(fake)
    with pytest.raises(SettingsError, match="this engine has no slot; use append or prepend"):
        remote.generate(PROMPT, own("slot"))


# As users load it


def remote_settings(fake: FakeVllm, folder: Path, **more: Any) -> RemoteSettings:
    return RemoteSettings(fake.url, saved_tokenizer(fake.reader, folder), **more)


def test_it_is_loaded_with_nothing_but_a_tokenizer(fake: FakeVllm, tmp_path: Path) -> None:
    remote = remote_settings(fake, tmp_path)
    writer = flashback.load(MODEL, engine="openai", remote=remote)
    assert isinstance(writer.engine, OpenAIEngine)
    assert (writer.reader.window, writer.reader.window_reason) == (192, "the server's")
    assert writer.reader.runs_on == f"behind {fake.url.removesuffix('/v1')}"
    found: Generation = writer.generate(PROMPT, own("none"))
    assert found.tokens == writers(fake)[1].generate(PROMPT, own("none")).tokens
    small = flashback.load(MODEL, engine="openai", remote=remote, window=64)
    assert small.engine.capabilities.window == 64


def test_a_generation_configuration_ends_texts(fake: FakeVllm, tmp_path: Path) -> None:
    remote = remote_settings(fake, tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    assert flashback.load(MODEL, engine="openai", remote=remote).reader.eos == {7, 9}


def test_the_key_is_sent(fake: FakeVllm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    fake.keys.clear()
    flashback.load(
        MODEL, engine="openai", remote=remote_settings(fake, tmp_path, api_key_env="MY_KEY")
    )
    assert set(fake.keys) == {"Bearer secret"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--engine", "openai"), "give the server's --base-url"),
        (("--engine", "openai", "--base-url", "nonsense"), "expected a URL such as"),
        (("--engine", "nonsuch"), "expected one of local, llama.cpp, openai"),
        (("--base-url", "http://a"), "are of --engine openai"),
        (
            ("--engine", "openai", "--device", "cpu"),
            "--device cpu: with --engine openai the server",
        ),
        (("--engine", "openai", "--weights", "int8"), "--weights int8: with --engine openai the"),
        (("--engine", "openai", "--adapter", "X"), "--adapter X: with --engine openai the"),
        (
            ("--engine", "openai", "--base-url", "http://a", "--api-key-env", "NO_SUCH"),
            "--api-key-env NO_SUCH: there is no such environment variable",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(arguments: tuple[str, ...], message: str) -> None:
    told = refused("generate", "--pattern", "none", *arguments, "a", code=2)
    assert message in told


def test_the_command_line_writes_and_asks(fake: FakeVllm, tmp_path: Path) -> None:
    folder = saved_tokenizer(fake.reader, tmp_path)
    place = ["--engine", "openai", "--base-url", fake.url, "--model", MODEL, "--tokenizer", folder]
    more = ("--pattern", "none", "--max-new-tokens", "20", "--stride", "5", "--ignore-eos")
    record = run("ask", *place, *more, "--json", "What is it?").record
    messages = [{"role": "user", "content": "What is it?"}]
    expected = writers(fake)[1].chat(messages, own("none"))
    assert record["answer"] == expected.text


def test_questions_are_answered_without_log_probabilities(fake: FakeVllm, tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    line = {"question": "What follows?", "answer": "tides", "passage": "Tides follow it."}
    file.write_text(json.dumps(line) + "\n")
    folder = saved_tokenizer(fake.reader, tmp_path / "tokenizer")
    place = ["--engine", "openai", "--base-url", fake.url, "--model", MODEL, "--tokenizer", folder]
    small = ("--passage-tokens", "24", "--max-new-tokens", "4", "--resamples", "20", "--oracle")
    record = run("eval", "qa", file, *place, *small, "--json").record
    assert [row["name"] for row in record["rows"]] == ["plain RAG", "none", "prepend", "append"]
    assert all("nats_per_token" not in row and "f1" in row for row in record["rows"])
    assert "-log p" not in run("eval", "qa", file, *place, *small).out
    told = refused("eval", "qa", file, *place, *small, "--pattern", "slot", code=2)
    assert "this engine has no slot" in told
