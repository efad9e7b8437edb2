"""Only equal passages are stored once, unless asked otherwise; then what is dropped is listed."""

import json
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest

from flashback.corpus.duplicates import SIMILAR, Owner, Spool, Stored, owner_of, similarity_of
from flashback.corpus.passages import Passage
from flashback.corpus.place import Place

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
    "can and cannot": (RULES + "Dogs can enter.", RULES + "Dogs cannot enter."),
    "can and cannot, exchanged": (
        RULES + "Dogs can enter but cats cannot enter.",
        RULES + "Dogs cannot enter but cats can enter.",
    ),
    "possible and impossible": (RULES + "It is possible.", RULES + "It is impossible."),
    "safe and unsafe": (RULES + "It is unsafe.", RULES + "It is safe."),
    "useful and useless": (RULES + "It is useful.", RULES + "It is useless."),
    "somebody and nobody": (RULES + "Somebody may enter.", RULES + "Nobody may enter."),
    "either and neither": (RULES + "Either may enter.", RULES + "Neither may enter."),
    "ein and kein": (RULES + "Das ist ein Ausgang.", RULES + "Das ist kein Ausgang."),
    "ausser": (RULES + "Offen auch Montag.", RULES + "Offen außer Montag."),
    "ne": (RULES + "Он может войти.", RULES + "Он не может войти."),
    "pas": (RULES + "Il est permis.", RULES + "Il est pas permis."),
    "choris": (RULES + "Είσοδος με σκύλο.", RULES + "Είσοδος χωρίς σκύλο."),
    "a Chinese word": (RULES + "可以入内", RULES + "不可入内"),
    "a Korean ending": (RULES + "비상구가 있다", RULES + "비상구가 없다"),
    "a Japanese ending": (RULES + "入れます", RULES + "入れません"),
    "a Hindi negation": (RULES + "यह संभव है", RULES + "यह संभव नहीं है"),
    "an Arabic negation": (RULES + "الدخول ممكن", RULES + "الدخول غير ممكن"),
    "case": (RULES + "Ask IT.", RULES + "Ask it."),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_text_that_differs_in_anything_is_kept(name: str) -> None:
    assert kept(passages(DIFFERENT[name])) == ["0", "1"]


@pytest.mark.parametrize("name", [name for name in DIFFERENT if name != "case"])
def test_near_duplicates_never_differ_in_numbers_symbols_or_negations(name: str) -> None:
    assert kept(passages(DIFFERENT[name]), near=True) == ["0", "1"]
    assert similarity_of(*passages(DIFFERENT[name])) < SIMILAR


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
    owners = (Owner("b#0", "b", 0, 2), Owner("a#0", "a", 1, 2), Owner("d#4", "d", 5))
    assert (first.passage, first.owners, first.repeats) == (given[0], owners, 4)
    assert (second.passage, second.owners, second.repeats) == (given[4], (Owner("c#0", "c", 4),), 0)
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


def test_copies_of_a_passage_that_was_left_out_are_no_copies_of_another() -> None:
    near = RULES.replace("kitchen", "canteen")
    given = [
        Passage("A#0", "A", "", RULES),
        Passage("B#0", "B", "", near),
        Passage("S#0", "SECRET", "", "Something else."),
        Passage("C#0", "C", "", near),
        Passage("D#0", "D", "", near.replace(" ", "\n")),
    ]
    with Spool(once=True, near=True) as spool:
        for passage in given:
            spool.add(passage)
        assert [(one.passage.id, one.repeats) for one in spool] == [("A#0", 0), ("S#0", 0)]
        listed = [json.loads(line) for line in spool.reasons()]
    assert (spool.stored, spool.dropped, spool.repeated) == (2, 3, 0)
    assert [one["id"] for one in listed] == ["B#0", "C#0", "D#0"]
    assert {one["similar_to"] for one in listed} == {"A#0"}


def test_a_copy_is_only_ever_one_of_an_equal_text() -> None:
    rng = random.Random(1)
    texts = [made_up_text(rng) for _ in range(5)]
    near = [text.replace(text.split()[50], "changed") for text in texts]
    given = passages(rng.choices([*texts, *near], k=200))
    text_of = {one.document_id: one.text for one in given}
    with Spool(once=True, near=True) as spool:
        for passage in given:
            spool.add(passage)
        found = list(spool)
        dropped = {json.loads(line)["document_id"] for line in spool.reasons()}
    assert dropped
    listed = {owner.document_id for one in found for owner in one.owners}
    assert len(listed) + len(dropped) == len(given)
    for one in found:
        assert all(text_of[owner.document_id] == one.passage.text for owner in one.owners)


def test_a_removed_document_owns_nothing_and_what_it_shared_stays() -> None:
    texts = [RULES, "Something else.", RULES]
    with Spool(once=True, near=False, first=10) as spool:
        for passage in passages(texts):
            spool.add(passage)
        spool.remove("0")
        (other, rules) = spool
        assert sorted(spool.documents) == ["1", "2"]
    assert (other.passage.id, other.owners) == ("1#0", (Owner("1#0", "1", 11),))
    assert (rules.passage.id, rules.owners) == ("2#0", (Owner("2#0", "2", 12),))


def test_owners_of_an_indexed_passage_join_those_of_an_equal_one() -> None:
    new, other = passages([RULES, "Something else."])
    old = Passage("x#7", "x", "", RULES.replace(" ", "\n"))
    with Spool(once=True, near=False, first=10) as spool:
        spool.add(new)
        spool.join(Stored(old, (Owner("x#7", "x", 3), Owner("0#5", "0", 4, 2))))
        spool.join(Stored(other, (Owner("y#0", "y", 5),)))
        first, second = spool
    assert first.owners == (Owner("x#7", "x", 3), Owner("0#5", "0", 4, 3))
    assert (first.passage.id, first.passage.document_id) == ("x#7", "x")
    assert second.owners == (Owner("y#0", "y", 5),)


def test_passages_wait_in_a_file_of_their_own_that_goes(tmp_path: Path) -> None:
    file = tmp_path / "a #1?" / "spool"
    file.parent.mkdir()
    with Spool(file, once=True, near=False) as spool:
        for passage in passages(RULES + str(n) for n in range(20_000)):
            spool.add(passage)
        assert file.stat().st_size > 1 << 20
        assert sum(1 for _ in spool) == 20_000
    assert not file.exists()


@pytest.mark.parametrize("words", [("kitchen", "canteen"), ("lawn", "grass"), ("wear", "carry")])
def test_texts_that_differ_in_a_word_that_denies_nothing_are_near(words: tuple[str, str]) -> None:
    assert similarity_of(*passages([RULES, RULES.replace(*words)])) >= SIMILAR


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


def test_each_document_has_its_place() -> None:
    first, second, again = (
        Passage(f"{name}#{line}", name, "", "Same.", place=Place(line=line))
        for name, line in (("a", 4), ("b", 2), ("a", 9))
    )
    with Spool(once=True, near=False) as spool:
        for passage in (first, second, again):
            spool.add(passage)
        [stored] = spool
        assert stored.passage == first
        assert [owner.place for owner in stored.owners] == [first.place, second.place]
        assert [owner_of(owner.row()) for owner in stored.owners] == [*stored.owners]
        spool.remove("a")
        [stored] = spool
    assert stored.passage == second
