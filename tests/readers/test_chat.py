"""Passages in the turns of chat templates, in the styles of well-known families."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from chat_templates import TEMPLATES
from flashback.engines.local import LocalEngine
from flashback.errors import ChatTemplateError, NoChatTemplate, SettingsError
from flashback.patterns.pattern import Boundary
from flashback.patterns.prompt import Ids
from flashback.patterns.registry import PATTERNS
from flashback.readers import text_reader
from flashback.readers.chat import ASKED, INSTRUCTION, Conversation
from flashback.readers.reader import Reader
from flashback.retrieval.protocol import Hit
from flashback.settings import (
    FrameText,
    RetrievalSettings,
    SearchOptions,
    Settings,
    StoppingSettings,
)
from flashback.writing.generator import Generator
from tiny_readers import tiny_reader

WITH_SYSTEM = ["chatml", "chatml with a default system", "llama 3", "gemma 3", "phi", "zephyr"]
QUESTION = {"role": "user", "content": "Who built it?"}
LATER = (
    QUESTION,
    {"role": "assistant", "content": "Petra did."},
    {"role": "user", "content": "And when?"},
)
PASSAGE = "It was built by Petra in 1874."


def chat_reader(style: str) -> Reader:
    reader = tiny_reader(window=4096)
    reader.tokenizer.chat_template = TEMPLATES[style]
    return reader


def arranged(reader: Reader, talk: Conversation, pattern: str, passage: Ids, new: Ids = ()) -> Ids:
    """The ids of a stride's prompt, behind `new` tokens of the answer."""
    prompt = talk.prompt(reader, RetrievalSettings(pattern=pattern))
    frame = reader.frame(prompt.retrieval.frame, pattern)
    bos = len(reader.bos) if prompt.ids[: len(reader.bos)] == reader.bos else 0
    reserved = PATTERNS[pattern].reserved(1, 64, frame)
    history = prompt.retrieval.history_tokens
    at = Boundary(prompt.ids + new, passage, frame, bos, reserved, history, prompt=len(prompt.ids))
    return PATTERNS[pattern].arrange(at).arranged


@pytest.mark.parametrize("style", TEMPLATES)
@pytest.mark.parametrize(("pattern", "user"), [("prepend", 0), ("slot", -1)])
@pytest.mark.parametrize("turns", [(QUESTION,), LATER])
def test_a_passage_before_the_text_stands_in_a_user_message(
    style: str, pattern: str, user: int, turns: tuple[dict[str, str], ...]
) -> None:
    """In the first one, or in the last, whose history then stays as it is."""
    reader = chat_reader(style)
    passage = tuple(reader.encode(PASSAGE))
    found = arranged(reader, Conversation(turns), pattern, passage)
    pasted = list(turns)
    content = f"{INSTRUCTION}{PASSAGE}{ASKED}{turns[user]['content']}"
    pasted[user] = {"role": "user", "content": content}
    assert found == Conversation(tuple(pasted)).prompt_ids(reader)


@pytest.mark.parametrize("style", TEMPLATES)
def test_history_is_what_precedes_the_last_user_message(style: str) -> None:
    reader, marked = chat_reader(style), "<here>"
    talk = Conversation(LATER)
    prompt = talk.prompt(reader, RetrievalSettings(pattern="slot"))
    turns = (*LATER[:-1], {"role": "user", "content": marked})
    before = reader.show(Conversation(turns).prompt_ids(reader)).partition(marked)[0]
    assert reader.show(prompt.ids[: prompt.retrieval.history_tokens]) == before


@pytest.mark.parametrize("style", WITH_SYSTEM)
@pytest.mark.parametrize("pattern", ["prepend", "slot"])
def test_the_system_message_stays_in_front(style: str, pattern: str) -> None:
    reader, system = chat_reader(style), {"role": "system", "content": "Answer in French."}
    talk = Conversation((system, QUESTION))
    found = arranged(reader, talk, pattern, tuple(reader.encode(PASSAGE)))
    content = f"{INSTRUCTION}{PASSAGE}{ASKED}{QUESTION['content']}"
    assert found == Conversation((system, {**QUESTION, "content": content})).prompt_ids(reader)


@pytest.mark.parametrize("style", TEMPLATES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_without_a_passage_the_prompt_is_the_templates(style: str, pattern: str) -> None:
    reader, talk = chat_reader(style), Conversation(LATER)
    assert arranged(reader, talk, pattern, ()) == talk.prompt_ids(reader)


@pytest.mark.parametrize("style", TEMPLATES)
def test_an_appended_passage_has_a_user_turn_between_two_of_the_assistant(style: str) -> None:
    reader, said = chat_reader(style), "Petra and"
    passage, new = tuple(reader.encode(PASSAGE)), tuple(reader.encode(said))
    found = arranged(reader, Conversation((QUESTION,)), "append", passage, new)
    turns = (
        QUESTION,
        {"role": "assistant", "content": said},
        {"role": "user", "content": INSTRUCTION + PASSAGE},
    )
    lead = "" if style != "mistral" else " "  # its template puts a space before an answer
    expected = reader.show(Conversation(turns).prompt_ids(reader)).replace(lead + said, said, 1)
    assert reader.show(found) == expected + said  # the echo: the answer, not the question


@pytest.mark.parametrize("system", ["Be brief.", "Answer as a sailor would. " * 9])
def test_a_slots_sink_is_how_the_conversation_begins(system: str) -> None:
    """All before the first user message; of a long system message the end."""
    reader = chat_reader("chatml")
    talk = Conversation(({"role": "system", "content": system}, *LATER))
    retrieval = talk.prompt(reader, RetrievalSettings(pattern="slot")).retrieval
    sink = reader.frame(retrieval.frame, "slot").sink
    shown = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n"
    whole = tuple(reader.encode_template(shown))
    assert talk.prompt_ids(reader)[: len(whole)] == whole
    assert sink == whole[-32:]


def test_what_was_asked_for_is_not_replaced() -> None:
    reader, talk = chat_reader("chatml"), Conversation((QUESTION,))
    for retrieval in (
        RetrievalSettings(pattern="none"),
        RetrievalSettings(pattern="append", frame=FrameText("(", ")", 4)),
    ):
        prompt = talk.prompt(reader, retrieval)
        assert prompt.retrieval == retrieval
        assert prompt.ids == talk.prompt_ids(reader)
    own = RetrievalSettings(pattern="slot", frame=FrameText("(", ")"))
    prompt = talk.prompt(reader, own)
    frame = prompt.retrieval.frame
    assert frame is not None
    assert (frame.before, frame.after, frame.sink) == ("(", ")", "<|im_start|>user\n")
    assert prompt.ids == talk.prompt_ids(reader)
    assert prompt.retrieval.history_tokens > 0
    marked = tiny_reader(marks=True)
    marked.tokenizer.chat_template = TEMPLATES["chatml"]
    asked = RetrievalSettings(pattern="append")
    assert talk.prompt(marked, asked).retrieval == asked


def test_an_echo_alone_changes_the_echo_of_the_turns() -> None:
    reader = chat_reader("chatml")
    asked = RetrievalSettings(pattern="append", frame=FrameText(echo_tokens=3))
    frame = Conversation((QUESTION,)).prompt(reader, asked).retrieval.frame
    assert frame is not None
    assert frame.echo_tokens == 3
    assert frame.before == "<|im_end|>\n<|im_start|>user\n" + INSTRUCTION


def test_templates_that_cannot_are_refused_in_one_line() -> None:
    talk, retrieval = Conversation((QUESTION,)), RetrievalSettings(pattern="slot")
    with pytest.raises(NoChatTemplate, match="has no chat template"):
        talk.prompt(tiny_reader(), retrieval)
    shouting = chat_reader("chatml")
    shouting.tokenizer.chat_template = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
    with pytest.raises(ChatTemplateError, match="does not show message 1 as it is"):
        talk.prompt(shouting, retrieval)
    with pytest.raises(ChatTemplateError, match="first user message"):
        talk.prompt(shouting, replace(retrieval, pattern="prepend"))
    with pytest.raises(ChatTemplateError, match="second user message"):
        talk.prompt(shouting, replace(retrieval, pattern="append"))
    with pytest.raises(ChatTemplateError, match="no user message"):
        Conversation(({"role": "system", "content": "x"},)).prompt(chat_reader("chatml"), retrieval)
    refusing = Conversation(({"role": "system", "content": "x"}, QUESTION))
    with pytest.raises(ChatTemplateError, match="System role not supported"):
        refusing.prompt(chat_reader("gemma"), retrieval)


@pytest.mark.parametrize("style", TEMPLATES)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("begun", ["Petra", "end", "Who built it?"])
def test_an_answer_that_was_begun_is_continued(style: str, pattern: str, begun: str) -> None:
    reader, answer = chat_reader(style), {"role": "assistant", "content": begun}
    open_turn = Conversation((QUESTION,)).prompt_ids(reader)
    talk = Conversation((QUESTION, answer))
    lead = " " if style == "mistral" else ""  # its template puts a space before an answer
    assert talk.prompt_ids(reader) == (*open_turn, *reader.encode(lead + begun))
    prompt = talk.prompt(reader, RetrievalSettings(pattern=pattern))
    assert reader.show(prompt.ids[-prompt.begun :]) == begun
    usual = RetrievalSettings(query_tokens=100)
    assert talk.query(reader, " did", usual) == f"Who built it?\n{begun} did"


def test_an_echo_repeats_the_answer_that_was_begun() -> None:
    reader, answer = chat_reader("chatml"), {"role": "assistant", "content": "Petra did"}
    talk, retrieval = Conversation((QUESTION, answer)), RetrievalSettings("append")
    settings = Settings(retrieval, stopping=StoppingSettings(1))
    generator = Generator(reader, LocalEngine(reader.model, reader.window), OnePassage())
    (stride,) = generator.chat(talk.messages, settings).strides
    assert reader.show(stride.arranged).endswith("<|im_start|>assistant\nPetra did")
    assert reader.show(stride.arranged).count("Petra did") == 2


def test_a_system_message_that_a_template_leaves_out_is_refused() -> None:
    reader = chat_reader("chatml")
    reader.tokenizer.chat_template = (
        "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
    )
    with pytest.raises(ChatTemplateError, match="leaves out the system message; put its text"):
        Conversation(({"role": "system", "content": "x"}, QUESTION)).prompt_ids(reader)


def test_the_texts_of_a_contents_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "Who "}, {"type": "text", "text": "built it?"}]
    assert Conversation.of([{"role": "user", "content": parts}]).messages == (QUESTION,)


PICTURE = {"type": "image_url", "image_url": {"url": "x"}}
WRONG: list[tuple[object, str]] = [
    ("hello", r"messages='hello': expected a list of"),
    (QUESTION, r"messages={.*}: expected a list of"),
    (3, r"messages=3: expected a list of"),
    (["hello"], r"messages\.0=.*: expected {'role'"),
    ([{"content": "x"}], r"messages\.0=.*: expected {'role'"),
    (
        [QUESTION, {"role": "user", "content": None}],
        r"messages\.1\.content=None: expected a text, or",
    ),
    ([{"role": "user", "content": []}], r"messages\.0\.content=\[\]: expected a text, or"),
    (
        [{"role": "user", "content": [PICTURE]}],
        r"messages\.0\.content\.0: a part of type 'image_url'",
    ),
    ([{"role": "user", "content": ["x"]}], r"messages\.0\.content\.0: a part of type 'str'"),
]


@pytest.mark.parametrize(("messages", "expected"), WRONG)
def test_what_is_no_message_is_refused_by_its_place(messages: object, expected: str) -> None:
    with pytest.raises(SettingsError, match=expected):
        Conversation.of(messages)
    with pytest.raises(ChatTemplateError, match="no user message"):
        Conversation.of([{"role": "assistant", "content": "x"}])


class OnePassage:
    """Finds the same passage for every query."""

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        return [[Hit("1", "1", "", PASSAGE, 1.0)] for _ in queries]


@pytest.mark.parametrize("style", ["chatml with a default system", "gemma"])
def test_a_slot_a_prepended_and_a_pasted_passage_are_answered_alike(
    style: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a slot that the passage fills, behind the whole head."""
    monkeypatch.setattr(text_reader, "_MOST_SINK", 999)
    reader = chat_reader(style)
    generator = Generator(reader, LocalEngine(reader.model, reader.window), OnePassage())
    content = f"{INSTRUCTION}{PASSAGE}{ASKED}{QUESTION['content']}"
    pasted = Conversation(({"role": "user", "content": content},)).prompt_ids(reader)
    expected = generator.generate(pasted, Settings(RetrievalSettings(pattern="none")))
    for pattern in ("prepend", "slot"):
        retrieval = RetrievalSettings(pattern=pattern, passage_tokens=len(reader.encode(PASSAGE)))
        prompt = Conversation((QUESTION,)).prompt(reader, retrieval)
        found = generator.generate(prompt.ids, Settings(prompt.retrieval))
        assert found.tokens == expected.tokens
