"""Cutting loses nothing, and every piece fits its bounds."""

import base64
import random
import re
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashback.corpus.documents import Document
from flashback.corpus.passages import (
    Passage,
    TokenLimit,
    cut,
    cut_documents,
    estimated_ends,
)


def sentence(words: int) -> str:
    return " ".join(["word"] * (words - 1) + ["end."])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    text=st.text(st.sampled_from("abéß.!?\"') \n\t\x85\u2003"), max_size=200)
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
    found = [replace(passage, place=None) for passage in cut_documents(parts, 5)]
    assert found == [
        Passage("a#0", "a", "A", sentence(5)),
        Passage("a#1", "a", "A", sentence(5)),
        Passage("a#2", "a", "A", sentence(5)),
        Passage("b#0", "b", "B", sentence(5)),
        Passage("d#0", "d", "D", sentence(5)),
    ]


# Bounds


LETTERS = TokenLimit(20, lambda text: range(1, len(text) + 1))
"""A token for every character."""
UNBROKEN = {
    "Chinese": "第一座灯塔由两名看守人守卫每天清晨打开大门" * 600,
    "Chinese sentences": "第一座灯塔由两名看守人守卫。每天清晨打开大门！谁有钥匙？" * 500,
    "Japanese": "灯台は二人の看守が守っている。毎朝門を開ける。" * 500,
    "Thai": "ประภาคารมีผู้ดูแลสองคนและเปิดประตูทุกเช้า" * 500,
    "Khmer": "ប៉មភ្លើងហ្វារមានអ្នកយាមពីរនាក់" * 500,
    "base64": base64.b64encode(random.Random(0).randbytes(200_000)).decode(),
    "hex": random.Random(0).randbytes(50_000).hex(),
    "one letter": "a" * 300_000,
    "a URL": "https://example.org/" + "path/to/some-page?key=Value&" * 3000,
    "emoji": "👩\u200d👩\u200d👧\u200d👦🇩🇪👍🏽" * 3000,
    "marks": "a" + "\u0301" * 20_000,
    "punctuation": "!?#" * 30_000,
    "minified code": "function(a,b){return a[b]||{};}" * 3000,
    "wide spaces": "word" + " " * 5000 + "word" + "\t" * 70_000 + "word",
    "controls": "a\x01b\x7f" * 10_000,
}


def squeezed(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("limit", [LETTERS, TokenLimit(), TokenLimit(24)], ids=["20", "128", "24"])
@pytest.mark.parametrize("name", UNBROKEN)
def test_text_without_spaces_is_bounded_and_whole(name: str, limit: TokenLimit) -> None:
    text = UNBROKEN[name]
    pieces = list(cut(text, 100, limit))
    assert all(limit.fits(piece) and piece.strip() for piece in pieces)
    assert squeezed("".join(pieces)) == squeezed(text)
    assert max(map(len, pieces)) <= 16 * limit.tokens


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    text=st.text(st.sampled_from("abé中กำ\u0301\u200d👩🏽🇩🇪.。!? \n"), max_size=300)
    | st.text(st.characters(codec="utf-8"), max_size=100),
    words=st.integers(1, 12),
    tokens=st.integers(1, 40),
    heading=st.sampled_from(["", "T", "A title of some words"]),
)
def test_nothing_is_lost_whatever_the_bounds(
    text: str, words: int, tokens: int, heading: str
) -> None:
    limit = TokenLimit(tokens, LETTERS.ends)
    pieces = list(cut(text, words, limit, heading))
    assert squeezed("".join(pieces)) == squeezed(text)
    room = tokens - len(heading) - 1 if heading else tokens
    for piece in pieces:
        assert 1 <= len(piece.split()) <= words
        assert len(piece) <= max(1, room)


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("e\u0301" * 50, r"(e\u0301)+"),
        ("👩\u200d👩\u200d👧" * 30, "(👩\u200d👩\u200d👧)+"),
        ("👍🏽" * 50, "(👍🏽)+"),
        ("🇩🇪🇫🇷" * 50, "(🇩🇪|🇫🇷)+"),
        ("กำ" * 50, "(กำ)+"),
        ("\u1112\u1161\u11ab" * 50, "(\u1112\u1161\u11ab)+"),
        ("க்ஷி" * 50, "(க்|ஷி)+"),
        ("☂\ufe0f" * 50, "(☂\ufe0f)+"),
    ],
)
def test_characters_as_readers_see_them_stay_whole(text: str, whole: str) -> None:
    for tokens in (7, 8, 9):
        for piece in cut(text, 100, TokenLimit(tokens, LETTERS.ends)):
            assert re.fullmatch(whole, piece)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("他来了。她走了。下雨了!天", ["他来了。她走了。", "下雨了!天"]),
        ("「来た。」「行った。」「雨。」", ["「来た。」", "「行った。」「雨。」"]),
        ("आया। गया। बारिश।", ["आया। गया।", "बारिश।"]),
        ("هل جاء؟ ذهب. أمطرت", ["هل جاء؟", "ذهب. أمطرت"]),
        ("one, two three", ["one, two", "three"]),
        ("abcdefghijklmno", ["abcdefghij", "klmno"]),
        ("ab cdefghijklmno", ["ab", "cdefghijkl", "mno"]),
    ],
)
def test_pieces_end_at_sentences_else_words_else_characters(text: str, expected: list[str]) -> None:
    assert list(cut(text, 100, TokenLimit(10, LETTERS.ends))) == expected


def test_a_title_takes_of_the_tokens_and_is_shown_by_half_if_it_is_long() -> None:
    text = " ".join(["word"] * 40)
    for title, heading in (
        ("Tides", None),
        ("A title that is far too long", "A title"),
        ("x" * 50, "x" * 10),
    ):
        passages = list(cut_documents([Document("a", title, text)], 100, LETTERS))
        assert {passage.heading for passage in passages} == {heading}
        assert {passage.title for passage in passages} == {title}
        shown = title if heading is None else heading
        assert all(LETTERS.fits(f"{shown}\n{passage.text}") for passage in passages)
        assert squeezed("".join(passage.text for passage in passages)) == squeezed(text)
    (whole,) = cut_documents([Document("a", "x" * 50, "word")], 100, LETTERS, titled=False)
    assert (whole.text, whole.title) == ("word", "x" * 50)


def test_a_tokenizer_that_makes_more_tokens_of_a_part_is_counted_anew() -> None:
    def ends(text: str) -> list[int]:
        """A word at the beginning costs five tokens, others one."""
        found = [match.end() for match in re.finditer(r"\S+", text)]
        return found[:1] * 4 + found

    limit = TokenLimit(12, ends)
    pieces = list(cut(" ".join(f"w{n}" for n in range(100)), 100, limit))
    assert all(limit.fits(piece) for piece in pieces)
    assert [len(piece.split()) for piece in pieces] == [8] * 12 + [4]


def test_an_estimate_counts_letters_digits_signs_and_bytes() -> None:
    for text, tokens in (
        ("the", 1),
        ("document", 3),
        ("HTTPServer", 4),
        ("3.14159", 7),
        ("a b\nc", 4),
        ("中文", 6),
        ("é", 2),
        ("a" * 12, 4),
        ("a" * 300, 300),
    ):
        assert len(estimated_ends(text)) == tokens, text
    assert estimated_ends("") == []
    assert estimated_ends("ab 1") == [2, 4]
    assert len(estimated_ends(" " * 100_000)) == 25_000
