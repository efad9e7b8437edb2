"""Conversations in `eval qa`: their prompts, the passages of their turns, what is prefilled."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashback.engines.local import LocalEngine
from flashback.errors import PromptsError, SettingsError
from flashback.patterns.prompt import Prompt
from flashback.questions.answers import Respondent
from flashback.questions.formats import Question
from flashback.questions.forms import Asking, Pasted, settled_form
from flashback.questions.passages import Asked, look_up
from flashback.questions.question_settings import Form
from flashback.questions.replay import Turn, counting_engine, replay
from flashback.questions.rows import Row, rows_of
from flashback.questions.table import AnswerTable
from flashback.readers.reader import Reader
from flashback.readers.text_reader import TextReader
from flashback.retrieval.protocol import Hit, Retriever
from flashback.settings import RetrievalSettings, SearchOptions, Settings, StoppingSettings
from flashback.writing.generator import Generator
from tiny_readers import tiny_reader

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
PATTERNS = ("none", "prepend", "append", "slot")
RETRIEVAL = RetrievalSettings("none", passage_tokens=24)
SETTINGS = Settings(retrieval=RETRIEVAL, stopping=StoppingSettings(max_new_tokens=4))
TALK = Question(
    "t", "And she?", ("Ada",), None, history=(("user", "Who?"), ("assistant", "He was."))
)
NAMES = ["plain RAG", "plain RAG, kept", *PATTERNS]


@pytest.fixture(scope="module")
def reader() -> Reader:
    from families import tiny_model

    own = tiny_reader(model=tiny_model("llama", max_position_embeddings=900), window=900)
    own.tokenizer.chat_template = TEMPLATE
    return own


def open_writer(reader: TextReader, retriever: Retriever) -> Generator:
    assert isinstance(reader, Reader)
    return Generator(reader, LocalEngine(reader.model, reader.window), retriever)


class Shelf:
    """Finds a passage that names the query, and lists two parts of each document."""

    def __init__(self, *documents: str) -> None:
        self._documents = documents

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        return [[Hit(one, one, "", f"On {one}", 1.0)] if one.strip() else [] for one in queries]

    def every(self) -> Iterator[Hit]:
        parts = [(name, part) for name in self._documents for part in (1, 2)]
        return (Hit(f"{name}{part}", name, "", f"{name} {part}", 0.0) for name, part in parts)


def respondents(reader: Reader) -> list[Respondent]:
    rows = rows_of(PATTERNS, (), conversations=True)
    assert [row.name for row in rows] == NAMES

    def of(row: Row) -> Respondent:
        own = replace(row.given(Form.CHAT, RETRIEVAL), stride=4)
        return Respondent(row, reader, replace(SETTINGS, retrieval=own), Asking(Form.CHAT))

    return [of(row) for row in rows]


def test_histories_are_clean_unless_passages_are_kept(reader: Reader) -> None:
    (asked,) = look_up([TALK], Shelf(), reader, RETRIEVAL)
    before, last = asked.turns
    assert (before.shown, last.shown) == ("On Who?", "On And she?")
    assert before.question.answers == ("He was.",)
    prompts = [reader.decode(one._prompt(asked).ids) for one in respondents(reader)]
    context = "Use the context to answer the question.\n\nContext: On {0}\n\nQuestion: {0}"
    pasted = [context.format(one) for one in ("Who?", "And she?")]
    assert prompts[0] == f"<user>Who?<assistant>He was.<user>{pasted[1]}<assistant>"
    assert prompts[1] == f"<user>{pasted[0]}<assistant>He was.<user>{pasted[1]}<assistant>"
    assert prompts[5] == prompts[2] == "<user>Who?<assistant>He was.<user>And she?<assistant>"
    slot = respondents(reader)[5]._prompt(asked).retrieval
    assert reader.decode(slot_history(reader, asked, slot.history_tokens)).endswith("He was.<user>")


def slot_history(reader: Reader, asked: Asked, tokens: int) -> Sequence[int]:
    return respondents(reader)[5]._prompt(asked).ids[:tokens]


texts = st.text("ab ", max_size=6)
talks = st.lists(st.tuples(texts, texts), max_size=4)


@settings(max_examples=12, deadline=None)
@given(st.lists(talks, min_size=1, max_size=3))
def test_the_counting_engine_counts_as_the_readers_own(
    reader: Reader, spoken: list[list[tuple[str, str]]]
) -> None:
    """In every row, for turns without answers and passages, and passages that come again."""
    engine, counting = LocalEngine(reader.model, reader.window), counting_engine(reader)
    assert counting is not None
    for turns in spoken:
        said = [one for asks, replies in turns for one in (("user", asks), ("assistant", replies))]
        question = Question("q", "a b", ("b",), history=tuple(said))
        (asked,) = look_up([question], Shelf(), reader, RETRIEVAL)
        for one in respondents(reader):
            replays = [one._replayed(asked, each) for each in (engine, counting)]
            assert replays[0] == replays[1]
            assert replays[0]["turns"] == len(turns) + 1


def test_a_reader_with_sliding_windows_counts_for_itself() -> None:
    """How far back its cache can be cut depends on its layers."""
    from families import tiny_model

    assert counting_engine(tiny_reader(model=tiny_model("gemma3"))) is None


def test_what_each_row_must_prefill(reader: Reader) -> None:
    """Kept passages and none continue the cache; else the last exchange is prefilled again."""
    (asked,) = look_up([TALK], Shelf(), reader, RETRIEVAL)
    engine = LocalEngine(reader.model, reader.window)
    costs = {one.row.name: one._replayed(asked, engine) for one in respondents(reader)}
    none = costs["none"]
    first, last = asked.turns
    (plain,) = [one for one in respondents(reader) if one.row.name == "none"]
    sizes = [len(plain._prompt(one).ids) for one in (first, last)]
    assert none["prefilled"] == sizes[1] - len("He was.")  # bytes: written there
    assert none["prompt_tokens"] == sizes[1]
    assert none["prefilled"] < costs["plain RAG, kept"]["prefilled"]
    assert costs["plain RAG, kept"]["prefilled"] < costs["plain RAG"]["prefilled"]
    assert costs["plain RAG"]["prompt_tokens"] < costs["plain RAG, kept"]["prompt_tokens"]
    whole = replay([Turn(engine_prompt(plain, last), ())], engine)
    assert whole.prefilled == sizes[1]  # a replay begins with empty caches


def engine_prompt(respondent: Respondent, asked: Asked) -> Prompt:
    prompt = respondent._prompt(asked)
    return respondent._arrangement(prompt.retrieval).arrange(respondent._example(asked, prompt), 0)


def test_answers_are_those_of_the_chat(reader: Reader) -> None:
    """In every pattern, with passages where a chat of the same messages has them."""
    asked = look_up([TALK, replace(TALK, id="u", history=())], Shelf(), reader, RETRIEVAL)
    for one in respondents(reader)[2:]:
        for at, record in one.records(asked, open_writer, 2):
            own = asked[at]
            said = [*(own.question.history or ()), ("user", own.question.text)]
            messages = [{"role": role, "content": text} for role, text in said]
            written = open_writer(reader, Shelf()).chat(messages, one.settings)
            assert written.text.strip() == record["written"]
            assert written.strides[0].arranged[-20:] == engine_prompt(one, own).arranged[-20:]
            assert record["turns"] == 1 + len(own.earlier)


def test_passages_that_questions_name(reader: Reader) -> None:
    named = replace(TALK, sources=("d1", "d2"))
    two = replace(RETRIEVAL, passages=3)
    (asked,) = look_up([named], Shelf("d1", "d2"), reader, two, own=True)
    assert [hit.text for hit in asked.hits] == ["d1 1", "d1 2", "d2 1"]
    assert asked.earlier[0].shown == "On Who?"
    assert asked.source_found
    (found,) = look_up([named], Shelf("d1", "d2"), reader, two)
    assert not found.source_found
    (without,) = look_up([replace(TALK, sources=())], Shelf("d1"), reader, two, own=True)
    assert without.hits == ()
    with pytest.raises(PromptsError, match="question 't' names the document 'd2', which the index"):
        look_up([named], Shelf("d1"), reader, two, own=True)


def test_support_in_view_is_that_of_what_is_shown(reader: Reader) -> None:
    passage = "Once Ada wrote it , in London ."
    question = Question("s", "Who?", ("Ada",), passage, support=("ada wrote it, in London.",))
    (whole,) = look_up([question], None, reader, replace(RETRIEVAL, passage_tokens=40))
    (cut,) = look_up([question], None, reader, RETRIEVAL)
    assert (whole.source_found, whole.support_shown) == (True, True)
    assert (cut.source_found, cut.support_shown) == (True, False)
    none, prepend = rows_of(["none", "prepend"], ())[1:]
    for row, seen in ((none, False), (prepend, True)):
        own = row.given(Form.QUESTION, replace(RETRIEVAL, stride=4))
        respondent = Respondent(row, reader, replace(SETTINGS, retrieval=own), Asking(Form.CHAT))
        assert respondent._supported(whole) == {"support_shown": seen}
    scores = {"exact_match": 0, "f1": 0, "nats": 1, "answer_tokens": 1}
    records = [
        scores | {"substring": right, "support_shown": seen}
        for right, seen in ((100, True), (100, False), (0, True))
    ]
    table = AnswerTable([{"name": "plain RAG"}], [records], [whole, cut, cut], 50, {}).record()
    assert table["rows"][0]["support"] == {
        "answers": 3,
        "in_view": 2,
        "right": 2,
        "right_in_view": 1,
    }
    assert table["sources"] == {"questions": 3, "found": 3}


def test_in_context_ralms_prompt(reader: Reader) -> None:
    """As `build_qa_prompt` of its code writes it, for no passage, one and several."""
    question = Question("r", "Who wrote it", ("Ada",), "It is by Ada.", "It")
    asking = Asking(Form.IN_CONTEXT_RALM)
    (asked,) = look_up([question], None, reader, RETRIEVAL, titled=True)
    assert asked.shown == "It\n\nIt is by Ada."
    plain, none, prepend, append = rows_of(["none", "prepend", "append"], ())
    ends = "these questions:\nQ: who wrote it?\nA:"
    expected = {
        plain: f"It\n\nIt is by Ada.\n\nBased on this text, answer {ends}",
        none: f"Answer {ends}",
        prepend: f"Based on this text, answer {ends}",
    }
    for row, text in expected.items():
        ids = asking.prompt(reader, question, row.pasted_into(asked)).ids
        assert reader.decode(ids) == text
    several = asking.prompt(reader, question, Pasted("P\n\nQ", shown=2)).ids
    assert reader.decode(several) == f"P\n\nQ\n\nBased on these texts, answer {ends}"
    own = Respondent(
        prepend,
        reader,
        replace(SETTINGS, retrieval=prepend.given(Form.IN_CONTEXT_RALM, RETRIEVAL)),
        asking,
    )
    assert reader.decode(engine_prompt(own, asked).arranged) == expected[plain]
    assert append.given(Form.IN_CONTEXT_RALM, RETRIEVAL).frame is None


def test_conversations_need_a_chat(reader: Reader) -> None:
    assert settled_form("auto", reader, [TALK]) is Form.CHAT
    for form, own in (("question", reader), ("auto", tiny_reader())):
        with pytest.raises(SettingsError, match="question 't' ends a conversation; expected"):
            settled_form(form, own, [TALK])


def test_turns_of_a_conversation_are_resampled_together(reader: Reader) -> None:
    said = ("user", "Hi"), ("assistant", "Hello")
    histories = [(), said, (*said, ("user", "a"), ("assistant", "b")), (("user", "Ho"), said[1])]
    questions = [replace(TALK, text="Hi", id=n, history=one) for n, one in enumerate(histories)]
    asked = look_up(questions, Shelf(), reader, RETRIEVAL)
    record = {"exact_match": 0, "f1": 0, "substring": 0, "nats": 1, "answer_tokens": 1}
    records = [record | {"prefilled": n, "prompt_tokens": 5} for n in range(4)]
    rows = [{"name": "plain RAG"}, {"name": "slot"}]
    table = AnswerTable(rows, [records, records], asked, 50, {}).record()
    assert (table["questions"], table["groups"], table["conversations"]) == (4, 2, 4)
    assert table["rows"][0]["prefilled"]["value"] == 1.5
    assert table["rows"][1]["against_plain_rag"]["prompt_tokens"]["value"] == 0
