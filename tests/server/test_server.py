"""The API as the official client and plain HTTP see it: shapes, sources, refusals."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flashback.engines.local import LocalEngine
from flashback.patterns.registry import PATTERNS
from flashback.readers.chat import ASKED, INSTRUCTION
from flashback.readers.text_reader import TextReader
from flashback.server.schema import (
    ChatRequest,
    CompletionRequest,
    FlashbackOptions,
    FrameOptions,
    Message,
    RetrieveRequest,
    StreamOptions,
    TextPart,
)
from flashback.server.server_settings import MIB
from flashback.settings import RetrievalSettings, SearchOptions, Settings, StoppingSettings
from flashback.writing.generator import Generator
from servers import DEFAULTS, ForcedEngine, QueryRetriever, Served, chat_reader, serving
from tiny_readers import tiny_reader


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving() as found:
        yield found


@pytest.fixture(scope="module")
def http(served: Served) -> Iterator[httpx2.Client]:
    with served.http() as found:
        yield found


def tiled(strides: list[Any], text: str, start: int = 0) -> bool:
    """Whether the strides tile the text from `start` on."""
    ends = [start, *(stride["end"] for stride in strides)]
    return [stride["start"] for stride in strides] == ends[:-1] and ends[-1] == len(text)


def test_a_completion_is_what_the_generator_writes_and_its_strides_tile_it(served: Served) -> None:
    answer = served.complete("The tides", max_tokens=22)
    reader = served.reader
    generator = Generator(reader, LocalEngine(reader.model, reader.window), QueryRetriever())
    written = generator.generate("The tides", Settings(DEFAULTS, stopping=StoppingSettings(22)))
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == (written.text, "length")
    strides = answer["flashback"]["strides"]
    assert tiled(strides, choice["text"])
    assert [one["tokens"] for one in strides] == [4, 4, 4, 4, 4, 2]
    found = [[hit["id"] for hit in one["passages"]] for one in strides]
    assert found == [[hit.id for hit in stride.passages] for stride in written.strides]
    assert set(strides[0]["passages"][0]) == {
        "id",
        "document_id",
        "title",
        "place",
        "source",
        "score",
        "excerpt",
    }
    assert answer["usage"]["completion_tokens"] == 22
    assert answer["usage"]["prompt_tokens"] == len(reader.encode_prompt("The tides"))


def test_reused_tokens_are_counted(served: Served) -> None:
    fresh = {"fresh_cache": True}
    first = served.complete("Once upon a time, there was", flashback=fresh)
    assert first["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    served.complete("Once upon a time, there was")
    again = served.complete("Once upon a time, there was")
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 20
    other = served.complete("Once upon a time, there was", cache_salt="somebody else")
    assert other["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert again["choices"] == first["choices"]


def test_the_official_client_streams_text_with_its_sources(served: Served) -> None:
    text, events = "", []
    stream: Any = served.client().completions.create(
        model="llama",
        prompt="The tides",
        max_tokens=22,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    usage = None
    for chunk in stream:
        usage = chunk.usage or usage
        if (found := getattr(chunk, "flashback", None)) and "event" in found:
            events.append(found | {"at": len(text)})
        for choice in chunk.choices:
            text += choice.text
    whole = served.complete("The tides", max_tokens=22)
    assert text == whole["choices"][0]["text"]
    starts = [event for event in events if event["event"] == "stride_start"]
    ends = [event for event in events if event["event"] == "stride_end"]
    assert all(event["start"] == event["at"] for event in starts)
    assert all(event["end"] == event["at"] for event in ends)
    assert tiled(ends, text)
    assert [one["passages"] for one in starts] == [
        one["passages"] for one in whole["flashback"]["strides"]
    ]
    assert usage is not None
    assert usage.completion_tokens == 22


def test_the_asynchronous_client_and_a_chat(served: Served) -> None:
    async def ask() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
            messages: Any = [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "What follows the moon?"},
            ]
            shared: Any = {"model": "llama", "messages": messages, "max_tokens": 10, "seed": 3}
            whole = await client.chat.completions.create(**shared)
            stream = await client.chat.completions.create(**shared, stream=True)
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
        return whole.choices[0].message.content or "", "".join(pieces)

    whole, streamed = asyncio.run(ask())
    assert whole == streamed
    assert whole


def test_a_chats_first_query_is_what_the_user_said() -> None:
    retriever = QueryRetriever()
    with serving(chat_reader(), retriever) as own:
        messages: Any = [{"role": "user", "content": "moon"}]
        own.client().chat.completions.create(model="llama", messages=messages, max_tokens=8)
    assert retriever.queries[0] == "moon"
    assert all("<user>" not in query for query in retriever.queries)


@pytest.mark.parametrize("pattern", ["prepend", "slot"])
@pytest.mark.parametrize("frame", [None, {"before": "(", "after": ")"}])
def test_a_chat_shows_passages_in_its_template_or_in_the_frame_asked_for(
    pattern: str, frame: dict[str, str] | None
) -> None:
    reader, retriever = chat_reader(window=512), QueryRetriever()
    passage = reader.encode(retriever.search(["moon"], SearchOptions())[0][0].text)[:24]
    before, after = (INSTRUCTION, ASKED) if frame is None else ("(", ")")
    around = (
        ("", "<user>moon") if frame is not None and pattern == "prepend" else ("<user>", "moon")
    )
    texts = around[0] + before, after + around[1] + "<assistant>"
    arranged = [*reader.encode(texts[0]), *passage, *reader.encode(texts[1])]
    engine = LocalEngine(reader.model, reader.window)
    plain = Settings(RetrievalSettings("none"), stopping=StoppingSettings(6, ignore_eos=True))
    expected = Generator(reader, engine, None).generate(arranged, plain).text
    with serving(reader, retriever) as own:
        answer = own.client().chat.completions.create(
            model="llama",
            messages=[{"role": "user", "content": "moon"}],
            max_tokens=6,
            temperature=0,
            extra_body={
                "flashback": {"pattern": pattern, "stride": 16, "frame": frame, "ignore_eos": True}
            },
        )
    assert answer.choices[0].message.content == expected
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(reader.encode("<user>moon<assistant>"))


def test_a_frame_that_is_none_is_refused_by_its_name(served: Served) -> None:
    with served.http() as http:
        for frame, named in (({"infront": "("}, "infront"), ({"echo_tokens": -1}, "echo_tokens")):
            body = {"model": "llama", "prompt": "a", "flashback": {"frame": frame}}
            answer = http.post("/v1/completions", json=body)
            assert answer.status_code == 400
            assert named in answer.json()["error"]["message"]


@pytest.mark.parametrize("dumped", [False, True])
def test_an_answer_can_be_sent_back(served: Served, dumped: bool) -> None:
    client = served.client()
    messages: Any = [{"role": "user", "content": "moon"}]
    answer = client.chat.completions.create(model="llama", messages=messages, max_tokens=4)
    said: Any = answer.choices[0].message
    messages += [said.model_dump() if dumped else said, {"role": "user", "content": "more"}]
    assert client.chat.completions.create(model="llama", messages=messages, max_tokens=4).choices


def test_a_model_without_a_template_refuses_chats() -> None:
    messages: Any = [{"role": "user", "content": "moon"}]
    with serving(tiny_reader()) as own, pytest.raises(openai.BadRequestError) as error:
        own.client().chat.completions.create(model="llama", messages=messages)
    assert error.value.code == "no_chat_template"


def test_choices_have_seeds_of_their_own_and_can_be_had_alone(served: Served) -> None:
    asked: Any = {"max_tokens": 8, "temperature": 1, "top_p": 0.9}
    three = served.complete(["a b", "c d"], n=2, seed=5, **asked)
    texts = [choice["text"] for choice in three["choices"]]
    assert [choice["index"] for choice in three["choices"]] == [0, 1, 2, 3]
    assert texts[1] == served.complete("a b", seed=6, **asked)["choices"][0]["text"]
    assert texts[2] == served.complete("c d", seed=5, **asked)["choices"][0]["text"]
    by_choice = [[s for s in three["flashback"]["strides"] if s["choice"] == c] for c in range(4)]
    assert all(tiled(own, text) for own, text in zip(by_choice, texts, strict=True))


def test_ids_are_a_prompt_too_and_text_ends_at_a_stop_text(served: Served) -> None:
    ids = served.reader.encode_prompt("The tides")
    text = served.complete("The tides", max_tokens=20)["choices"][0]["text"]
    assert served.complete([ids], max_tokens=20)["choices"][0]["text"] == text
    stop = text[7:9]
    cut = served.complete("The tides", max_tokens=20, stop=[stop])["choices"][0]
    assert (cut["text"], cut["finish_reason"]) == (text[: text.index(stop)], "stop")


@pytest.mark.parametrize("pattern", ["none", "prepend", "slot"])
def test_a_request_chooses_its_pattern(served: Served, pattern: str) -> None:
    strides = served.complete(max_tokens=8, flashback={"pattern": pattern})["flashback"]["strides"]
    assert len(strides) == 2
    assert any(one["passages"] for one in strides) == (pattern != "none")


@pytest.mark.parametrize(
    ("form", "query"),
    [("tokens", "tall. It"), ("sentence", "It is tall. It"), ("message", "It is \ntall. It")],
)
def test_a_request_chooses_the_form_of_its_queries(form: str, query: str) -> None:
    retriever = QueryRetriever()
    with serving(retriever=retriever) as own:
        own.complete("It is tall. It", max_tokens=8, flashback={"query_form": form})
        with own.http() as http:
            (model,) = http.get("/v1/models").json()["data"]
    assert retriever.queries[0] == query
    assert model["flashback"]["defaults"]["query_form"] == "tokens"


def test_models_searches_health_and_metrics(served: Served) -> None:
    assert [model.id for model in served.client().models.list()] == ["llama"]
    assert served.client().models.retrieve("llama").id == "llama"
    with served.http() as http:
        body = {"queries": ["moon", "sun"], "passages": 2}
        found = http.post("/v1/retrieve", json=body).json()["results"]
        assert [len(one["passages"]) for one in found] == [2, 2]
        assert found[0]["passages"][0]["text"]
        assert http.get("/health").json()["status"] == "ok"
        metrics = http.get("/metrics").text
    assert served.service.cache_use.sequences > 0
    for name in ("requests_total", "strides_total", "tokens_total", "jobs", "retrieve_seconds_sum"):
        assert f"flashback_{name}" in metrics
    old, new = (f"flashback_{name}_seconds_sum " for name in ("encode", "prefill"))
    assert metrics.split(old)[1].split()[0] == metrics.split(new)[1].split()[0] != "0.0"


REFUSED = [
    ({"suffix": "x"}, 400, "suffix"),
    ({"best_of": 2}, 400, "best_of"),
    ({"logit_bias": {"5": 1.0}}, 400, "logit_bias"),
    ({"presence_penalty": 0.5}, 400, "presence_penalty"),
    ({"max_token": 5}, 400, "max_token"),
    ({"max_tokens": -1}, 400, "max_tokens"),
    ({"max_tokens": 0}, 400, "max_tokens"),
    ({"max_tokens": 10**6}, 400, "max_tokens"),
    ({"temperature": "hot"}, 400, "temperature"),
    ({"model": "gpt"}, 404, "model"),
    ({"prompt": [1, 10**6]}, 400, None),
    ({"prompt": "x" * 500}, 400, "prompt"),
    ({"prompt": []}, 400, "prompt"),
    ({"n": 500}, 400, "n"),
    ({"flashback": {"strides": 3}}, 400, "flashback.strides"),
    ({"flashback": {"stride": 0}}, 400, "flashback.stride"),
    ({"flashback": {"stride": 190}}, 400, None),
    ({"flashback": {"pattern": "middle"}}, 400, "flashback.pattern"),
    ({"flashback": {"query_form": "words"}}, 400, "flashback.query_form"),
    ({"prompt": "\ud800"}, 400, "prompt"),
    ({"prompt": [1, -5]}, 400, "prompt"),
    ({"prompt": ["a", 1]}, 400, "prompt"),
    ({"stop": [""]}, 400, "stop"),
]


@pytest.mark.parametrize(("fields", "status", "param"), REFUSED)
def test_what_is_not_supported_is_refused_by_name(
    http: httpx2.Client, fields: dict[str, Any], status: int, param: str | None
) -> None:
    body = {"model": "llama", "prompt": "a"} | fields
    headers = {"Content-Type": "application/json"}
    answer = http.post("/v1/completions", content=json.dumps(body), headers=headers)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert param is None or error["param"] == param
    assert param is None or param.rpartition(".")[2] in error["message"]


@pytest.mark.parametrize("prompt", [[], [[]], [1, -5], ["a", 1], {}])
def test_a_wrong_prompt_is_refused_with_what_it_may_be(http: httpx2.Client, prompt: Any) -> None:
    answer = http.post("/v1/completions", json={"model": "llama", "prompt": prompt})
    assert "a list of token ids" in answer.json()["error"]["message"]


def test_a_wrong_message_is_refused_with_what_it_may_be(http: httpx2.Client) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "user", "content": None}]
    answer = http.post("/v1/chat/completions", json={"model": "llama", "messages": messages})
    error = answer.json()["error"]
    assert error["param"] == "messages.1.content"
    assert "a list of {'type': 'text'" in error["message"]


@pytest.mark.parametrize("key", ["stop", "prompt", "content"])
@pytest.mark.parametrize("field", ["metadata", "logit_bias", "response_format"])
def test_a_key_inside_another_field_is_not_taken_for_a_field(
    http: httpx2.Client, key: str, field: str
) -> None:
    body = {"model": "llama", "messages": [{"role": "user", "content": "a"}], field: {key: []}}
    answer = http.post("/v1/chat/completions", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, field)
    assert "expected a text" not in error["message"]


@pytest.mark.parametrize("depth", [100, 1000, 100_000])
@pytest.mark.parametrize("field", ["metadata", "messages"])
def test_deep_bodies_are_refused(http: httpx2.Client, depth: int, field: str) -> None:
    for opens, closes in (("[", "]"), ('{"content":', "}")):
        nested = opens * depth + "1" + closes * depth
        content = f'{{"model": "llama", "{field}": {nested}}}'
        for path in GOOD:
            answer = http.post(path, content=content, headers={"Content-Type": "application/json"})
            assert answer.status_code == 400, answer.text


def test_a_models_name_may_have_a_slash() -> None:
    with serving(model_name="some/name") as own:
        assert own.client().models.retrieve("some/name").id == "some/name"


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/v2", 404), ("GET", "/v1/completions", 405)]
)
def test_unknown_paths_have_errors_of_the_same_shape(
    http: httpx2.Client, method: str, path: str, status: int
) -> None:
    answer = http.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_body_over_the_limit_is_refused_however_it_comes() -> None:
    with serving(max_body=1) as own, own.http() as http:
        parts = (b" " * 500 for _ in range(4))
        headers = {"Content-Type": "application/json"}
        for content in (b" " * 2000, parts):
            answer = http.post("/v1/completions", content=content, headers=headers)
            assert answer.status_code == 413
            assert "1024 bytes" in answer.json()["error"]["message"]


def test_a_key_is_asked_for_and_pages_of_other_origins_only_where_they_may() -> None:
    with serving(api_key="secret", cors_origins=("https://a.example",)) as own, own.http() as http:
        assert http.get("/health").status_code == 200
        assert http.get("/v1/models").status_code == 401
        assert own.client(api_key="secret").models.list().data
        with pytest.raises(openai.AuthenticationError):
            own.client(api_key="secreT").models.list()
        allowed = http.get("/v1/models", headers={"Origin": "https://a.example"})
        assert allowed.headers["access-control-allow-origin"] == "https://a.example"
        asked = {
            "Origin": "https://a.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
        }
        assert http.options("/v1/chat/completions", headers=asked).status_code == 200
        other = http.get("/v1/models", headers={"Origin": "https://b.example"})
        assert "access-control-allow-origin" not in other.headers


NAMES = sorted(
    {
        *CompletionRequest.model_fields,
        *ChatRequest.model_fields,
        *RetrieveRequest.model_fields,
        *FlashbackOptions.model_fields,
        *FrameOptions.model_fields,
        *StreamOptions.model_fields,
        *Message.model_fields,
        *TextPart.model_fields,
    }
)
"""Of all fields: each is tried at every place."""
TEXT = st.text(max_size=8) | st.sampled_from(["text", "user", "assistant", "append", "\ud800"])
KEYS = st.sampled_from(NAMES) | TEXT
JSON: st.SearchStrategy[Any] = st.deferred(
    lambda: (
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | TEXT
        | st.lists(JSON, max_size=3)
        | st.dictionaries(KEYS, JSON, max_size=3)
    )
)
FIELDS = KEYS.filter(lambda name: name != "model")
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system"])},
        optional={
            "content": TEXT
            | JSON
            | st.lists(
                st.fixed_dictionaries({"type": st.just("text") | JSON, "text": TEXT | JSON}),
                max_size=3,
            ),
            "name": TEXT,
        },
    ),
    max_size=4,
)


GOOD: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "a"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
    "/v1/retrieve": {"queries": ["a"]},
}


@given(
    path=st.sampled_from(["/v1/completions", "/v1/chat/completions", "/v1/retrieve"]),
    good=st.booleans(),
    fields=st.dictionaries(FIELDS, JSON | st.integers(-2, 3) | MESSAGES, max_size=4),
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_is_sent_the_answer_is_no_failure(
    http: httpx2.Client, path: str, good: bool, fields: dict[str, Any]
) -> None:
    base: dict[str, Any] = {"model": "llama", "max_tokens": 3} if path != "/v1/retrieve" else {}
    if good:
        base |= GOOD[path]
    headers = {"Content-Type": "application/json"}
    answer = http.post(path, content=json.dumps(base | fields), headers=headers)
    assert answer.status_code < 500, answer.text
    if answer.status_code != 200:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@given(body=st.binary(max_size=64))
@settings(max_examples=50, deadline=None)
def test_garbage_is_refused(http: httpx2.Client, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    assert http.post("/v1/completions", content=body, headers=headers).status_code in (400, 404)


def test_memory_is_a_budget(served: Served) -> None:
    assert served.service.cache_use.sequence_bytes <= served.service.settings.memory * MIB


def test_models_say_their_patterns_in_the_registrys_order(http: httpx2.Client) -> None:
    found = http.get("/v1/models").json()["data"][0]["flashback"]
    assert found["patterns"] == list(PATTERNS)
    assert found["pattern_summaries"] == {name: one.summary for name, one in PATTERNS.items()}


@pytest.mark.parametrize("pattern", ["middle", "auto", 5, ["append"]])
def test_an_unknown_pattern_is_refused_with_the_known_ones(
    http: httpx2.Client, served: Served, pattern: Any
) -> None:
    body = {"model": served.service.model, "prompt": "a", "flashback": {"pattern": pattern}}
    message = http.post("/v1/completions", json=body).json()["error"]["message"]
    expected = "input should be 'none', 'prepend', 'append' or 'slot'"
    assert message == f"flashback.pattern: {expected}"


def test_prefilled_tokens_have_their_old_name_too(served: Served) -> None:
    found = served.complete(max_tokens=8, flashback={"fresh_cache": True})["flashback"]
    for record in (found["totals"], *found["strides"]):
        assert record["prefilled"] == record["encoded"] > 0


def test_an_engine_without_caches_here_and_a_reader_without_a_model() -> None:
    """What they cannot do is refused, and all else works."""
    reader = chat_reader()
    engine = ForcedEngine(reader, "a")
    with serving(reader, engine=engine) as own, own.http() as http:
        assert own.complete(max_tokens=6)["choices"][0]["text"] == "a" * 6
        assert "flashback_cached_sequences 0.0" in http.get("/metrics").text
        assert "slot" not in own.service.patterns
        body: dict[str, Any] = {"model": "llama", "prompt": "b"}
        fresh = http.post("/v1/completions", json=body | {"flashback": {"fresh_cache": True}})
    without = TextReader(
        name="llama", tokenizer=reader.tokenizer, window=reader.window, window_reason="a test"
    )
    with serving(without, engine=engine) as own, own.http() as http:
        scored = http.post("/v1/completions", json=body | {"echo": True, "logprobs": 1})
    for answer, param in ((fresh, "flashback.fresh_cache"), (scored, "echo")):
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize("meant", [False, True])
def test_special_tokens_in_messages_are_text_unless_the_server_says_otherwise(meant: bool) -> None:
    """EOS is one, and ends an assistant's turn in this template of other people's messages."""
    reader = chat_reader()
    said = [
        ("system", "Be brief.</s>"),
        ("user", "a</s><s>b"),
        ("assistant", "</s>"),
        ("user", "x"),
    ]
    messages = [{"role": role, "content": content} for role, content in said]
    fields: dict[str, Any] = {
        "messages": messages,
        "max_tokens": 1,
        "flashback": {"pattern": "none"},
    }
    with serving(reader, special_tokens_in_messages=meant) as served, served.http() as http:
        answer = http.post("/v1/chat/completions", json={"model": served.service.model} | fields)
    text = "".join(f"<{role}>{content}" for role, content in said) + "<assistant>"
    expected = reader.encode_given(text) if meant else reader.encode(text)
    assert answer.json()["usage"]["prompt_tokens"] == len(expected)


SENT: list[dict[str, Any]] = [
    {"metadata": {"run": "7"}, "service_tier": "auto"},
    {"service_tier": "default", "store": False, "metadata": None},
    {"parallel_tool_calls": True, "tool_choice": "auto", "tools": []},
    {"modalities": ["text"], "response_format": {"type": "text"}},
    {"safety_identifier": "a", "prompt_cache_key": "b", "user": "c"},
    {"presence_penalty": 0, "frequency_penalty": 0, "logit_bias": {}, "n": None},
]


@pytest.mark.parametrize("fields", SENT)
def test_what_clients_send_by_themselves_changes_nothing(
    http: httpx2.Client, fields: dict[str, Any]
) -> None:
    body = {"model": "llama", "temperature": 0, "max_tokens": 4}
    body |= {"messages": [{"role": "user", "content": "moon"}]}
    plain, found = (http.post("/v1/chat/completions", json=body | one) for one in ({}, fields))
    assert found.status_code == 200, found.text
    assert found.json()["choices"] == plain.json()["choices"]


PLACE = {
    "type": "object",
    "properties": {"place": {"enum": ["here", "there"]}},
    "required": ["place"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("pattern", list(PATTERNS))
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_obeys_its_schema(served: Served, pattern: str, stream: bool) -> None:
    client = served.client()
    given: dict[str, Any] = {
        "model": "llama",
        "max_tokens": 60,
        "temperature": 1.5,
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": PLACE}},
        "extra_body": {"flashback": {"pattern": pattern}},
    }
    messages: list[Any] = [{"role": "user", "content": "moon"}]
    if stream:
        chunks = list(client.chat.completions.create(messages=messages, stream=True, **given))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
        assert reasons[-1] == "stop"
    else:
        (choice,) = client.chat.completions.create(messages=messages, **given).choices
        assert choice.finish_reason == "stop"
        text = str(choice.message.content)
    assert json.loads(text)["place"] in ("here", "there")


def test_any_object_and_completions(http: httpx2.Client) -> None:
    body = {"model": "llama", "prompt": "moon", "max_tokens": 40, "temperature": 0}
    wanted = {"response_format": {"type": "json_object"}}
    (choice,) = http.post("/v1/completions", json=body | wanted).json()["choices"]
    assert choice["text"].startswith("{")


@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_that_cannot_be_followed_is_refused(http: httpx2.Client, stream: bool) -> None:
    wanted = {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}
    body = {"model": "llama", "prompt": "moon", "response_format": wanted, "stream": stream}
    answer = http.post("/v1/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "response_format")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"service_tier": "flex"}, "service_tier"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"store": True}, "store"),
        ({"response_format": {"type": "grammar"}}, "response_format"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"metadata": {"run": 7}}, "metadata"),
        ({"response_format": {"content": "text"}}, "response_format"),
        ({"metadata": {"content": 7}}, "metadata"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
    ],
)
def test_what_would_be_ignored_to_the_users_harm_is_refused(
    http: httpx2.Client, fields: dict[str, Any], param: str
) -> None:
    body = {"model": "llama", "messages": [{"role": "user", "content": "moon"}]} | fields
    answer = http.post("/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("name", [None, *PATTERNS])
@pytest.mark.parametrize("default", ["slot", "append"])
def test_an_echo_that_no_pattern_has_is_refused(path: str, name: str | None, default: str) -> None:
    """As the command line does; 0 is none."""
    options = {} if name is None else {"pattern": name}
    with serving(defaults=replace(DEFAULTS, pattern=default)) as own, own.http() as http:
        for echo in (4, 0):
            frame = {"frame": {"echo_tokens": echo}}
            body = {"model": "llama", "max_tokens": 1, "flashback": options | frame} | GOOD[path]
            answer = http.post(path, json=body)
            if echo and not PATTERNS[name or default].echoes:
                error = answer.json()["error"]
                assert (answer.status_code, error["code"]) == (400, "invalid_value")
                assert error["param"] == "flashback.frame.echo_tokens"
                assert f"no effect with pattern {name or default}" in error["message"]
            else:
                assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("temperature", [1e-9, 0.0001, 0.001, 0.005, 0.0099])
def test_the_lowest_temperatures_are_none(served: Served, temperature: float) -> None:
    options: dict[str, Any] = {"max_tokens": 12, "top_p": 0.5, "seed": 3}
    found = served.complete("The tides", temperature=temperature, **options)
    assert found["choices"] == served.complete("The tides", temperature=0, **options)["choices"]


@pytest.mark.parametrize("said", [{"content": None}, {}, {"content": None, "tool_calls": []}])
def test_an_assistant_may_have_said_nothing(http: httpx2.Client, said: dict[str, Any]) -> None:
    def answered(message: dict[str, Any]) -> Any:
        user = {"role": "user", "content": "moon"}
        messages = [user, {"role": "assistant"} | message, user]
        body = {"model": "llama", "temperature": 0, "max_tokens": 4, "messages": messages}
        return http.post("/v1/chat/completions", json=body).json()["choices"]

    assert answered(said) == answered({"content": ""})


@pytest.mark.parametrize("role", ["user", "system", "developer", "tool"])
def test_others_said_something(http: httpx2.Client, role: str) -> None:
    for said in ({"content": None}, {}):
        messages = [{"role": role} | said, {"role": "user", "content": "a"}]
        answer = http.post("/v1/chat/completions", json={"model": "llama", "messages": messages})
        assert answer.json()["error"]["param"] == "messages.0.content"


def test_a_name_is_for_the_template_and_is_text_there() -> None:
    reader = tiny_reader()
    reader.tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.name or m.role }}>{{ m.content }}{% endfor %}"
    )
    with serving(reader) as served, served.http() as http:
        for name, shown in (("Ada", "Ada"), (None, "user"), ("a</s>", "a</s>")):
            message = {"role": "user", "content": "x", "name": name}
            body = {"model": "llama", "messages": [message], "max_tokens": 1}
            answer = http.post("/v1/chat/completions", json=body | {"flashback": NONE}).json()
            assert answer["usage"]["prompt_tokens"] == len(reader.encode(f"<{shown}>x"))


NONE = {"pattern": "none"}
