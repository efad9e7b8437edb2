"""Streamed text: no broken character, no lost space, stop texts found wherever they fall."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from flashback.writing.detokenization import Detokenizer, StopFinder
from tiny_readers import tiny_reader

READER = tiny_reader()
TEXT = st.text(alphabet=st.sampled_from("aé €𝄞\n漢🙂 z"), max_size=60)


@given(context=TEXT, text=TEXT)
def test_pieces_joined_are_the_text_and_hold_whole_characters(context: str, text: str) -> None:
    detokenizer = Detokenizer(READER, READER.encode(context))
    pieces = [detokenizer.push(token) for token in READER.encode(text)]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert detokenizer.finish() == ""


@given(text=TEXT, cut=st.integers(1, 3))
def test_an_unfinished_character_comes_last_as_the_tokenizer_shows_it(text: str, cut: int) -> None:
    ids = READER.encode(text + "🙂")[:-cut]
    detokenizer = Detokenizer(READER, [])
    pieces = [detokenizer.push(token) for token in ids]
    assert "".join(pieces) == text
    assert detokenizer.finish() == READER.decode(ids)[len(text) :] == "\ufffd"


@given(text=TEXT, cut=st.integers(1, 3))
def test_a_character_that_the_context_leaves_unfinished_is_shown_when_complete(
    text: str, cut: int
) -> None:
    ids = READER.encode(text + "🙂")
    detokenizer = Detokenizer(READER, ids[:-cut])
    assert "".join(map(detokenizer.push, ids[-cut:])) == "🙂"


@given(context=TEXT, marks=st.integers(1, 3), text=TEXT)
def test_replacement_characters_of_the_context_are_not_shown_again(
    context: str, marks: int, text: str
) -> None:
    detokenizer = Detokenizer(READER, READER.encode(context + "\ufffd" * marks))
    assert "".join(map(detokenizer.push, READER.encode(text))) == text


@given(ids=st.lists(st.integers(2, 257), max_size=120))
def test_arbitrary_bytes_give_what_decoding_them_at_once_gives(ids: list[int]) -> None:
    detokenizer = Detokenizer(READER, [])
    streamed = "".join([*map(detokenizer.push, ids), detokenizer.finish()])
    assert streamed == READER.decode(ids)


def test_special_tokens_and_marks_are_never_shown() -> None:
    reader = tiny_reader(marks=True)
    assert reader.marks is not None
    detokenizer = Detokenizer(reader, [0])
    ids = [0, *reader.encode("a"), reader.marks[0], *reader.encode("b"), reader.marks[1], 1]
    assert "".join(map(detokenizer.push, ids)) == "ab"


@given(
    text=st.text(alphabet="abc", max_size=40),
    stops=st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 40), max_size=12),
)
def test_a_stop_text_ends_the_text_wherever_the_pieces_are_cut(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    finder = StopFinder(stops)
    shown, stopped = "", False
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    for start, end in pairwise(edges):
        piece, stopped = finder.push(text[start:end])
        shown += piece
        if stopped:
            break
    if not stopped:
        shown += finder.finish()
    first = min((text.find(stop) for stop in stops if stop in text), default=None)
    assert stopped == (first is not None)
    if first is None:
        assert shown == text
    else:
        # Which of several stops is seen first depends on the cuts; none may be shown.
        assert text.startswith(shown)
        assert not any(stop in shown for stop in stops)
        assert any(text[len(shown) :].startswith(stop) for stop in stops)
