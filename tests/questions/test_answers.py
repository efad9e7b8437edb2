"""Answers: their scores, the passages they share, and exactly how probable the right one is."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, zip_longest
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashback.engines.batch import LocalBatch
from flashback.engines.local import LocalEngine
from flashback.engines.protocol import Completion, Request, Usage
from flashback.errors import PromptsError, PromptTooLong, SettingsError
from flashback.patterns.prompt import Ids, Layout, Prompt, View
from flashback.questions.answers import Respondent, rounds
from flashback.questions.formats import Question
from flashback.questions.forms import Asking, Pasted, settled_form
from flashback.questions.given_answers import GivenTokens
from flashback.questions.metrics import scores_of, stands_in
from flashback.questions.passages import Asked, look_up
from flashback.questions.question_settings import Form
from flashback.questions.rows import Row, rows_of
from flashback.questions.run import Comparison
from flashback.questions.table import AnswerTable
from flashback.readers.passages import passage_ids
from flashback.readers.reader import Reader
from flashback.readers.text_reader import TextReader
from flashback.retrieval.protocol import Hit, Retriever
from flashback.settings import (
    QueryForm,
    RetrievalSettings,
    SearchOptions,
    Settings,
    StoppingSettings,
)
from flashback.writing.generator import Generator
from recompute import block_mask_logits, recomputed_logits
from tiny_readers import MadeUpRetriever, deaf_reader, tiny_reader

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
RETRIEVAL = RetrievalSettings("none", passage_tokens=24)
SETTINGS = Settings(retrieval=RETRIEVAL, stopping=StoppingSettings(max_new_tokens=8))
QUESTIONS = tuple(
    Question(f"q{n}", f"Who is number {n}?", (answer, "nobody"), f"Number {n} is {answer}.")
    for n, answer in enumerate(("Ada", "Grace Hopper", "Émilie", "Hypatia", "Emmy"))
)
PATTERNS = ("none", "prepend", "append", "slot")


@pytest.fixture(scope="module")
def reader() -> Reader:
    from families import tiny_model

    own = tiny_reader(model=tiny_model("llama", max_position_embeddings=640), window=640)
    own.tokenizer.chat_template = TEMPLATE
    return own


def open_writer(reader: TextReader, retriever: Retriever) -> Generator:
    assert isinstance(reader, Reader)
    return Generator(reader, LocalEngine(reader.model, reader.window), retriever)


def in_order(records: Iterable[tuple[int, dict[str, Any]]]) -> list[dict[str, Any]]:
    return [record for _, record in sorted(records, key=lambda one: one[0])]


def test_a_right_answer_without_a_token_is_refused_with_its_question() -> None:
    own = deaf_reader("x ")
    asked = [Asked(Question("q9", "Who?", ("xx",)), (), "")]
    respondent = Respondent(rows_of(["none"], [])[0], own, SETTINGS, Asking(Form.QUESTION))
    with pytest.raises(PromptsError, match=r"question 'q9': the right answer 'xx' has no tokens"):
        list(respondent.records(asked, open_writer, 1))


class Finding:
    """One passage for each query, which names it; queries are kept."""

    def __init__(self) -> None:
        self.queries: list[str] = []

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        self.queries += queries
        return [[Hit(query, "d", "t", f"It is Ada, {query}", 1.0)] for query in queries]


@pytest.mark.parametrize(
    ("written", "answers", "exact", "f1", "substring"),
    [
        ("The 308 Points!", ["308 points"], 100, 100, 100),
        ("308", ["136", "308 points"], 0, 200 / 3, 0),
        ("They gave up 308 points.", ["308 points"], 0, 400 / 7, 100),
        ("In 1995", ["5"], 0, 0, 0),
        ("", ["Ada"], 0, 0, 0),
        ("The.", ["the"], 100, 100, 0),
    ],
)
def test_scores_of_known_pairs(
    written: str, answers: list[str], exact: float, f1: float, substring: float
) -> None:
    found = scores_of(written, answers)
    assert (found.exact_match, found.substring) == (exact, substring)
    assert found.f1 == pytest.approx(f1, abs=1e-3)


def test_an_answer_stands_in_a_text_as_whole_words() -> None:
    assert stands_in(["The  Émilie"], "It was émilie, at last.")
    assert not stands_in(["Ada"], "Adana")
    assert not stands_in(["the"], "the")


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("北京", "他住在北京。"),
        ("北京", "北京"),
        ("東京", "彼は「東京」に住んでいる。"),
        ("서울", "그는 서울에 산다."),
        ("กรุงเทพ", "เขาอยู่ที่กรุงเทพมหานคร"),
        ("Paris", "It is “Paris”."),
        ("Paris", "It is «Paris»…"),
        ("Que?", "¿Que?"),
        ("الرياض", "هل هي الرياض؟"),
    ],
)
def test_an_answer_stands_in_texts_of_any_script(answer: str, text: str) -> None:
    assert stands_in([answer], text)
    assert not stands_in([answer[:-1] + "x"], text)


@pytest.mark.parametrize("text", ["他住在南京。", "京北", "“Parisian”", "“Par is”"])
def test_what_is_not_in_a_text_is_not_found(text: str) -> None:
    assert not stands_in(["北京", "Paris"], text)


def test_every_question_is_searched_once_and_cut_as_readers_see_it(reader: Reader) -> None:
    retriever = Finding()
    asked = look_up(QUESTIONS, retriever, reader, RETRIEVAL)
    assert retriever.queries == [one.text for one in QUESTIONS]
    assert [one.shown for one in asked] == ["It is Ada, Who is number"] * 5  # 24 bytes
    assert [one.answer_shown for one in asked] == [True, *[False] * 4]
    own = look_up(QUESTIONS, None, reader, RETRIEVAL)
    assert [one.hits[0].text for one in own] == [one.passage for one in QUESTIONS]


def test_a_question_is_searched_for_in_the_form_of_a_query(reader: Reader) -> None:
    retriever, question = Finding(), "I met Ada. When was she born, and where?"
    form = replace(RETRIEVAL, query_form=QueryForm.SENTENCE)
    look_up([replace(QUESTIONS[0], text=question)], retriever, reader, form)
    assert retriever.queries == ["When was she born, and where?"]


@pytest.mark.parametrize("form", [Form.CHAT, Form.QUESTION, Form.COMPLETION, Form.FEW_SHOT])
def test_forms_with_and_without_pasted_passages(reader: Reader, form: Form) -> None:
    question = replace(QUESTIONS[0], completion="Number 0 is called")
    asking = Asking(form, lambda _: QUESTIONS[1:2])
    solved = "Question: Who is number 1?\nAnswer: Grace Hopper\n\n"
    asked = "Question: Who is number 0?\nAnswer:"
    chat = "Use the context to answer the question.\n\nContext: P\n\nQuestion: Who is number 0?"
    plain, pasted, answer = {
        Form.CHAT: ("<user>Who is number 0?<assistant>", f"<user>{chat}<assistant>", "Ada"),
        Form.QUESTION: (solved + asked, f"{solved}Context: P\n\n{asked}", " Ada"),
        Form.FEW_SHOT: (solved + asked, f"{solved}Context: P\n\n{asked}", " Ada"),
        Form.COMPLETION: ("Number 0 is called", "P\n\nNumber 0 is called", " Ada"),
    }[form]
    assert reader.decode(asking.prompt(reader, question).ids) == plain
    assert reader.decode(asking.prompt(reader, question, Pasted("P")).ids) == pasted
    assert reader.decode(asking.answer_ids(reader, question, Pasted("P"))) == answer


def test_forms_that_are_refused(reader: Reader) -> None:
    assert settled_form("auto", reader, QUESTIONS) is Form.CHAT
    assert settled_form("auto", tiny_reader(), QUESTIONS) is Form.QUESTION
    with pytest.raises(SettingsError, match="has no chat template"):
        settled_form("chat", tiny_reader(), QUESTIONS)
    with pytest.raises(SettingsError, match="question 'q0' has no text to be continued"):
        settled_form("completion", reader, QUESTIONS)


def compared(reader: Reader, asked: Sequence[Asked], form: Form) -> Comparison:
    return Comparison(tuple(rows_of(PATTERNS, ())), tuple(asked), Asking(form), SETTINGS, 3)


@torch.no_grad()
@pytest.mark.parametrize("form", [Form.CHAT, Form.QUESTION])
@pytest.mark.parametrize("at", range(5))
def test_log_probabilities_are_those_of_a_plain_pass(reader: Reader, form: Form, at: int) -> None:
    """Behind the prompt that was written from, arranged with the passages."""
    asked = look_up(QUESTIONS, MadeUpRetriever(empty=0.3), reader, RETRIEVAL)
    comparison = compared(reader, asked, form)
    row = comparison.rows[at]
    assert row.pasted == (at == 0)
    settings = comparison.row_settings(row.asked_with(reader, form, QUESTIONS[0], RETRIEVAL))
    respondent = Respondent(row, reader, settings, comparison.asking)
    records = in_order(respondent.records(asked, open_writer, 3))
    assert len(records) == len(asked)
    retrieval = settings.retrieval
    for one, record in zip(asked, records, strict=True):
        prompt = comparison.asking.prompt(
            reader, one.question, Pasted(one.shown if at == 0 else ""), settings.retrieval
        ).ids
        answer = comparison.asking.answer_ids(reader, one.question)
        alone = open_writer(reader, _Fixed(one.hits)).generate(prompt, settings)
        assert alone.text.strip() == record["written"]
        assert len(alone.strides) == 1
        if row.arm.pattern == "slot":
            frame = reader.frame(retrieval.frame, "slot")
            passage = passage_ids(reader, (hit.text for hit in one.hits), retrieval)
            framed = frame.around(passage)
            chat = form is Form.CHAT  # with a history: what the passage takes
            reserved = len(framed) if chat else 24 + len(frame.before) + len(frame.after)
            history = retrieval.history_tokens or len(reader.bos)
            layout = Layout(history, reserved, frame.sink[max(len(frame.sink) - history, 0) :])
            views = Prompt.with_views(prompt, (View(history, framed),), layout)
            assert views.arranged == alone.strides[0].arranged
            logits = block_mask_logits(reader.model, views, answer)
        else:
            ids = (*alone.strides[0].arranged, *answer[:-1])
            logits = recomputed_logits(reader.model, ids, len(answer))
        right = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])
        assert record["nats"] == pytest.approx(-float(right.sum()), abs=1e-3)
        assert record["answer_tokens"] == len(answer)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_prompt_is_prefilled_once_for_both_answers(
    reader: Reader, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a batch; one by one, it depends on what the engine holds."""
    asked = look_up(QUESTIONS, MadeUpRetriever(empty=0.3), reader, RETRIEVAL)
    comparison = compared(reader, asked, Form.CHAT)
    sent: list[Request] = []
    complete = LocalBatch.complete

    def noted(batch: LocalBatch, requests: Sequence[Request]) -> Iterator[list[tuple[int, int]]]:
        sent.extend(requests)
        return complete(batch, requests)

    monkeypatch.setattr(LocalBatch, "complete", noted)
    nats = []
    for row in comparison.rows:
        settings = comparison.row_settings(
            row.asked_with(reader, Form.CHAT, QUESTIONS[0], RETRIEVAL)
        )
        respondent = Respondent(row, reader, settings, comparison.asking)
        records = respondent.records(asked, open_writer, batch_size)
        nats += [record["nats"] for _, record in records]
    given = [one.sampler.nats for one in sent if isinstance(one.sampler, GivenTokens)]
    written = [one for one in sent if not isinstance(one.sampler, GivenTokens)]
    assert given == ([] if batch_size == 1 else nats)
    assert len(written) == len(given)
    assert {one.usage.prefilled for one in written} <= {1}


@given(
    prompts=st.lists(st.lists(st.integers(0, 2), max_size=4).map(tuple), max_size=20),
    rows=st.integers(1, 6),
)
def test_a_row_of_a_batch_is_given_neighbours(prompts: list[Ids], rows: int) -> None:
    some = rounds(prompts, rows)
    assert all(len(one) <= rows for one in some)
    assert len(some) == -(-len(prompts) // rows)
    lanes = [[prompts[at] for at in lane if at is not None] for lane in zip_longest(*some)]
    assert [prompt for lane in lanes for prompt in lane] == sorted(prompts)
    assert sorted(chain(*some)) == list(range(len(prompts)))


def two_passages_in_turn() -> list[Asked]:
    questions = [Question(f"q{n}", f"Who is {n}?", ("Ada",)) for n in range(6)]
    passages = ["All of them are Ada, as everybody knows.", "Nobody knows who any of them is."]
    hits = [Hit(f"p{n}", "d", "", passages[n], 1.0) for n in (0, 1)]
    return [Asked(one, (hits[n % 2],), hits[n % 2].text) for n, one in enumerate(questions)]


@pytest.mark.parametrize("batches", [True, False])
@pytest.mark.parametrize("at", [0, 2, 4])
def test_questions_about_one_passage_prefill_it_once(
    reader: Reader, at: int, batches: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pasted, prepended and in the slot; on two rows, or one by one."""
    asked = two_passages_in_turn()
    scored: list[Usage] = []
    complete, complete_one = LocalBatch.complete, LocalEngine.complete

    def noted(batch: LocalBatch, requests: Sequence[Request]) -> Iterator[list[tuple[int, int]]]:
        scored.extend(one.usage for one in requests if isinstance(one.sampler, GivenTokens))
        return complete(batch, requests)

    def noted_one(engine: LocalEngine, *request: Any) -> Completion:
        completion = complete_one(engine, *request)
        if isinstance(request[-1], GivenTokens):
            scored.append(completion.usage)
        return completion

    monkeypatch.setattr(LocalBatch, "complete", noted)
    monkeypatch.setattr(LocalEngine, "complete", noted_one)
    if not batches:
        monkeypatch.setattr(Generator, "open_batch", lambda *_: None)
    comparison = compared(reader, asked, Form.CHAT)
    row = comparison.rows[at]
    settings = comparison.row_settings(
        row.asked_with(reader, Form.CHAT, asked[0].question, RETRIEVAL)
    )
    list(Respondent(row, reader, settings, comparison.asking).records(asked, open_writer, 2))
    assert len(scored) == len(asked)
    first, second, *later = sorted((usage.prefilled for usage in scored), reverse=True)
    longest = max(len(reader.encode(one.shown)) for one in asked)
    assert all(min(second, first - longest // 2) > one for one in later), (first, second, later)


class _Fixed:
    """The same hits for every query."""

    def __init__(self, hits: Sequence[Hit]) -> None:
        self._hits = list(hits)

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        return [self._hits for _ in queries]


def test_a_prompt_that_is_too_long_is_named(reader: Reader) -> None:
    long = replace(QUESTIONS[1], text="why " * 200)
    asked = look_up([QUESTIONS[0], long], None, reader, RETRIEVAL)
    comparison = compared(reader, asked, Form.QUESTION)
    settings = comparison.row_settings(RETRIEVAL)
    respondent = Respondent(comparison.rows[0], reader, settings, comparison.asking)
    with pytest.raises(PromptTooLong, match="plain RAG, question 'q1': the prompt has"):
        list(respondent.records(asked, open_writer, 2))


def test_differences_are_paired_and_passages_are_resampled(reader: Reader) -> None:
    questions = [replace(one, passage=f"p{n // 2}") for n, one in enumerate(QUESTIONS)]
    asked = look_up(questions, None, reader, RETRIEVAL)

    def records(scores: Sequence[float]) -> list[dict[str, float]]:
        return [
            {"exact_match": 0.0, "f1": score, "substring": 100.0, "nats": score, "answer_tokens": 2}
            for score in scores
        ]

    rows = [{"name": "plain RAG"}, {"name": "append"}]
    both = records([10, 50, 30, 90, 20]), records([15, 55, 35, 95, 25])
    found = AnswerTable(rows, both, asked, 200, {}).record()
    assert (found["questions"], found["groups"]) == (5, 3)
    plain, append = found["rows"]
    assert plain["f1"]["value"] == 40
    assert plain["f1"]["low"] < 40 < plain["f1"]["high"]
    assert plain["nats_per_token"]["value"] == 20
    assert append["against_plain_rag"]["f1"] == {"value": 5, "low": 5, "high": 5}
    assert append["against_plain_rag"]["nats_per_token"]["value"] == 2.5
    assert plain["against_plain_rag"]["f1"] == {"value": 0, "low": 0, "high": 0}
    assert append["substring"] == {"value": 100, "low": 100, "high": 100}


def test_rows(reader: Reader) -> None:
    rows = rows_of(("none", "append"), ())
    assert [row.name for row in rows] == ["plain RAG", "none", "append"]
    assert [row.retrieves for row in rows] == [False, False, True]
    assert Row(rows[2].arm).described(reader, RetrievalSettings())["frame"] == {
        "before": " [Reference: ",
        "after": "]\n\n",
        "echo_tokens": 16,
    }
