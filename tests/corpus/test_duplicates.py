"""Only equal passages are stored once, unless asked otherwise; then what is dropped is listed."""

import json
import random
from collections.abc import Callable, Iterable, Sequence

import pytest

from flashback.corpus.duplicates import SIMILAR, Spool, similarity_of
from flashback.corpus.passages import Passage

WORDS = [f"{a}{b}{c}a" for a in "bdfgklmnprstv" for b in "aeiou" for c in "bdfgklmnprstv"]
RULES = (
    "Visitors sign in at the desk and wear a badge. The badge is returned on leaving. Cameras are "
    "left in the locker beside the door, and food stays in the kitchen. Groups are led by a member "
    "of staff who knows the way out. Whoever hears the alarm leaves by the nearest door and waits "
    "on the lawn until everybody has been counted. "
)
"""Over 50 words, so that one of them changes little."""


def made_up_text(rng: random.Random, words: int = 100) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def passages(texts: Iterable[str], title: str = "") -> list[Passage]:
    return [Passage(f"{n}#0", str(n), title, text) for n, text in enumerate(texts)]


def kept(given: Sequence[Passage], *, once: bool = True, near: bool = False) -> list[str]:
    """The document ids of what is stored."""
    with Spool(once=once, near=near) as spool:
        for passage in given:
            spool.add(passage)
        assert spool.stored + spool.repeated + spool.dropped == len(given)
        return [stored.passage.document_id for stored in spool]


DIFFERENT = {
    "the last word": (RULES + "Tours last one hour.", RULES + "Tours last two hours."),
    "a digit": (RULES + "Room 12.", RULES + "Room 13."),
    "the order of numbers": (RULES + "From 9 to 17.", RULES + "From 17 to 9."),
    "a sign": (RULES + "It was -5 degrees.", RULES + "It was 5 degrees."),
    "a comparison": (RULES + "if a > b", RULES + "if a < b"),
    "a currency": (RULES + "It costs €20.", RULES + "It costs $20."),
    "a name with symbols": (RULES + "Written in C++.", RULES + "Written in C#."),
    "a decimal point": (RULES + "It takes 1.5 hours.", RULES + "It takes 15 hours."),
    "a superscript": (RULES + "x² metres", RULES + "x³ metres"),
    "an emoji": (RULES + "Result: ✅", RULES + "Result: ❌"),
    "a Chinese number": (RULES + "每周二天", RULES + "每周四天"),
    "a negation": (RULES + "Dogs are allowed.", RULES + "Dogs are not allowed."),
    "case": (RULES + "Ask IT.", RULES + "Ask it."),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_text_that_differs_in_anything_is_kept(name: str) -> None:
    assert kept(passages(DIFFERENT[name])) == ["0", "1"]


@pytest.mark.parametrize("name", [name for name in DIFFERENT if name != "case"])
def test_near_duplicates_never_differ_in_numbers_symbols_or_negations(name: str) -> None:
    assert kept(passages(DIFFERENT[name]), near=True) == ["0", "1"]
    assert similarity_of(*passages(DIFFERENT[name])) == 0.0


def test_records_of_one_template_are_all_kept() -> None:
    records = passages(
        f"{RULES} Station {n} reported a flow of {7 * n} litres." for n in range(200)
    )
    assert len(kept(records)) == len(kept(records, near=True)) == 200


def test_equal_answers_to_different_questions_are_kept() -> None:
    titles = (
        "Is it open on Sundays?",
        "Is there a lift?",
        "May I bring a dog?",
        "Is lunch served?",
    )
    asked = [Passage(f"{n}#0", str(n), title, "No, not yet.") for n, title in enumerate(titles)]
    assert kept(asked) == kept(asked, near=True) == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    "edit",
    [
        str,
        lambda text: text.replace(" ", "  "),
        lambda text: text.replace(" ", "\n"),
        lambda text: text.replace(" ", "\u00a0"),
        lambda text: f"\t{text}\r\n",
    ],
    ids=["none", "two spaces", "lines", "no-break spaces", "space around"],
)
def test_texts_that_are_equal_after_white_space_are_stored_once(
    edit: Callable[[str], str],
) -> None:
    assert kept(passages([RULES, edit(RULES)], "House rules")) == ["0"]
    assert kept(passages([RULES, edit(RULES)]), once=False) == ["0", "1"]


def test_the_documents_of_copies_are_listed_once_each_in_order() -> None:
    given = [
        Passage("b#0", "b", "T", RULES),
        Passage("a#0", "a", "T", RULES),
        Passage("a#1", "a", "T", RULES),
        Passage("b#1", "b", "T", RULES),
        Passage("c#0", "c", "T", "Other."),
        Passage("d#4", "d", "T", RULES),
    ]
    with Spool(once=True, near=False) as spool:
        for passage in given:
            spool.add(passage)
        first, second = spool
    assert (first.passage, first.copies) == (given[0], (("a#0", "a"), ("d#4", "d")))
    assert (second.passage, second.copies) == (given[4], ())
    assert spool.repeated == 4


def test_of_random_texts_that_differ_in_a_word_none_is_lost_by_default() -> None:
    rng = random.Random(0)
    pairs = []
    for _ in range(200):
        words = made_up_text(rng).split()
        pairs.append(" ".join(words))
        words[rng.randrange(100)] = "changed"
        pairs.append(" ".join(words))
    assert len(kept(passages(pairs))) == 400
    assert 200 <= len(kept(passages(pairs), near=True)) <= 0.6 * 400


def test_near_duplicates_are_listed_with_what_they_are_similar_to() -> None:
    other = RULES.replace("kitchen", "canteen")
    with Spool(once=True, near=True) as spool:
        for passage in passages([RULES, "Something else.", other, RULES]):
            spool.add(passage)
        reasons = [json.loads(line) for line in spool.reasons()]
    assert (spool.stored, spool.dropped, spool.repeated) == (2, 1, 1)
    (reason,) = reasons
    assert (reason["id"], reason["document_id"], reason["similar_to"]) == ("2#0", "2", "0#0")
    assert SIMILAR <= reason["similarity"] < 1


def test_what_only_shares_a_band_is_not_similar() -> None:
    rng = random.Random(0)
    for _ in range(300):
        shared = made_up_text(rng, 70)
        texts = [f"{shared} {made_up_text(rng, 30)}" for _ in range(2)]
        assert kept(passages(texts), near=True) == ["0", "1"]


def test_short_texts_are_repetitions_only_of_themselves() -> None:
    texts = ["!!!", "???", "one", "two", "one two", "two one", "one two three", "é", "中"]
    assert len(kept(passages(texts), near=True)) == len(texts)
    assert len(kept(passages([*texts, *texts]), near=True)) == len(texts)
