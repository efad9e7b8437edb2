"""Conversations in Python: turns, what outgrows the window, other settings between turns."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashback.engines.local import LocalEngine
from flashback.errors import ChatTemplateError, PromptTooLong, SettingsError
from flashback.patterns.registry import PATTERNS
from flashback.readers.chat import Conversation
from flashback.readers.messages import Message, message
from flashback.readers.text_reader import TextReader
from flashback.retrieval.protocol import Hit
from flashback.settings import RetrievalSettings, SearchOptions, Settings, StoppingSettings
from flashback.writing import chat
from flashback.writing.chat import ChatTurn
from flashback.writing.generator import Generator, TextPiece
from servers import TEMPLATE
from tiny_readers import tiny_reader

QUESTION = message("user", "Who built it?")
SYSTEM = message("system", "Be brief.")
WINDOW, ANSWER = 640, 8


class NamedAfterTheQuery:
    """A short passage for every query; keeps the queries."""

    def __init__(self) -> None:
        self.queries: list[str] = []

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        self.queries += queries
        return [[Hit(one[:8], "d", one[:8], one[:8], 1.0)] for one in queries]


def chatting(window: int = WINDOW) -> Generator:
    reader = tiny_reader(window=window)
    reader.tokenizer.chat_template = TEMPLATE
    return Generator(reader, LocalEngine(reader.model, window), NamedAfterTheQuery())


def asking(pattern: str = "none", tokens: int = ANSWER, *, truncate: bool = True) -> Settings:
    retrieval = RetrievalSettings(pattern, stride=8, passage_tokens=16)
    return Settings(retrieval, stopping=StoppingSettings(tokens), truncate=truncate)


def talk(exchanges: int, size: int = 40, *, system: bool = True) -> list[Message]:
    """Answered exchanges and a last question, each of so many characters."""
    answered = [
        message(role, f"{role[0]}{at}".ljust(size, "."))
        for at in range(exchanges)
        for role in ("user", "assistant")
    ]
    return [*([SYSTEM] if system else []), *answered, message("user", "last".ljust(size, "."))]


def cut_of(generator: Generator, messages: Sequence[Message], chosen: Settings) -> int:
    cut = generator.turn(Conversation(tuple(messages)), chosen).cut
    return 0 if cut is None else cut.messages


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_chat_is_the_generation_of_its_prompt(pattern: str) -> None:
    generator, chosen = chatting(), asking(pattern)
    prompt = Conversation((SYSTEM, QUESTION)).prompt(generator.reader, chosen.retrieval)
    result = generator.chat([SYSTEM, QUESTION], chosen)
    assert result.prompt_tokens == prompt.ids
    assert result.cut is None
    events = list(generator.stream_chat([SYSTEM, QUESTION], chosen))
    assert "".join(one.text for one in events if isinstance(one, TextPiece)) == result.text
    assert [hit.id for hit in result.sources] == (["Who buil"] if pattern != "none" else [])


def test_the_query_is_what_was_asked_and_answered() -> None:
    generator, chosen = chatting(), asking("append", 20)
    result = generator.chat([QUESTION, message("assistant", "Petra")], chosen)
    assert isinstance(generator.retriever, NamedAfterTheQuery)
    first, second, _ = generator.retriever.queries
    assert first == "Who built it?\nPetra"
    assert second == ("Who built it?\nPetra" + result.strides[0].text)[-32:]


def test_parts_of_text_are_taken_and_others_refused_by_name() -> None:
    generator = chatting()
    parts: Any = [{"type": "text", "text": "Who "}, {"type": "text", "text": "built it?"}]
    found = generator.chat([{"role": "user", "content": parts}], asking())
    assert found.tokens == generator.chat([QUESTION], asking()).tokens
    parts += [{"type": "image_url", "image_url": {}}]
    with pytest.raises(SettingsError, match=r"messages\.0\.content\.2: a part of type 'image_url'"):
        generator.chat([{"role": "user", "content": parts}], asking())
    with pytest.raises(ChatTemplateError, match="no user message"):
        generator.chat([SYSTEM], asking())


def test_an_outgrown_conversation_is_refused_or_goes_on_with_its_last_exchanges() -> None:
    generator, messages = chatting(), talk(9)
    with pytest.raises(PromptTooLong, match="truncate=True"):
        generator.chat(messages, asking(truncate=False))
    result = generator.chat(messages, asking())
    assert result.cut is not None
    assert result.cut.messages % 2 == 0
    kept = [SYSTEM, *messages[1 + result.cut.messages :]]
    assert result.prompt_tokens == Conversation(tuple(kept)).prompt_ids(generator.reader)
    assert len(result.prompt_tokens) <= result.cut.room
    assert result.cut.tokens == len(Conversation(tuple(messages)).prompt_ids(generator.reader))
    assert str(result.cut) == (
        f"the first {result.cut.messages} messages were left out: the conversation has "
        f"{result.cut.tokens} tokens, and {result.cut.room} fit beside the passages and the answer"
    )
    assert result.tokens == generator.chat(kept, asking()).tokens


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("system", [True, False])
def test_a_cut_stays_where_it_is_for_many_turns(pattern: str, system: bool) -> None:
    generator, chosen = chatting(), asking(pattern)
    cuts = [cut_of(generator, talk(turns, system=system), chosen) for turns in range(40)]
    assert cuts[0] == 0
    assert cuts == sorted(cuts)
    assert len(set(cuts[5:])) < 14  # of 35: it moves at most at every third turn
    for turns in range(40):
        prompt = generator.turn(Conversation(tuple(talk(turns))), chosen).prompt
        generator.check(prompt.ids, asking(pattern, truncate=False))


@given(sizes=st.lists(st.integers(1, 120), min_size=2, max_size=24), tokens=st.integers(1, 400))
@settings(max_examples=40, deadline=None)
def test_what_is_kept_fits_and_the_last_question_stays(sizes: list[int], tokens: int) -> None:
    generator, chosen = GENERATOR, asking(tokens=tokens)
    roles = ("user", "assistant")
    messages = [message(roles[at % 2], "x" * size) for at, size in enumerate(sizes)]
    turn = generator.turn(Conversation(tuple(messages)), chosen)
    generator.check(turn.prompt.ids, asking(tokens=tokens, truncate=False))
    whole = Conversation(tuple(messages)).prompt_ids(generator.reader)
    left_out = 0 if turn.cut is None else turn.cut.messages
    kept = Conversation(tuple(messages[left_out:])).prompt_ids(generator.reader)
    assert turn.prompt.ids == kept
    assert (left_out == 0) == (kept == whole)
    assert any(one["role"] == "user" for one in messages[left_out:])


GENERATOR = chatting()


@given(
    sizes=st.lists(st.integers(0, 200), min_size=1, max_size=40),
    system=st.none() | st.integers(0, 700),
    tokens=st.integers(1, 400),
    truncate=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_what_can_fit_is_the_same_whatever_is_counted_before_it_is_tokenized(
    sizes: list[int], system: int | None, tokens: int, truncate: bool
) -> None:
    """The reader's longest token has a character, so the limit is as low as it can be."""
    generator, chosen = GENERATOR, asking(tokens=tokens, truncate=truncate)
    roles = ("user", "assistant")
    first = [] if system is None else [message("system", "s" * system)]
    messages = [*first, *(message(roles[at % 2], "x" * size) for at, size in enumerate(sizes))]

    def found() -> ChatTurn | None:
        try:
            turn = generator.turn(Conversation(tuple(messages)), chosen)
            generator.check(turn.prompt.ids, asking(tokens=tokens, truncate=False))
        except PromptTooLong:
            return None
        return turn

    free = found()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat, "LONGEST_TOKEN", 1)
        counted = found()
    if free is None or counted is None:
        assert free is counted
        return
    left_out = 0 if counted.cut is None else counted.cut.messages
    kept = (*first, *messages[len(first) + left_out :])
    assert counted.prompt.ids == Conversation(kept).prompt_ids(generator.reader)
    assert (counted.cut is None) == (free.cut is None)
    if free.cut is None:
        assert counted.prompt.ids == free.prompt.ids
    elif counted.cut is not None and counted.cut.at_least:
        assert counted.cut.tokens <= free.cut.tokens
        assert "has at least" in str(counted.cut)
    else:
        assert counted.cut == free.cut


def test_a_cut_stays_where_it_is_in_conversations_that_are_not_tokenized_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chat, "LONGEST_TOKEN", 2)
    cuts = [cut_of(GENERATOR, talk(turns), asking()) for turns in range(60)]
    assert cuts == sorted(cuts)
    assert len(set(cuts[5:])) < 20  # of 55


Talk = Sequence[tuple[str, int, int]]
"""Roles, and how many messages of how many characters each has."""


@pytest.mark.parametrize(
    ("huge", "truncate", "fits"),
    [
        ([("user", 1, 4_000_000)], False, False),
        ([("user", 1, 4_000_000)], True, False),
        ([("system", 1, 4_000_000), ("user", 1, 9)], True, False),
        ([("user", 1, 9), ("assistant", 1, 4_000_000), ("user", 1, 9)], False, False),
        ([("user", 1, 9), ("assistant", 1, 4_000_000), ("user", 1, 9)], True, True),
        ([("user", 40_000, 1)], False, False),
        ([("user", 40_000, 1)], True, True),
        ([("user", 1, 9), ("assistant", 40_000, 1), ("user", 1, 9)], True, True),
        ([("user", 1, 9), ("assistant", 40_000, 1)], True, False),
    ],
)
def test_little_of_a_huge_conversation_is_tokenized(
    huge: Talk, truncate: bool, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    encode = TextReader.encode_template

    def counted(self: TextReader, text: str) -> list[int]:
        sizes.append(len(text))
        return encode(self, text)

    monkeypatch.setattr(TextReader, "encode_template", counted)
    messages = [message(role, "x" * size) for role, count, size in huge for _ in range(count)]
    conversation = Conversation(tuple(messages))
    if fits:
        turn = GENERATOR.turn(conversation, asking(truncate=truncate))
        assert turn.cut is not None
        assert max(sizes) < 2 * WINDOW * 128
        assert len(sizes) < 2 * WINDOW
    else:
        with pytest.raises(PromptTooLong, match=r"characters in \d+ messages?, which cannot fit"):
            GENERATOR.turn(conversation, asking(truncate=truncate))
        assert sum(sizes) < 100  # the frame


def test_other_settings_between_turns_are_those_of_the_next() -> None:
    generator, history = chatting(2048), [QUESTION]
    for pattern in ("slot", "append", "none", "prepend", "slot"):
        result = generator.chat(history, asking(pattern))
        fresh = chatting(2048).chat(history, asking(pattern))
        assert result.tokens == fresh.tokens
        history += [message("assistant", result.text), QUESTION]


def test_what_can_never_fit_is_refused_by_its_name() -> None:
    generator = chatting()
    long = message("user", "x" * 700)
    for pattern in ("none", "append"):
        with pytest.raises(PromptTooLong, match="the last message and the system's have 7"):
            generator.chat([SYSTEM, QUESTION, message("assistant", "a"), long], asking(pattern))
    with pytest.raises(PromptTooLong, match=r"system message has 700 tokens, but .* shorten it"):
        generator.chat([message("system", "x" * 700), QUESTION], asking("prepend"))
    with pytest.raises(PromptTooLong, match="the last message and the system's have 7"):
        generator.chat([message("system", "x" * 700), QUESTION], asking("slot"))
    with pytest.raises(SettingsError, match="passage_tokens"):
        generator.chat([SYSTEM, QUESTION], Settings(RetrievalSettings("slot", passage_tokens=600)))


def test_a_model_without_a_template_has_no_chats() -> None:
    plain = tiny_reader()
    generator = Generator(plain, LocalEngine(plain.model, plain.window), None)
    with pytest.raises(ChatTemplateError, match="no chat template"):
        generator.chat([QUESTION], asking())
