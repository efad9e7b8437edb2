"""Cutting loses nothing."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashback.corpus.documents import Document
from flashback.corpus.passages import Passage, cut, cut_documents


def sentence(words: int) -> str:
    return " ".join(["word"] * (words - 1) + ["end."])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    text=st.text(st.sampled_from("abé中.!?\"') \n\t\x85\u2003"), max_size=200)
    | st.text(st.characters(codec="utf-8"), max_size=100),
    words=st.integers(1, 12),
)
def test_no_word_is_lost_repeated_or_moved_and_no_piece_too_long(text: str, words: int) -> None:
    pieces = [piece.split() for piece in cut(text, words)]
    assert [word for piece in pieces for word in piece] == text.split()
    assert all(1 <= len(piece) <= words for piece in pieces)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 10), min_size=1, max_size=30),
    gap=st.sampled_from([" ", "\n", "\n\n"]),
)
def test_cuts_are_between_sentences_and_pieces_as_full_as_these_allow(
    lengths: list[int], gap: str
) -> None:
    pieces = list(cut(gap.join(sentence(length) for length in lengths), 10))
    assert all(piece.endswith("end.") for piece in pieces)
    for piece, following in pairwise(pieces):
        next_sentence = following.split().index("end.") + 1
        assert len(piece.split()) + next_sentence > 10


def test_cuts_are_at_blank_lines_where_there_are_no_full_stops() -> None:
    assert list(cut("a b c\n \nd e f\n\ng h i j", 7)) == ["a b c\n \nd e f", "g h i j"]


def test_quotes_stay_with_their_sentence() -> None:
    assert list(cut('He said "no." Then (softly.) He left.', 4)) == [
        'He said "no."',
        "Then (softly.) He left.",
    ]


def test_only_a_sentence_longer_than_a_passage_is_cut_within() -> None:
    pieces = list(cut(f"{sentence(3)} {sentence(25)} {sentence(4)}", 10))
    assert [len(piece.split()) for piece in pieces] == [3, 10, 10, 9]


def test_a_very_long_sentence_is_cut_in_one_pass() -> None:
    assert len(list(cut("word " * 100_000, 1))) == 100_000


@pytest.mark.parametrize("text", ["", " ", "\n\n \t\n"])
def test_nothing_has_no_passages(text: str) -> None:
    assert list(cut(text, 10)) == []


def test_passages_are_numbered_within_a_document_across_its_parts() -> None:
    parts = [
        Document("a", "A", f"{sentence(5)} {sentence(5)}"),
        Document("a", "A", sentence(5)),
        Document("b", "B", sentence(5)),
        Document("c", "C", " \n"),
        Document("d", "D", sentence(5)),
    ]
    assert list(cut_documents(parts, 5)) == [
        Passage("a#0", "a", "A", sentence(5)),
        Passage("a#1", "a", "A", sentence(5)),
        Passage("a#2", "a", "A", sentence(5)),
        Passage("b#0", "b", "B", sentence(5)),
        Passage("d#0", "d", "D", sentence(5)),
    ]
