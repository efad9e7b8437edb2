"""The forms of a stride's query: functions of texts, and the texts that they are given."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flashback.corpus.characters import SENTENCE
from flashback.engines.local import LocalEngine
from flashback.errors import SettingsError
from flashback.readers.chat import Conversation
from flashback.readers.queries import (
    QUERY_FORMS,
    View,
    Whole,
    decayed_terms,
    last_sentence,
    query_of,
    query_text,
)
from flashback.retrieval.protocol import Hit
from flashback.settings import (
    QueryForm,
    RetrievalSettings,
    SearchOptions,
    Settings,
    StoppingSettings,
)
from flashback.writing.generator import Generator
from tiny_readers import tiny_reader

TEXTS = st.text(st.sampled_from("abcdeé 日本。.!?\n,-_İß\U0001f600"), max_size=400) | st.text()
FORMS = list(QueryForm)
LONG = "The lighthouse stands on a rock. It was built by Petra, in 1874. Nobody knows why"


def test_every_form_has_a_function() -> None:
    assert list(QUERY_FORMS) == FORMS


@settings(deadline=None)
@given(TEXTS, st.sampled_from(FORMS))
def test_a_query_is_a_text_of_words_of_the_past(text: str, form: QueryForm) -> None:
    query = query_of(Whole(text), form)
    assert all(word in text for word in query.split())
    assert query == query_of(Whole(text), form)


@settings(deadline=None)
@given(TEXTS)
@example("Sure. Yes. No.")
@example(LONG)
def test_the_last_sentence_is_the_end_of_a_text_and_begins_with_a_sentence(text: str) -> None:
    found = last_sentence(text)
    assert text.rstrip().endswith(found)
    starts = {one.start() + len(one[0]) - len(one[0].lstrip()) for one in SENTENCE.finditer(text)}
    assert not found or len(text.rstrip()) - len(found) in starts
    long_enough = len(found.encode("utf-8", "replace")) >= 24
    assert long_enough or found == text.strip()
    if long_enough:
        *_, last = (one.start() for one in SENTENCE.finditer(found))
        assert len(found[last:].encode("utf-8", "replace")) < 24 or not last


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is tall. The lighthouse was built by", "The lighthouse was built by"),
        ("It is tall. The lighthouse was built by Petra. ", "The lighthouse was built by Petra."),
        ("The lighthouse is tall. It is", "The lighthouse is tall. It is"),
        ("Nobody asked. The lighthouse is tall. It is", "The lighthouse is tall. It is"),
        ("A heading of the page\n\nThe lighthouse was built", "The lighthouse was built"),
        ("灯台は高い。その灯台は1874年にペトラが建てた", "その灯台は1874年にペトラが建てた"),
        ("no end at all of what is said", "no end at all of what is said"),
        ("Yes.", "Yes."),
        ("", ""),
    ],
)
def test_last_sentences(text: str, expected: str) -> None:
    assert last_sentence(text) == expected


@settings(deadline=None)
@given(TEXTS)
def test_terms_are_words_that_later_ones_outnumber(text: str) -> None:
    counts = Counter(decayed_terms(text).split())
    assert len(counts) <= 64
    assert list(counts.values()) == sorted(counts.values(), reverse=True)


@settings(deadline=None)
@given(st.lists(st.integers(0, 200), unique=True, max_size=200))
def test_of_words_that_occur_once_the_later_ones_count_more(numbers: list[int]) -> None:
    words = [f"w{number}" for number in numbers]
    counts = Counter(decayed_terms(" ".join(words)).split())
    assert all(counts[words[-behind - 1]] == round(4 * 0.5 ** (behind / 16))
               for behind in range(min(len(words), 64)))  # fmt: skip
    assert [counts[word] for word in words] == sorted(counts[word] for word in words)


def test_a_word_that_is_often_said_counts_more_than_a_later_one() -> None:
    text = "(The Lighthouse), a lighthouse; no lighthouse is " + "word " * 3 + "tall."
    counts = Counter(decayed_terms(text).split())
    assert counts["lighthouse"] > counts["tall"] == 4
    assert "Lighthouse" not in counts  # it is written as it was last


def test_terms_of_a_script_without_spaces() -> None:
    assert set(decayed_terms("灯台は高い。灯台は白い").split()) == {"灯台は高い", "灯台は白い"}
    assert decayed_terms("東" * 20).split().count("東" * 8) > 4


@settings(deadline=None)
@given(st.lists(st.integers(1, 255), max_size=200), st.integers(1, 20), st.sampled_from(FORMS))
@example([2, 1, 1], 1, QueryForm.MESSAGE)
def test_a_query_is_made_of_the_tokens_in_view(
    ids: list[int], length: int, form: QueryForm
) -> None:
    reader = tiny_reader()
    wanted = RetrievalSettings(query_tokens=length, query_form=form)
    query = query_text(reader, ids, wanted)
    assert query == query_of(View(reader, ids, length), form)
    view = View(reader, ids, length)
    assert view.last == reader.decode(ids[-length:])
    assert view.longer == reader.decode(ids[-8 * length :])
    if form is QueryForm.MESSAGE and len(ids) > 2 * length:
        both = reader.decode(ids[:length]), view.last
        assert query == "\n".join(filter(None, both))  # special tokens have no text
    if form is QueryForm.MESSAGE and len(ids) <= length:
        assert query == view.last


TALK = (
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Who built the lighthouse on the rock?"},
    {"role": "assistant", "content": "It was Petra."},
    {"role": "user", "content": "And when was that?"},
)


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("tokens", "hat?\nIt was"),
        ("sentence", "And when was that?\nIt was"),
        ("message", "Who built t\nhat?\nIt was"),
    ],
)
def test_the_queries_of_a_chat(form: str, expected: str) -> None:
    wanted = RetrievalSettings(query_tokens=10 + 1, query_form=QueryForm(form))
    assert Conversation(TALK).query(tiny_reader(), "It was", wanted) == expected


def test_the_terms_of_a_chat_are_those_of_all_its_turns() -> None:
    wanted = RetrievalSettings(query_form=QueryForm.TERMS)
    begun = {"role": "assistant", "content": "It was"}
    talk = Conversation((*TALK, begun))
    counts = Counter(talk.query(tiny_reader(), " in", wanted).split())
    assert counts["in"] == 4
    assert {"lighthouse", "Petra"} < set(counts)
    assert not {"kind", "kind."} & set(counts)
    assert talk.query(tiny_reader(), "", wanted) == Conversation(TALK).query(
        tiny_reader(), "It was", wanted
    )


def test_a_chat_of_one_message_has_it_once() -> None:
    wanted = RetrievalSettings(query_form=QueryForm.MESSAGE, query_tokens=12)
    talk = Conversation(TALK[1:2])
    asked = TALK[1]["content"]
    assert talk.query(tiny_reader(), "", wanted) == f"{asked[:12]}\n{asked[-12:]}"
    wanted = RetrievalSettings(query_form=QueryForm.MESSAGE, query_tokens=100)
    assert talk.query(tiny_reader(), "It", wanted) == f"{asked}\nIt"


class Recording:
    """Finds nothing, and remembers the queries."""

    def __init__(self) -> None:
        self.queries: list[str] = []

    def search(self, queries: Any, options: SearchOptions) -> list[list[Hit]]:
        self.queries += queries
        return [[] for _ in queries]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lookahead", [0, 3])
def test_a_text_is_written_with_queries_of_its_form(form: QueryForm, lookahead: int) -> None:
    reader, retriever = tiny_reader(window=1024), Recording()
    retrieval = RetrievalSettings(
        "append", stride=8, query_tokens=6, query_form=form, lookahead=lookahead
    )
    writer = Generator(reader, LocalEngine(reader.model, reader.window), retriever)
    prompt = [0, *b"The lighthouse stands on a rock. It was built"]
    stopping = StoppingSettings(24, ignore_eos=True)
    found = writer.generate(prompt, Settings(retrieval, stopping=stopping))
    ids = [*prompt, *found.tokens]
    ends = [len(prompt), *(len(prompt) + 8 * stride - lookahead for stride in (1, 2))]
    assert retriever.queries == [query_text(reader, ids[:end], retrieval) for end in ends]
    assert len(set(retriever.queries)) > 1


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(SettingsError, match="query_form='words': expected one of tokens, sent"):
        RetrievalSettings(query_form="words")  # type: ignore[arg-type]
    assert RetrievalSettings(query_form="terms").query_form is QueryForm.TERMS  # type: ignore[arg-type]
