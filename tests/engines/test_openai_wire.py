"""Servers of the engine `openai` that fail, lie or are slow, and what is said of them."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import flashback
from command_line import refused
from fake_vllm import MODEL, FakeVllm, HangUp, fake_vllm, saved_tokenizer
from flashback.engines.openai import OpenAIEngine
from flashback.engines.openai_probe import Abilities, probe
from flashback.engines.openai_settings import RemoteSettings
from flashback.engines.openai_stream import TokenStream
from flashback.engines.openai_wire import Wire
from flashback.engines.protocol import Usage
from flashback.errors import EngineError, FlashBackWarning, SettingsError
from flashback.patterns.prompt import Prompt
from flashback.readers.elsewhere import sample_of, window_elsewhere
from flashback.sampling import Sampler
from flashback.settings import SamplingSettings
from flashback.wire.breaker import CircuitBreaker
from flashback.wire.http import Patience
from servers import Clock, chat_reader

RECORDED = [
    json.loads(line)
    for line in (Path(__file__).parent / "recorded_vllm.jsonl").read_text("utf-8").splitlines()
]


@pytest.fixture(scope="module")
def served() -> Iterator[FakeVllm]:
    with fake_vllm(chat_reader()) as fake:
        yield fake


@pytest.fixture
def fake(served: FakeVllm) -> Iterator[FakeVllm]:
    """The server, in working order before and after each test."""
    before = dict(vars(served))
    served.requests.clear()
    yield served
    vars(served).update(before)
    served.replies.clear()


def wire_to(fake: FakeVllm, **more: Any) -> Wire:
    settings = RemoteSettings(base_url=fake.url)
    return Wire(settings, **{"sleep": lambda _: None} | more)


def tokens(wire: Wire, most: int = 4) -> list[int]:
    engine = OpenAIEngine(wire, MODEL, 192)
    return list(engine.complete(Prompt.plain([5, 6, 7]), most, Sampler(SamplingSettings(), [5])))


def failure(fake: FakeVllm, **more: Any) -> str:
    """What is said, without the server's name, where a completion fails."""
    with pytest.raises(EngineError) as caught:
        tokens(wire_to(fake, **more))
    message, name = str(caught.value), f"engine {fake.url.removesuffix('/v1')}: "
    assert "\n" not in message
    assert message.startswith(name)
    return message.removeprefix(name)


Reply = tuple[int, bytes, dict[str, str]]


def reply(status: int, message: str = "", **headers: str) -> Reply:
    content = json.dumps({"error": {"message": message}}).encode() if message else b""
    return status, content, {name.replace("_", "-"): value for name, value in headers.items()}


# The recording


def shape(value: Any) -> Any:
    """Names and types; of a list, its first item's."""
    if isinstance(value, dict):
        return {name: shape(one) for name, one in value.items()}
    if isinstance(value, list):
        return [shape(one) for one in value[:1]]
    return type(value).__name__


def test_the_fake_answers_in_the_shapes_of_the_real_server(fake: FakeVllm) -> None:
    wire = wire_to(fake)
    for one in RECORDED:
        if one["status"] != 200:
            continue
        assert one["server"] == "vllm 0.32.0"
        if one["request"] is None:
            real = json.loads(one["answer"])["data"][0]
            (ours,) = wire.models()
            assert ours.keys() == real.keys()
            continue
        body = one["request"] | {"model": MODEL, "prompt": [5, 6, 7, 8, 9]}
        body["stop_token_ids"] = list(range(300)) if one["name"] == "ended" else []
        if body.get("stream"):
            chunks = list(wire.streamed(body))
            real = [json.loads(data) for data in events(one["answer"])]
            assert [shape(chunk) for chunk in chunks] == [shape(chunk) for chunk in real]
        else:
            assert shape(wire.whole(body)) == shape(json.loads(one["answer"]))


def events(answer: str) -> list[str]:
    """The data of a recorded stream, but its end."""
    lines = [line.removeprefix("data: ") for line in answer.splitlines() if line]
    assert lines.pop() == "[DONE]"
    return lines


def recorded(name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in RECORDED if one["name"] == name)
    return found


@pytest.mark.parametrize("name", ["streamed", "drawn", "ended"])
def test_what_the_real_server_streamed_is_read(fake: FakeVllm, name: str) -> None:
    one = recorded(name)
    fake.replies.append((200, one["answer"].encode(), {"Content-Type": one["type"]}))
    body, usage = one["request"], Usage()
    body = body | {"stop_token_ids": list(range(49152)) if name == "ended" else [2]}
    found = list(TokenStream(wire_to(fake), body, usage).tokens())
    assert len(found) == (1 if name == "ended" else 4)
    assert usage.prefilled == len(body["prompt"])
    assert usage.decoded == len(found) - 1
    assert fake.requests == [body]


@pytest.mark.parametrize("name", ["no such model", "no such id", "too long"])
def test_what_the_real_server_refused_is_told(fake: FakeVllm, name: str) -> None:
    one = recorded(name)
    fake.replies.append((one["status"], one["answer"].encode(), {}))
    told = json.loads(one["answer"])["error"]["message"]
    assert failure(fake) == f"{told} (status {one['status']})"


# Tries


@pytest.mark.parametrize("status", [429, 502, 503])
def test_a_server_that_will_be_back_is_asked_again(fake: FakeVllm, status: int) -> None:
    pauses: list[float] = []
    fake.replies += [reply(status), reply(status, Retry_After="2")]
    assert len(tokens(wire_to(fake, sleep=pauses.append))) == 4
    assert pauses == [0.1, 2.0]


def test_one_that_asks_for_a_long_wait_is_left(fake: FakeVllm) -> None:
    fake.replies.append(reply(429, "too many", Retry_After="60"))
    assert failure(fake) == "too many (status 429)"
    assert len(fake.requests) == 1


@pytest.mark.parametrize("status", [400, 401, 404, 422, 500, 504])
def test_others_are_asked_once(fake: FakeVllm, status: int) -> None:
    fake.replies.append(reply(status, "no"))
    told = failure(fake)
    assert told.endswith(f"(status {status})")
    assert status != 401 or "put the server's key into $FLASHBACK_ENGINE_KEY" in told
    assert len(fake.requests) == 1


def test_tries_are_bounded(fake: FakeVllm) -> None:
    fake.replies += [reply(503, "starting")] * 3
    assert failure(fake) == "starting (status 503)"
    assert len(fake.requests) == 3


def hang_up(at: int, times: int = 1 << 30) -> Callable[[int, Any], None]:
    """A hook that ends the connection before a token, so many times."""
    left = [times]

    def hook(number: int, _: Any) -> None:
        if number == at and left[0]:
            left[0] -= 1
            raise HangUp

    return hook


def test_a_stream_that_breaks_before_its_first_token_is_tried_again(fake: FakeVllm) -> None:
    fake.at_token = hang_up(0, times=2)
    assert len(tokens(wire_to(fake))) == 4
    assert len(fake.requests) == 3


def test_a_stream_that_breaks_later_is_not(fake: FakeVllm) -> None:
    fake.at_token = hang_up(2)
    assert "the connection broke" in failure(fake)
    assert len(fake.requests) == 1


def test_what_was_written_before_it_broke_was_given(fake: FakeVllm) -> None:
    fake.at_token = hang_up(2)
    sampler = Sampler(SamplingSettings(), [5])
    completion = OpenAIEngine(wire_to(fake), MODEL, 192).complete(Prompt.plain([5]), 4, sampler)
    given = [next(completion.tokens), next(completion.tokens)]
    with pytest.raises(EngineError):
        next(completion.tokens)
    assert sampler.history == [5, *given]


def test_a_stream_without_an_end_broke_off(fake: FakeVllm) -> None:
    one = recorded("streamed")["answer"].split("\n\n")[0]
    fake.replies += [(200, f"{one}\n\n".encode(), {"Content-Type": "text/event-stream"})]
    assert failure(fake) == "the answer broke off"


def test_a_slow_server_is_left(fake: FakeVllm) -> None:
    ended = threading.Event()
    fake.at_token = lambda number, _: ended.wait() if number == 1 else None
    try:
        assert failure(fake, patience=Patience(read_seconds=0.2)) == "no token in 0.2 s"
    finally:
        ended.set()


def test_a_server_that_is_down() -> None:
    with fake_vllm(chat_reader()) as fake:
        pass
    assert failure(fake).startswith("cannot be reached (")


def test_after_failures_in_a_row_it_is_left_alone_and_comes_back(fake: FakeVllm) -> None:
    clock = Clock()
    breaker = CircuitBreaker(2, 5.0, clock)
    fake.replies += [reply(500)] * 2
    for _ in range(2):
        assert "500" in failure(fake, breaker=breaker)
    assert "left alone for a few seconds" in failure(fake, breaker=breaker)
    assert len(fake.requests) == 2
    clock.advance(5.0)
    assert len(tokens(wire_to(fake, breaker=breaker))) == 4


def chunk(**fields: Any) -> str:
    return "data: " + json.dumps({"choices": [{"index": 0, "finish_reason": None} | fields]})


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("data: nonsense", "an answer that is no JSON"),
        ("data: [1]", "an answer that is no JSON object"),
        ("data: " + "[" * 100_000, "an answer that is no JSON"),
        ("data: {}", "a chunk that is none of a completion with token_ids"),
        ('data: {"choices": [7]}', "a chunk that is none"),
        (chunk(token_ids=["a"]), "a chunk that is none"),
        (chunk(token_ids=[-1]), "a chunk that is none"),
        (chunk(token_ids=[True]), "a chunk that is none"),
        ('data: {"error": {"message": "the\\nengine died"}}', "the engine died"),
        (
            chunk(token_ids=[5], finish_reason="stop"),
            "ended after 1 of 4 tokens (stop); expected a server that takes ignore_eos",
        ),
        (chunk(token_ids=[5], finish_reason="abort"), "ended after 1 of 4 tokens (abort)"),
        ("data: [DONE]", "ended after 0 of 4 tokens (None)"),
    ],
)
def test_garbage_is_one_line(fake: FakeVllm, answer: str, message: str) -> None:
    content = f"{answer}\n\ndata: [DONE]\n\n".encode()
    fake.replies.append((200, content, {"Content-Type": "text/event-stream"}))
    assert failure(fake).startswith(message)


# The probe


def abilities(fake: FakeVllm, **more: Any) -> Abilities:
    sample = replace(sample_of("TOKENIZER", fake.reader.tokenizer), **more)
    return probe(wire_to(fake), MODEL, sample)


def probe_failure(fake: FakeVllm, **more: Any) -> str:
    with pytest.raises(EngineError) as caught:
        abilities(fake, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("block", [1, 4, 16, 32])
def test_it_finds_window_and_block(fake: FakeVllm, block: int) -> None:
    fake.block = block
    assert abilities(fake) == Abilities(192, block, ())


def test_a_server_without_a_prefix_cache_is_told_with_what_it_costs(fake: FakeVllm) -> None:
    fake.block = 0
    found = abilities(fake)
    assert found.block is None
    assert "reuses nothing of a prompt that it has just had (96 tokens took" in found.notes[0]


def test_one_without_counts_is_told(fake: FakeVllm, tmp_path: Path) -> None:
    fake.tells_cached = False
    remote = RemoteSettings(fake.url, saved_tokenizer(fake.reader, tmp_path))
    with pytest.warns(FlashBackWarning, match="start vLLM with `--enable-prompt-tokens-details`"):
        flashback.load(MODEL, engine="openai", remote=remote)


def test_one_that_gives_no_ids_back_is_refused(fake: FakeVllm) -> None:
    fake.gives_ids = False
    assert "gives no token ids back (return_token_ids)" in probe_failure(fake)


@pytest.mark.parametrize("mangle", [lambda ids: ids[::2], lambda ids: [0, *ids]])
def test_one_that_tokenizes_anew_is_refused(
    fake: FakeVllm, mangle: Callable[[list[int]], list[int]]
) -> None:
    fake.mangle = mangle
    assert "it tokenizes anew, or puts tokens in front" in probe_failure(fake)


def test_the_tokenizer_of_a_larger_model_is_refused(fake: FakeVllm) -> None:
    told = probe_failure(fake, varied=(5, 60_000))
    assert "Token id 60000 is out of vocabulary (status 400)" in told
    assert "token ids of the tokenizer TOKENIZER: expected" in told


def test_the_tokenizer_of_another_model_is_refused(fake: FakeVllm) -> None:
    told = probe_failure(fake, text="other letters for the same ids")
    assert "its model 'tiny' has other tokens than the tokenizer TOKENIZER" in told


def test_an_address_without_a_path_is_that_of_v1(fake: FakeVllm) -> None:
    wire = Wire(RemoteSettings(base_url=fake.url.removesuffix("/v1")))
    assert [one["id"] for one in wire.models()] == [MODEL]
    with pytest.raises(EngineError, match="no model"):
        Wire(RemoteSettings(base_url=f"{fake.url}/nonsense")).models()


def test_a_model_that_is_not_there_is_named_with_those_that_are(
    fake: FakeVllm, tmp_path: Path
) -> None:
    folder = saved_tokenizer(fake.reader, tmp_path)
    place = ("--engine", "openai", "--base-url", fake.url, "--tokenizer", folder)
    told = refused("generate", "--pattern", "none", *place, "--model", "nonsuch", "a", code=1)
    assert "there is no model 'nonsuch'; expected --model with one of: tiny" in told


def test_a_window_that_nobody_knows(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="does not say how many positions it has"):
        window_elsewhere(str(tmp_path), None, None)
    assert window_elsewhere(str(tmp_path), None, 64) == (64, "as asked")
    assert window_elsewhere(str(tmp_path), 128, None) == (128, "the server's")
    with pytest.raises(SettingsError, match="expected 1 to 128"):
        window_elsewhere(str(tmp_path), 128, 129)
