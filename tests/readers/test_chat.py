"""Passages in the turns of chat templates, in the styles of well-known families."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from flashback.engines.local import LocalEngine
from flashback.errors import ChatTemplateError, NoChatTemplate, SettingsError
from flashback.patterns.pattern import Boundary
from flashback.patterns.prompt import Ids
from flashback.patterns.registry import PATTERNS
from flashback.readers.chat import INSTRUCTION, Conversation
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

_NO_SYSTEM = "{{ raise_exception('System role not supported') }}"
TEMPLATES = {
    "chatml": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "chatml with a default system": "{% for m in messages %}"
    "{% if loop.first and m.role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "llama 3": "{{ bos_token }}{% for m in messages %}"
    "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
    "gemma": "{{ bos_token }}{% if messages[0].role == 'system' %}" + _NO_SYSTEM + "{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    "gemma 3": "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{% set first = messages[0].content + '\n\n' %}{% set rest = messages[1:] %}"
    "{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ first if loop.first }}{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    "mistral": "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
    "[INST] {{ m.content }} [/INST]{% elif m.role == 'assistant' %} {{ m.content }}</s>"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported') }}{% endif %}"
    "{% endfor %}",
    "phi": "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}<|endoftext|>{% endif %}",
    "zephyr": "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    "documents": "{{ bos_token }}{% if documents %}{% for d in documents %}"
    "<|document|>{{ d.text }}<|end|>{% endfor %}{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}",
}
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
    at = Boundary(prompt.ids + new, passage, frame, bos, reserved, prompt=len(prompt.ids))
    return PATTERNS[pattern].arrange(at).arranged


@pytest.mark.parametrize("style", TEMPLATES)
@pytest.mark.parametrize("pattern", ["prepend", "slot"])
@pytest.mark.parametrize("turns", [(QUESTION,), LATER])
def test_a_passage_before_the_text_stands_in_the_first_user_message(
    style: str, pattern: str, turns: tuple[dict[str, str], ...]
) -> None:
    reader = chat_reader(style)
    found = arranged(reader, Conversation(turns), pattern, tuple(reader.encode(PASSAGE)))
    content = f"{INSTRUCTION}{PASSAGE}\n\n{turns[0]['content']}"
    pasted = Conversation(({"role": "user", "content": content}, *turns[1:]))
    assert found == pasted.prompt_ids(reader)


@pytest.mark.parametrize("style", WITH_SYSTEM)
@pytest.mark.parametrize("pattern", ["prepend", "slot"])
def test_the_system_message_stays_in_front(style: str, pattern: str) -> None:
    reader, system = chat_reader(style), {"role": "system", "content": "Answer in French."}
    talk = Conversation((system, QUESTION))
    found = arranged(reader, talk, pattern, tuple(reader.encode(PASSAGE)))
    content = f"{INSTRUCTION}{PASSAGE}\n\n{QUESTION['content']}"
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


def test_what_was_asked_for_is_not_replaced() -> None:
    reader, talk = chat_reader("chatml"), Conversation((QUESTION,))
    for retrieval in (
        RetrievalSettings(pattern="none"),
        RetrievalSettings(pattern="slot", frame=FrameText("(", ")")),
        RetrievalSettings(pattern="append", frame=FrameText("(", ")", 4)),
    ):
        prompt = talk.prompt(reader, retrieval)
        assert prompt.retrieval == retrieval
        assert prompt.ids == talk.prompt_ids(reader)
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
    with pytest.raises(ChatTemplateError, match="first user message"):
        talk.prompt(shouting, retrieval)
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
    assert talk.query(reader, " did", 100) == f"Who built it?\n{begun} did"


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
    ("hello", r"messages: expected a list of"),
    (QUESTION, r"messages: expected a list of"),
    (3, r"messages: expected a list of"),
    (["hello"], r"messages\.0: expected {'role'"),
    ([{"content": "x"}], r"messages\.0: expected {'role'"),
    ([QUESTION, {"role": "user", "content": None}], r"messages\.1\.content: expected a text, or"),
    ([{"role": "user", "content": []}], r"messages\.0\.content: expected a text, or"),
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
def test_a_slot_a_prepended_and_a_pasted_passage_are_answered_alike(style: str) -> None:
    reader = chat_reader(style)
    generator = Generator(reader, LocalEngine(reader.model, reader.window), OnePassage())
    content = f"{INSTRUCTION}{PASSAGE}\n\n{QUESTION['content']}"
    pasted = Conversation(({"role": "user", "content": content},)).prompt_ids(reader)
    expected = generator.generate(pasted, Settings(RetrievalSettings(pattern="none")))
    for pattern in ("prepend", "slot"):
        prompt = Conversation((QUESTION,)).prompt(reader, RetrievalSettings(pattern=pattern))
        found = generator.generate(prompt.ids, Settings(prompt.retrieval))
        assert found.tokens == expected.tokens
