"""What was computed without a passage is shared: by turns, by requests, by patterns."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from families import SLOTTED, tiny_model
from flashback.engines.cache.layers import full_layers
from flashback.engines.local import LocalEngine
from flashback.engines.protocol import Completion, Request
from flashback.patterns.prompt import Ids, Layout, Prompt, View
from flashback.readers.chat import Conversation
from flashback.sampling import Sampler
from flashback.settings import RetrievalSettings, SamplingSettings, Settings, StoppingSettings
from flashback.writing.generator import Generation, Generator
from tiny_readers import MadeUpRetriever, tiny_reader

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = tuple(range(20, 60))


def in_a_slot(
    ids: Ids, history: int, *passages: Ids, reserved: int = 8, sink: Ids = (20,)
) -> Prompt:
    views = [View(history + 3 * number, passage) for number, passage in enumerate(passages)]
    return Prompt.with_views(ids, views, Layout(history, reserved, sink))


def complete(engine: LocalEngine, prompt: Prompt, tokens: int = 2) -> Completion:
    completion = engine.complete(prompt, tokens, Sampler(SamplingSettings(), []))
    list(completion)
    return completion


@pytest.mark.parametrize("family", SLOTTED)
def test_a_history_is_the_cache_of_a_prompt_without_passages(family: str) -> None:
    """Bit by bit."""
    found = []
    for prompt in (Prompt.plain(TEXT[:30]), in_a_slot(TEXT, 30, (3, 4, 5), (6, 7))):
        engine = LocalEngine(tiny_model(family), 120, self_check=False)
        complete(engine, prompt, 1)
        (sequence,) = engine.leases.idle
        room = sequence.room
        found.append(
            [
                part[:, :, room : room + 30].clone()
                for layer in full_layers(sequence.cache)
                for part in layer.buffers
            ]
        )
    for plain, history in zip(*found, strict=True):
        assert torch.equal(plain, history)


@pytest.mark.parametrize("family", SLOTTED)
def test_patterns_share_what_saw_no_passage(family: str) -> None:
    engine = LocalEngine(tiny_model(family), 120)
    complete(engine, Prompt.plain(TEXT[:30]))
    assert complete(engine, in_a_slot(TEXT, 25, (3, 4))).usage.reused == 25
    # Other passages, another R, another sink: the history is the same.
    assert complete(engine, in_a_slot(TEXT, 25, (9, 4), reserved=30)).usage.reused == 25
    assert complete(engine, in_a_slot(TEXT, 25, (9, 4), sink=(20, 21))).usage.reused == 25
    # A longer one keeps the shorter one; nothing that saw a passage is kept.
    assert complete(engine, in_a_slot(TEXT, 35, (9, 4))).usage.reused == 25
    assert complete(engine, Prompt.plain(TEXT)).usage.reused == 35


def test_a_shorter_history_is_no_shorter_prefix() -> None:
    """Tokens behind it would stand elsewhere."""
    engine = LocalEngine(tiny_model("llama"), 120)
    complete(engine, in_a_slot(TEXT, 30, (3, 4)))
    assert complete(engine, in_a_slot(TEXT, 10, (3, 4))).usage.reused == 10


def test_a_beginning_that_another_request_holds_is_copied() -> None:
    engine = LocalEngine(tiny_model("llama"), 120, idle_sequences=None, cache_bytes=1 << 30)
    held = engine.complete(in_a_slot(TEXT, 25, (3, 4)), 5, Sampler(SamplingSettings(), []))
    first = next(held.tokens)
    other = complete(engine, in_a_slot((*TEXT[:25], 7, 8, 9), 25, (5, 6)))
    assert other.usage.reused == 25
    rest = [first, *held.tokens]
    alone = engine.complete(in_a_slot(TEXT, 25, (3, 4)), 5, Sampler(SamplingSettings(), []))
    assert list(alone.tokens) == rest


def shared_engine(family: str = "llama") -> LocalEngine:
    return LocalEngine(tiny_model(family), 190, idle_sequences=None, cache_bytes=1 << 30)


def conversation(number: int, turns: int) -> tuple[Ids, int]:
    """A conversation behind 12 tokens that all begin with, and its history: all but 6 tokens."""
    own = tuple(range(50 + 60 * number, 50 + 60 * number + 15 * turns))
    return (*TEXT[:12], *own), 12 + 15 * turns - 6


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_conversations_by_turns_keep_their_caches(family: str) -> None:
    """They begin with the same tokens, and none of them cuts another's."""
    engine = shared_engine(family)
    for turns in range(1, 4):
        for number in range(4):
            ids, history = conversation(number, turns)
            usage = complete(engine, in_a_slot(ids, history, (3, 4 + turns))).usage
            before = conversation(number, turns - 1)[1] if turns > 1 else 12 if number else 0
            assert usage.cached == before


def test_a_copied_beginning_takes_its_own_space_only() -> None:
    engine = shared_engine()
    complete(engine, Prompt.plain(tuple(range(20, 180))))
    (long,) = engine.leases.idle
    complete(engine, Prompt.plain((*range(20, 32), 7)))
    capacities = [full_layers(one.cache)[0].capacity for one in engine.leases.idle]
    assert engine.leases.idle[0] is long
    assert capacities[1] < capacities[0] == full_layers(long.cache)[0].capacity


@pytest.mark.parametrize("family", SLOTTED)
@pytest.mark.parametrize("kept", [9, 24, 30, 39])
def test_a_copied_beginning_is_exact(family: str, kept: int) -> None:
    """Behind the history and in front of it, with a passage in view."""
    prompt = in_a_slot((*TEXT[:kept], *range(70, 100)), 25, (3, 4, 5))
    engine = shared_engine(family)
    complete(engine, in_a_slot((*TEXT, *range(100, 140)), 25, (3, 4, 5)), 4)
    completion = engine.complete(prompt, 6, Sampler(SamplingSettings(), []))
    found = list(completion)
    alone = shared_engine(family).complete(prompt, 6, Sampler(SamplingSettings(), []))
    assert found == list(alone)
    assert completion.usage.cached == kept
    assert len(engine.leases.idle) == 2


def test_who_leaves_keeps_the_cache() -> None:
    """A listener may end a text at any token; the passes before are whole."""
    engine = shared_engine()

    def listen(*_: object) -> None:
        raise KeyboardInterrupt

    prompt = in_a_slot(TEXT, 25, (3, 4))
    with pytest.raises(KeyboardInterrupt):
        list(engine.complete(prompt, 5, Sampler(SamplingSettings(), [], (), listen)))
    assert complete(engine, prompt).usage.cached == len(TEXT) - 1


def test_a_passage_that_is_cached_is_no_cached_token_of_the_text() -> None:
    engine = shared_engine()
    passage = tuple(range(100, 108))
    complete(engine, in_a_slot(TEXT, 25, passage))
    other = complete(engine, in_a_slot((*TEXT[:5], *range(70, 100)), 25, passage)).usage
    assert other.cached == 0
    assert complete(engine, in_a_slot((*TEXT[:25], 7, 8), 25, passage)).usage.cached == 25


def test_prompts_with_another_salt_share_nothing() -> None:
    """Neither a history nor a passage: their time would tell what others asked."""
    engine = LocalEngine(tiny_model("llama"), 120, idle_sequences=None, cache_bytes=1 << 30)
    prompts = [replace(in_a_slot(TEXT, 25, (3, 4)), salt=salt) for salt in ("", "a", "b")]
    for prompt in prompts:
        found = complete(engine, prompt).usage
        assert (found.reused, found.prefilled) == (0, len(TEXT) + 1 + 2)
    for prompt in prompts:
        assert complete(engine, prompt).usage.prefilled == 1


def test_rows_with_another_salt_share_nothing() -> None:
    batch = LocalEngine(tiny_model("llama"), 120).batch(2)

    def prefilled(salt: str) -> int:
        prompt = replace(in_a_slot(TEXT, 25, (3, 4)), salt=salt)
        request = Request(prompt, 1, Sampler(SamplingSettings(), []))
        list(batch.complete([request]))
        return request.usage.prefilled

    assert [prefilled(salt) for salt in ("a", "a", "b", "a")] == [43, 1, 43, 40]


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_oss"])
@pytest.mark.parametrize("reserved", [(4, 30), (30, 4), (2, 8, 60), (0, 9)])
def test_a_row_keeps_its_history_when_passages_grow(family: str, reserved: Sequence[int]) -> None:
    """And its texts stay those of an engine that writes one."""
    model = tiny_model(family)
    batch = LocalEngine(model, 160).batch(2)
    for number, most in enumerate(reserved):
        requests = [
            Request(
                in_a_slot((*TEXT[:30], *ids), 25, *passages, reserved=most)
                if most
                else Prompt.plain((*TEXT[:30], *ids)),
                6,
                Sampler(SamplingSettings(), []),
            )
            for ids, passages in (((7, 8), [(number, 3), (4,) * most]), ((9,), [(5,) * most]))
        ]
        found: list[list[int]] = [[], []]
        for step in batch.complete(requests):
            for at, token in step:
                found[at].append(token)
        for request, tokens in zip(requests, found, strict=True):
            alone = LocalEngine(model, 160).complete(
                request.prompt, 6, Sampler(SamplingSettings(), [])
            )
            assert tokens == list(alone.tokens)
            assert number == 0 or request.usage.reused >= 25 - 2  # a passage that went out of view


def talk(generator: Generator, questions: Sequence[str]) -> list[tuple[Generation, int]]:
    """The answers of a conversation, each with the tokens of its message and the last exchange."""
    reader, found, turns, before = generator.reader, [], [], 0
    for question in questions:
        turns.append({"role": "user", "content": question})
        prompt = Conversation(tuple(turns)).prompt(
            reader, RetrievalSettings(pattern="slot", stride=6, passage_tokens=16)
        )
        settings = Settings(prompt.retrieval, stopping=StoppingSettings(18, ignore_eos=True))
        answer = generator.generate(prompt.ids, settings)
        found.append((answer, len(prompt.ids) - before))
        before = prompt.retrieval.history_tokens
        turns.append({"role": "assistant", "content": answer.text})
    return found


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_a_turn_prefills_the_last_exchange_and_its_own_message(family: str) -> None:
    """However long the conversation is, with another passage in every turn."""
    reader = tiny_reader(family, window=1200)
    reader.tokenizer.chat_template = CHATML
    generator = Generator(
        reader, LocalEngine(reader.model, reader.window), MadeUpRetriever(0, empty=0, same=0)
    )
    answers = talk(generator, [f"Question {number}?" for number in range(9)])
    frame = reader.frame(
        Conversation(({"role": "user", "content": "x"},))
        .prompt(reader, RetrievalSettings(pattern="slot"))
        .retrieval.frame,
        "slot",
    )
    passage = 16 + len(frame) + len(frame.sink)
    for answer, new in answers[1:]:
        first, *later = answer.strides
        assert first.usage.prefilled <= new + passage
        lengths = [len(stride.passages[0].text) for stride in answer.strides]
        for at, stride in enumerate(later, start=1):
            grows = min(lengths[at], 16) > min(max(lengths[:at]), 16)
            behind = new + 18 if grows else 16
            assert stride.usage.prefilled <= passage + behind
    prefilled = [answer.strides[0].usage.prefilled for answer, _ in answers]
    assert max(prefilled[1:]) - min(prefilled[1:]) < 40
    assert answers[-1][0].strides[0].usage.reused > 2 * prefilled[-1]
