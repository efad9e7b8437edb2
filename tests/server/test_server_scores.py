"""Log-probabilities over the API: the same as in process, and where the strides are."""

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from flashback.corpus.documents import Document
from flashback.patterns.prompt import Ids
from flashback.patterns.registry import PATTERNS
from flashback.readers.reader import Reader
from flashback.scoring.examples import Arrangement
from flashback.scoring.lookup import Lookup, examples_of
from flashback.scoring.targets import TargetScorer
from flashback.scoring.windows import Cut, Window
from flashback.server.token_names import TokenName, TokenNames, name_of
from gguf_files import gemma_tokenizer
from servers import DEFAULTS, QueryRetriever, Served, chat_reader, recomputed_scores, serving
from tiny_readers import sentencepiece_reader, tiny_reader

TEXT = "The tides follow the moon, which pulls the water of the ocean towards it."
BOUNDARY = 12


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(chat_reader(window=400)) as found:
        yield found


def scored(served: Served, prompt: Any = TEXT, pattern: str = "append", **fields: Any) -> Any:
    """The text scored, with a grid that begins early."""
    options = {"pattern": pattern, "first_boundary": BOUNDARY}
    asked: Any = {"echo": True, "logprobs": 3, "max_tokens": 0, "flashback": options}
    return served.complete(prompt, **asked | fields)


def as_eval_scores(reader: Reader, ids: Ids, pattern: str) -> list[float]:
    """What `flashback eval` computes for the targets of one window whose strides begin there."""
    settings = DEFAULTS
    boundaries = range(BOUNDARY, len(ids) - settings.stride + 1, settings.stride)
    document = Document("", "", reader.decode(ids))
    window = Window(document, ids, 1, tuple(map(Cut, boundaries)), settings.stride)
    found = list(Lookup(reader, QueryRetriever(), settings).search([window]))
    examples = examples_of([window], found, reader, settings)
    shown = Arrangement(pattern, reader.frame(settings.frame, pattern), reader.forbidden)
    with torch.inference_mode():
        rows = TargetScorer(reader.model).log_probs(examples, shown)[0]
    return [float(value) for value in rows.flatten()]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_given_texts_score_as_in_eval(served: Served, pattern: str) -> None:
    reader = served.reader
    ids = tuple(reader.encode_prompt(TEXT))
    expected = as_eval_scores(reader, ids, pattern)
    found = scored(served, pattern=str(pattern))["choices"][0]["logprobs"]["token_logprobs"]
    assert len(found) == len(ids) - 1  # BOS is not the client's
    own = found[BOUNDARY - 1 :][: len(expected)]
    assert own == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("pattern", ["none", "prepend", "append"])
def test_given_texts_score_as_recomputed_stride_by_stride(served: Served, pattern: str) -> None:
    ids = tuple(served.reader.encode_prompt(TEXT))
    expected = recomputed_scores(served.reader, ids, pattern, BOUNDARY)
    found = scored(served, pattern=str(pattern))["choices"][0]["logprobs"]["token_logprobs"]
    assert found == pytest.approx(expected, abs=1e-4)


def test_the_strides_of_a_given_text_tile_it_with_their_passages(served: Served) -> None:
    answer = scored(served)
    assert answer["choices"][0]["text"] == TEXT
    strides = answer["flashback"]["strides"]
    ends = [0, *(stride["end"] for stride in strides)]
    assert [stride["start"] for stride in strides] == ends[:-1]
    assert ends[-1] == len(TEXT)
    assert strides[0]["passages"] == []
    assert strides[0]["end"] == BOUNDARY - 1  # one byte a token, BOS apart
    assert all(stride["passages"] and stride["scored"] for stride in strides[1:])


def test_log_probabilities_of_what_is_written_are_those_of_the_text(served: Served) -> None:
    """Written and then scored at the same strides, it is the same text."""
    written = served.complete(TEXT[:11], max_tokens=8, logprobs=2)["choices"][0]
    log_probs = written["logprobs"]
    assert len(log_probs["token_logprobs"]) == 8
    assert all(len(top) in (2, 3) for top in log_probs["top_logprobs"])
    best = [max(top.values()) for top in log_probs["top_logprobs"]]
    assert best == pytest.approx(log_probs["token_logprobs"], abs=1e-6)  # greedy
    starts = log_probs["text_offset"]
    assert starts == sorted(starts)


@pytest.mark.parametrize("pattern", ["none", "append"])
def test_the_requests_of_an_evaluation_harness(served: Served, pattern: str) -> None:
    """What lm-eval's local-completions sends, and how it reads the answer.

    A batch of ids, echoed with one token more, of whose log-probabilities it drops the last; a
    continuation's log-likelihood is the sum behind the context's length.
    """
    reader = served.reader
    pairs = [("The tides follow", " the moon"), ("A socket", " reaches the network: it connects")]
    context = [reader.encode_prompt(one) for one, _ in pairs]
    batch = [ids + reader.encode(end) for ids, (_, end) in zip(context, pairs, strict=True)]
    answer = served.complete(
        batch,
        max_tokens=1,
        logprobs=1,
        echo=True,
        seed=1234,
        flashback={"pattern": pattern, "first_boundary": BOUNDARY},
    )
    for choice, ids, before in zip(answer["choices"], batch, context, strict=True):
        log_probs = choice["logprobs"]["token_logprobs"]
        assert len(log_probs) == len(ids) + 1
        assert log_probs[0] is None
        direct = scored(served, [ids], pattern)["choices"][0]["logprobs"]["token_logprobs"]
        likelihood = sum(log_probs[len(before) : -1])
        assert math.isfinite(likelihood)
        assert likelihood == pytest.approx(sum(direct[len(before) :]), abs=1e-4)


def test_a_text_is_scored_up_to_the_window_and_not_beyond(served: Served) -> None:
    window = served.reader.window
    answer = scored(served, [[5] * window], "none")
    assert len(answer["choices"][0]["logprobs"]["tokens"]) == window
    with served.http() as http:
        body = {
            "model": "llama",
            "prompt": [5] * (window + 1),
            "echo": True,
            "logprobs": 0,
            "max_tokens": 0,
            "flashback": {"pattern": "none"},
        }
        refused = http.post("/v1/completions", json=body)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"


def test_the_bytes_of_a_chats_tokens_are_the_texts(served: Served) -> None:
    """Of a model that writes nothing but parts of characters, too."""
    messages: Any = [{"role": "user", "content": "ü 🙂"}]
    for seed in range(5):
        answer = served.client().chat.completions.create(
            model="llama", messages=messages, max_tokens=12, logprobs=True, seed=seed
        )
        log_probs, text = answer.choices[0].logprobs, answer.choices[0].message.content
        assert log_probs is not None
        assert text is not None
        own = b"".join(bytes(token.bytes or ()) for token in log_probs.content or ())
        assert own.decode("utf-8", "replace").startswith(text.rstrip("\ufffd"))


def test_a_tokens_name_has_its_space_and_its_bytes() -> None:
    reader = sentencepiece_reader()
    ids = reader.encode("the json ü")
    names = [TokenNames(reader)(token) for token in ids]
    joined = b"".join(name.bytes or b"" for name in names)
    assert joined.decode() == " the json ü"
    assert [name.text for name in names[:2]] == [" the", " json"]
    assert names[-1] == TokenName("\\xbc", b"\xbc")
    assert names[-1].in_completions == "bytes:\\xbc"
    assert TokenNames(reader)(2) == TokenName("</s>", None)
    assert TokenNames(tiny_reader())(0) == TokenName("<s>", None)


def test_a_special_token_that_was_spelled_takes_its_place(served: Served) -> None:
    log_probs = scored(served, "ab</s>cd", "none")["choices"][0]["logprobs"]
    assert log_probs["tokens"] == ["a", "b", "</s>", "c", "d"]
    assert log_probs["text_offset"] == [0, 1, 2, 6, 7]


def test_a_chat_tells_log_probabilities(served: Served) -> None:
    messages: Any = [{"role": "user", "content": "moon"}]
    answer = served.client().chat.completions.create(
        model="llama", messages=messages, max_tokens=5, logprobs=True, top_logprobs=2, temperature=0
    )
    log_probs = answer.choices[0].logprobs
    assert log_probs is not None
    assert log_probs.content is not None
    assert [len(token.top_logprobs) for token in log_probs.content] == [2] * 5
    assert all(token.logprob == token.top_logprobs[0].logprob for token in log_probs.content)


def test_a_bos_that_the_client_writes_is_the_only_one(served: Served) -> None:
    """People who fill templates themselves send it: one continuation, one score, its own text."""
    written = served.complete("<s>" + TEXT, max_tokens=8)
    plain = served.complete(TEXT, max_tokens=8)
    assert written["choices"][0]["text"] == plain["choices"][0]["text"]
    assert written["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"]
    (found,), (expected,) = scored(served, "<s>" + TEXT)["choices"], scored(served)["choices"]
    assert found["text"] == "<s>" + TEXT
    assert found["logprobs"]["tokens"] == ["<s>", *expected["logprobs"]["tokens"]]
    assert found["logprobs"]["token_logprobs"] == [None, *expected["logprobs"]["token_logprobs"]]
    moved = [0, *(3 + offset for offset in expected["logprobs"]["text_offset"])]
    assert found["logprobs"]["text_offset"] == moved


def test_ids_stay_as_they_are(served: Served) -> None:
    ids = [0, 0, *served.reader.encode("The tides")]
    assert served.complete(ids, max_tokens=1)["usage"]["prompt_tokens"] == len(ids)
    assert len(scored(served, ids)["choices"][0]["logprobs"]["tokens"]) == len(ids)


PARTS = [
    *("ü 🙂", "🙂🙂", "雪 falls", "a\\b é\\", "the \ufffd json", "ص"),
    *("the\n\u2028", "e\u0301 🏳️‍🌈", "한국어\tthe", "bytes:\\xd8 é"),
]


def joined(tokens: list[str]) -> bytes:
    """The text that a client makes of the tokens of a completion."""

    def own(token: str) -> bytes:
        if not token.startswith("bytes:"):
            return token.encode()
        parts = re.findall(r"\\x([0-9a-f]{2})|(.)", token.removeprefix("bytes:"), re.DOTALL)
        return b"".join(bytes.fromhex(code) if code else char.encode() for code, char in parts)

    return b"".join(map(own, tokens))


@pytest.mark.parametrize("text", PARTS)
@pytest.mark.parametrize("kind", ["bytes", "sentencepiece", "gemma"])
def test_the_tokens_of_a_completion_joined_are_its_text_and_offsets_agree(
    kind: str, text: str
) -> None:
    if kind == "gemma":
        reader = replace(tiny_reader(), tokenizer=gemma_tokenizer())
    else:
        reader = sentencepiece_reader() if kind == "sentencepiece" else chat_reader()
    with serving(reader) as served:
        log_probs = scored(served, text, "none")["choices"][0]["logprobs"]
    tokens, offsets = log_probs["tokens"], log_probs["text_offset"]
    assert joined(tokens).decode() == text
    assert not any(set(token) & set("ØĠðŁĻĤÃ¼") for token in tokens)
    if "\ufffd" in text:  # held back until the next token: it may be a part of a character
        return
    for at, (token, offset) in enumerate(zip(tokens, offsets, strict=True)):
        if not token.startswith("bytes:"):
            assert text[offset : offset + len(token)] == token
        assert joined(tokens[:at]).decode("utf-8", "ignore") == text[:offset]


def test_tokens_that_are_written_are_named_alike() -> None:
    """An engine that writes the first bytes of a character, then others, and a whole one."""
    reader = chat_reader()
    ids = [*reader.encode("🙂")[:3], *reader.encode("é a")]
    names = [TokenNames(reader)(token).in_completions for token in ids]
    expected = ["\\xf0", "\\x9f", "\\x99", "\\xc3", "\\xa9"]
    assert names == [*(f"bytes:{one}" for one in expected), " ", "a"]


@pytest.mark.parametrize(
    ("own", "shown"),
    [
        (b"\xd8", "bytes:\\xd8"),
        (b" \xf0\x9f", "bytes: \\xf0\\x9f"),
        (b"\\\xf0", "bytes:\\x5c\\xf0"),
        (b"\n\xc3", "bytes:\\x0a\\xc3"),
        ("é".encode() + b"\xe2", "bytes:\\xc3\\xa9\\xe2"),
        ("é".encode(), "é"),
        ("\ufffd".encode(), "\ufffd"),
        (b"", ""),
    ],
)
def test_bytes_are_shown_as_openai_shows_them(own: bytes, shown: str) -> None:
    assert name_of(own).in_completions == shown
    assert joined([shown]) == own
