"""Questions as examples to train on: what a reader with an adapter is asked, then the answer."""

from dataclasses import replace

import pytest

from chat_templates import TEMPLATES
from flashback.errors import PromptsError, PromptTooLong, SettingsError
from flashback.questions.examples import answer_example, training_examples
from flashback.questions.formats import Question
from flashback.questions.forms import Asking
from flashback.questions.passages import Asked
from flashback.questions.question_settings import Form
from flashback.readers.passages import passage_ids
from flashback.readers.reader import Reader
from flashback.retrieval.protocol import Hit
from flashback.settings import RetrievalSettings
from tiny_readers import deaf_reader, tiny_reader

MOON = Question("q1", "What is up?", ("the moon", "a lamp"), "The moon is up.", "Moon")
TALK = replace(MOON, id="q2", history=(("user", "Hello!"), ("assistant", "Yes?")))
HITS = (Hit("h", "d", "Moon", "The moon is up.", 1.0),)
ASKED = [Asked(one, HITS, "The moon is up.") for one in (MOON, TALK)]


def chat_reader(*, marks: bool = False, window: int = 512) -> Reader:
    reader = tiny_reader(marks=marks, window=window)
    reader.tokenizer.chat_template = TEMPLATES["chatml"]
    return reader


def retrieval_of(pattern: str) -> RetrievalSettings:
    return RetrievalSettings(pattern, passage_tokens=12, passages=2)


@pytest.mark.parametrize("pattern", ["none", "prepend", "append", "slot"])
@pytest.mark.parametrize("form", [Form.CHAT, Form.QUESTION, Form.FEW_SHOT])
def test_a_reader_is_trained_on_what_it_is_asked(form: Form, pattern: str) -> None:
    plain, adapted = chat_reader(), chat_reader(marks=True)
    retrieval, asking = retrieval_of(pattern), Asking(form, lambda _: [MOON])
    every = ASKED if form is Form.CHAT else ASKED[:1]
    found = training_examples(every, asking, plain, retrieval, 2)
    for asked, example in zip(every, found, strict=True):
        prompt = asking.prompt(adapted, asked.question, retrieval=retrieval)
        answer = asking.answer_ids(adapted, asked.question)
        assert adapted.decode(answer).strip() == "the moon"
        (end,) = plain.eos
        assert example == answer_example(
            adapted, asked, prompt, (*answer, end), shown=pattern != "none"
        )
        (cut,) = example.window.cuts
        assert example.window.targets(cut) == (*answer, end)
        shown = passage_ids(plain, ["The moon is up."], retrieval)
        assert example.passages == ((),) if pattern == "none" else (shown,)
    if form is Form.CHAT and pattern == "slot":
        assert [example.history > 0 for example in found] == [True, True]
        assert found[0].history < found[1].history  # the turns before see no passage


def test_what_does_not_fit_is_refused_with_its_question() -> None:
    retrieval, asking = retrieval_of("append"), Asking(Form.QUESTION)
    (example,) = training_examples(ASKED[:1], asking, chat_reader(), retrieval, 2)
    fits = len(example.window.ids) + len(example.passages[0]) + 2
    assert training_examples(ASKED[:1], asking, chat_reader(window=fits), retrieval, 2)
    with pytest.raises(PromptTooLong, match=rf"question 'q1': .* needs {fits} positions"):
        training_examples(ASKED[:1], asking, chat_reader(window=fits - 1), retrieval, 2)


def test_a_slot_needs_all_its_positions() -> None:
    retrieval, asking = retrieval_of("slot"), Asking(Form.QUESTION)
    (example,) = training_examples(ASKED[:1], asking, chat_reader(), retrieval, 2)
    fits = len(example.window.ids) + 24 + 2
    with pytest.raises(PromptTooLong, match=rf"needs {fits} positions"):
        training_examples(ASKED[:1], asking, chat_reader(window=fits - 1), retrieval, 2)


def test_an_answer_needs_tokens_and_an_end() -> None:
    retrieval, asking = retrieval_of("none"), Asking(Form.QUESTION)
    silent = [Asked(Question("q9", "Who?", ("xx",)), (), "")]
    with pytest.raises(PromptsError, match=r"question 'q9': the right answer 'xx' has no tokens"):
        training_examples(silent, asking, deaf_reader("x "), retrieval, 0)
    endless = chat_reader()
    endless.model.generation_config.eos_token_id = None
    endless.tokenizer.eos_token = None
    with pytest.raises(SettingsError, match="no token that ends a text"):
        training_examples(ASKED[:1], asking, endless, retrieval, 0)
