"""Places of passages, overlap, and cuts at headings and at the ends of sentences without spaces."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashback.corpus.documents import Document
from flashback.corpus.passages import TokenLimit, cut, cut_documents, spans
from flashback.corpus.place import Heading, Layout, Place, Places, place_of, sections

TEXTS = st.text(st.sampled_from("abé中กำ\u0301\u200d👩🏽.。!? \n\t"), max_size=300)
LETTERS = TokenLimit(20, lambda text: range(1, len(text) + 1))
"""A token for every character."""


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        (Place(), ""),
        (Place(page=3, start=0, end=9), "page 3"),
        (Place(page=3, last_page=4), "pages 3 to 4"),
        (Place(heading="Keeping time", line=12), '"Keeping time", line 12'),
    ],
)
def test_a_place_for_people_and_for_json(place: Place, shown: str) -> None:
    assert str(place) == shown
    assert place_of(place.record()) == place
    assert place_of({"page": "3", "heading": 3, "line": True, "more": 1}) == Place()


@st.composite
def headed(draw: st.DrawFn) -> tuple[str, tuple[Heading, ...]]:
    """A text and headings in it."""
    text = draw(TEXTS)
    ends = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    marks = [
        Heading(*pair, str(n)) for n, pair in enumerate(zip(ends[::2], ends[1::2], strict=False))
    ]
    return text, tuple(marks)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(given=headed())
def test_sections_tile_a_text_and_have_one_heading_with_a_body(
    given: tuple[str, tuple[Heading, ...]],
) -> None:
    text, headings = given
    found = list(sections(text, Layout(headings=headings)))
    assert [found[0].begin, found[-1].end] == [0, len(text)]
    assert all(one.end == other.begin for one, other in pairwise(found))
    begins = {heading.begin for heading in headings}
    assert all(one.begin in begins for one in found[1:])
    for number, heading in enumerate(headings):  # a body ends its section
        after = headings[number + 1].begin if number + 1 < len(headings) else len(text)
        if text[heading.end : after].strip():
            assert heading.title in {one.heading for one in found}


def test_pages_part_passages_where_a_sentence_ends() -> None:
    texts = ["One page. ", "A sentence that goes", " on here. (End.)\n", "Four.", "Five"]
    begins = [sum(map(len, texts[:n])) for n in range(len(texts))]
    found = sections("".join(texts), Layout(pages=tuple(begins)))
    assert [(one.begin, one.end) for one in found] == [(0, 10), (10, 47), (47, 52), (52, 56)]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    text=TEXTS,
    words=st.integers(1, 12),
    overlap=st.integers(0, 11),
    tokens=st.integers(1, 40),
)
def test_with_an_overlap_pieces_go_on_and_cover_all(
    text: str, words: int, overlap: int, tokens: int
) -> None:
    limit = TokenLimit(tokens, LETTERS.ends)
    found = list(spans(text, words, limit, overlap=overlap))
    reached = 0
    for begin, end in found:
        assert not text[reached:begin].strip()
        assert end > reached
        piece = text[begin:end]
        assert piece == piece.strip()
        assert len(piece.split()) <= words
        reached = end
    assert not text[reached:].strip()
    assert [begin for begin, _ in found] == sorted({begin for begin, _ in found})


def test_an_overlap_repeats_words() -> None:
    text = " ".join(f"w{n}" for n in range(20))
    pieces = [piece.split() for piece in cut(text, 6, overlap=2)]
    assert len(pieces) == 5
    assert all(one[-2:] == other[:2] for one, other in pairwise(pieces))


def test_an_overlap_repeats_characters_where_there_are_no_spaces() -> None:
    text = "".join(chr(0x4E00 + n) for n in range(60))
    pieces = list(cut(text, 100, LETTERS, overlap=5))
    assert all(one[-5:] == other[:5] for one, other in pairwise(pieces))
    thai = "กำลังเดินทางไปที่ประภาคาร" * 5
    assert all(piece[0] != "่" and piece[0] != "ำ" for piece in cut(thai, 100, LETTERS, overlap=5))


def test_an_overlap_reaches_across_windows_of_a_long_text() -> None:
    text = " ".join(f"w{n}" for n in range(60_000))
    pieces = [piece.split() for piece in cut(text, 50, overlap=10)]
    assert all(one[-10:] == other[:10] for one, other in pairwise(pieces))
    gap = "word " * 30 + "\t" * 200_000 + "word " * 30
    assert sum(len(piece.split()) for piece in cut(gap, 20, overlap=2)) >= 60


def test_passages_know_page_heading_line_and_characters() -> None:
    text = "One.\n\nHead\nTwo.\nThree.\n"
    layout = Layout(100, 7, (0, 0, 11), (Heading(6, 10, "Head"),))
    found = list(cut_documents([Document("a", "a", text, layout)], 2))
    assert [(one.text, one.place) for one in found] == [
        ("One.", Place(2, None, None, 7, 100, 104)),
        ("Head\nTwo.", Place(2, 3, "Head", 9, 106, 115)),
        ("Three.", Place(3, None, "Head", 11, 116, 122)),
    ]


def test_lines_are_counted_back_where_passages_overlap() -> None:
    places = Places("a\nb\nc\nd", Layout(line=1))
    found = [places.place(at, at + 1, None).line for at in (0, 4, 2, 6)]
    assert found == [1, 3, 2, 4]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        (
            "灯塔由两人守卫。他们打开大门！谁有钥匙？",
            ["灯塔由两人守卫。", "他们打开大门！", "谁有钥匙？"],
        ),
        (
            "你有钥匙吗?他说没有!大门开了……他走了。",
            ["你有钥匙吗?", "他说没有!", "大门开了……", "他走了。"],
        ),
        (
            "彼は「門を開ける。」と言った。灯台は古い。",
            ["彼は「門を開ける。」", "と言った。", "灯台は古い。"],
        ),
        ("値は３．５である．灯台は古い．", ["値は３．５である．", "灯台は古い．"]),
        ("ประภาคารเก่า มีคนเฝ้า เปิดทุกเช้า", ["ประภาคารเก่า", "มีคนเฝ้า", "เปิดทุกเช้า"]),
        ("ប៉មភ្លើង។អ្នកយាម។", ["ប៉មភ្លើង។", "អ្នកយាម។"]),
    ],
)
def test_scripts_without_spaces_are_cut_at_the_ends_of_their_sentences(
    text: str, pieces: list[str]
) -> None:
    limit = TokenLimit(max(map(len, pieces)), LETTERS.ends)
    assert list(cut(text, 100, limit)) == pieces
