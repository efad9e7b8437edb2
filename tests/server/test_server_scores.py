"""Log-probabilities over the API: the same as in process, and where the strides are."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from flashback.corpus.documents import Document
from flashback.patterns.prompt import Ids
from flashback.patterns.registry import PATTERNS
from flashback.readers.reader import Reader
from flashback.scoring.examples import Arrangement
from flashback.scoring.lookup import Lookup, examples_of
from flashback.scoring.targets import TargetScorer
from flashback.scoring.windows import Cut, Window
from flashback.server.token_names import TokenName, TokenNames
from servers import DEFAULTS, QueryRetriever, Served, chat_reader, recomputed_scores, serving
from tiny_readers import tiny_reader

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


def sentencepiece_reader() -> Reader:
    """As Llama 2's: a space belongs to the word behind it, and none begins a text; or bytes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "▁the", "▁json", "▁a", "the", "s", "a"]
    model = models.BPE(
        {piece: at for at, piece in enumerate(pieces)},
        [],
        byte_fallback=True,
        unk_token="<unk>",
        ignore_merges=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=True)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    return dataclasses.replace(tiny_reader(), tokenizer=fast)


def test_a_tokens_name_has_its_space_and_its_bytes() -> None:
    reader = sentencepiece_reader()
    ids = reader.encode("the json ü")
    names = [TokenNames(reader)(token) for token in ids]
    joined = b"".join(name.bytes or b"" for name in names)
    assert joined.decode() == " the json ü"
    assert [name.text for name in names[:2]] == [" the", " json"]
    assert names[-1] == TokenName("<0xBC>", b"\xbc")
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
