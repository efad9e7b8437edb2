"""Files of questions: what is read from them, what is refused, samples and solved examples."""

import json
from pathlib import Path
from typing import Any

import pytest

from flashback.errors import PromptsError
from flashback.questions.formats import Question, read_questions


def written(tmp_path: Path, content: object) -> Path:
    """A file with one JSON value, with a line each if it is a list, or with a text as it is."""
    path = tmp_path / "questions"
    lines = content if isinstance(content, list) else [content]
    text = content if isinstance(content, str) else "\n".join(map(json.dumps, lines))
    path.write_text(text, "utf-8")
    return path


def test_json_lines_and_nq_open(tmp_path: Path) -> None:
    lines = [
        {"question": "Who?", "answers": ["She", "she ", "She"], "id": "w", "passage": "She did."},
        {"question": "where is it", "answer": ["Here"]},  # NQ-open
        {"question": "Capital?", "answer": "Paris", "prompt": "The capital is", "other": 1},
        {"question": "Nobody knows", "answers": []},
    ]
    file = read_questions(written(tmp_path, lines))
    assert file.questions == (
        Question("w", "Who?", ("She", "she"), "She did."),
        Question(2, "where is it", ("Here",)),
        Question(3, "Capital?", ("Paris",), completion="The capital is"),
    )
    assert file.unanswerable == 1


def squad(title: Any = "Panthers", **changes: Any) -> dict[str, Any]:
    answer = {"text": "308", "answer_start": 3}
    asked = {"id": "a", "question": "How many?", "answers": [answer, answer]}
    never = {"id": "b", "question": "Why?", "answers": [], "is_impossible": True}
    paragraph = {"context": "It gave 308 points.", "qas": [asked | changes, never]}
    return {"version": "2.0", "data": [{"title": title, "paragraphs": [paragraph]}]}


def test_squad_with_unanswerable_questions(tmp_path: Path) -> None:
    file = read_questions(written(tmp_path, squad()))
    own = Question("a", "How many?", ("308",), "It gave 308 points.", "Panthers")
    assert (file.questions, file.unanswerable) == ((own,), 1)


def talk(*said: str, **more: Any) -> dict[str, Any]:
    """A line of a conversation: the user speaks first, and every second time."""
    roles = ("user", "assistant")
    messages = [{"role": roles[at % 2], "content": one} for at, one in enumerate(said)]
    return {"messages": messages, "answer": "yes", **more}


def test_conversations(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    lines = [
        talk("Hi", "Hello", "Who?", passages=["d1", "d2"], support="She did."),
        talk("Who?", support=None, passages=None),
        talk("Who?") | {"messages": [system, {"role": "user", "content": "Who?"}]},
    ]
    file = read_questions(written(tmp_path, lines))
    long, short, told = file.questions
    assert (long.text, long.history) == ("Who?", (("user", "Hi"), ("assistant", "Hello")))
    assert (long.sources, long.support) == (("d1", "d2"), ("She did.",))
    assert (short.history, short.sources) == ((), ())
    assert told.history == (("system", "Be brief."),)
    assert file.names_passages


@pytest.mark.parametrize(
    "content", [squad(None), [{"question": "a", "answer": "b", "title": None}]]
)
def test_a_title_that_is_null_is_none(tmp_path: Path, content: object) -> None:
    (question,) = read_questions(written(tmp_path, content)).questions
    assert question.title == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nothing of the kind\n", "line 1: not JSON; expected JSON lines"),
        ([1], "line 1: found no question; expected JSON lines"),
        ([{"question": "a"}], "line 1: found no answers"),
        ([{"question": "a", "answer": "b"}, {"question": "a", "answer": 3}], "line 2: found 3"),
        ([{"question": " ", "answer": "b"}], "where a text belongs"),
        ([talk("a", "b")], "line 1: expected a last message of the user, found one of role 'ass"),
        ([talk()], "line 1: expected a last message of the user, found none"),
        ([talk("a", question="b")], "found both a question and messages"),
        ([talk("a") | {"messages": "a"}], "messages='a': expected a list"),
        ([talk("a") | {"messages": [{"role": "user"}]}], "messages.0.content=None: expected"),
        (
            [talk("a") | {"messages": [{"role": "robot", "content": "a"}]}],
            "line 1: message 1 has the role 'robot'; expected user or assistant",
        ),
        ([talk("a\ud800")], "line 1: message 1 has half a character"),
        ([talk("a", passages=[3])], "found 3 where a text belongs"),
        ([talk(" ")], "where a text belongs"),
        ([{"question": "a", "answer": "b", "id": [2.5]}], "the id is neither"),
        ([{"question": "a", "answer": "b", "id": "x"}] * 2, "the id 'x' is that of line 1"),
        ([{"question": "a", "answers": []}], "found no question with an answer"),
        ("", "found no question with an answer"),
        ({"data": [{"paragraphs": [{"context": "a"}]}]}, "damaged (KeyError: 'qas')"),
        (squad(question=None), "damaged (ValueError: found null"),
        ([{"question": "a\ud800", "answer": "b"}], "line 1: a text has half a character"),
        ([{"question": "a", "answer": "b", "id": "\ud800"}], "line 1: the id has half a character"),
        ([{"question": "a", "answer": "b", "title": "\udfff"}], "the title has half a character"),
        (squad(id="x\ud800"), "damaged (ValueError: the id has half a character"),
        (squad(id=["x"]), "damaged (ValueError: the id is neither"),
        (squad("\ud800"), "damaged (ValueError: the title has half a character"),
    ],
)
def test_what_is_refused(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(PromptsError) as error:
        read_questions(written(tmp_path, content))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_bytes_and_paths_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bytes"
    path.write_bytes(b"ab\xff")
    for wrong, found in ((path, "not UTF-8 at byte 3"), (tmp_path, "a folder"), ("no", "no such")):
        with pytest.raises(PromptsError, match=found):
            read_questions(Path(wrong))


def test_samples_are_seeded_and_examples_are_other_questions(tmp_path: Path) -> None:
    lines = [{"question": f"q{n % 9}", "answer": f"a{n}"} for n in range(10)]
    file = read_questions(written(tmp_path, lines))
    some = file.sample(4, 1)
    assert some == file.sample(4, 1) != file.sample(4, 2)
    assert set(some) < set(file.sample(6, 1))
    assert [one.id for one in some] == sorted(int(one.id) for one in some)
    assert file.sample(0, 1) == file.sample(99, 1) == file.questions
    solved = file.solved(3, 0)
    for question in file.questions:
        shown = solved(question)
        assert len(shown) == 3
        assert question.text not in {one.text for one in shown}
    with pytest.raises(PromptsError, match="9 different questions; expected more than the 9"):
        file.solved(9, 0)


@pytest.mark.parametrize("seed", range(5))
def test_no_example_is_shown_twice(tmp_path: Path, seed: int) -> None:
    lines = [{"question": f"q{n % 5}", "answer": f"a{n}"} for n in range(40)]
    file = read_questions(written(tmp_path, lines))
    solved = file.solved(4, seed)
    for question in file.questions:
        others = {f"q{n}" for n in range(5)} - {question.text}
        assert {one.text for one in solved(question)} == others


def test_an_id_may_be_a_number_with_a_point(tmp_path: Path) -> None:
    asked = {"question": "Who?", "answer": "She"}
    file = read_questions(written(tmp_path, [asked | {"id": 1.0}, asked | {"id": 2.5}]))
    assert [one.id for one in file.questions] == [1.0, 2.5]
