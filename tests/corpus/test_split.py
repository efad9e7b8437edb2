"""The fixed split: its shares, its stability, and no copies of held-out texts outside."""

import random
from collections import Counter
from collections.abc import Callable
from itertools import count

import pytest

from flashback.corpus.documents import Document
from flashback.corpus.split import SPLITS, Overlap, Split, split_documents, split_of

TRAINING_PARTS: tuple[Split, ...] = ("base", "adapter")
TITLES: dict[Split, list[str]] = {
    part: [title for title in map("module{}".format, range(200)) if split_of(title) == part]
    for part in SPLITS
}


def paragraph(seed: int, words: int = 30) -> str:
    rng = random.Random(seed)
    return " ".join(f"word{rng.randrange(5000)}" for _ in range(words))


def document(title: str, *paragraphs: str) -> Document:
    return Document(f"id of {title}", title, "\n\n".join(paragraphs))


HELD_OUT = document(TITLES["evaluation"][0], *(paragraph(seed) for seed in range(5)))


def test_the_parts_have_80_15_and_5_percent_of_titles() -> None:
    parts = Counter(split_of(f"package{n % 97}.module_{n}") for n in range(20_000))
    assert parts["base"] == pytest.approx(0.80 * 20_000, rel=0.02)
    assert parts["adapter"] == pytest.approx(0.15 * 20_000, rel=0.05)
    assert parts["evaluation"] == pytest.approx(0.05 * 20_000, rel=0.10)


@pytest.mark.parametrize(
    ("title", "part"),
    [
        ("logging.handlers", "evaluation"),
        ("enum", "evaluation"),
        ("json.decoder", "adapter"),
        ("argparse", "base"),
    ],
)
def test_a_title_is_in_the_same_part_for_ever(title: str, part: Split) -> None:
    assert split_of(title) == part


def test_unrelated_documents_stay_as_they_are_and_in_order() -> None:
    seeds = count(100)
    documents = [
        document(title, paragraph(next(seeds)), "short", paragraph(next(seeds)))
        for part in TITLES.values()
        for title in part[:5]
    ]
    random.Random(0).shuffle(documents)
    split = split_documents([*documents, HELD_OUT])
    for part in TRAINING_PARTS:
        assert split[part] == [one for one in documents if split_of(one.title) == part]
    assert len(split["evaluation"]) == 6


@pytest.mark.parametrize("part", TRAINING_PARTS)
@pytest.mark.parametrize("edit", [str, str.upper, lambda text: text.replace(" ", ",\n")])
def test_a_copy_of_a_held_out_document_is_left_out(part: Split, edit: Callable[[str], str]) -> None:
    copy = document(TITLES[part][0], *(edit(text) for text in HELD_OUT.text.split("\n\n")))
    # The copy comes first: the order of documents must not matter.
    split = split_documents([copy, HELD_OUT])
    assert split == {"base": [], "adapter": [], "evaluation": [HELD_OUT]}


@pytest.mark.parametrize("part", TRAINING_PARTS)
def test_a_copied_paragraph_is_cut_out_of_a_document_of_its_own(part: Split) -> None:
    own = [paragraph(seed) for seed in range(10, 18)]
    copied = HELD_OUT.text.split("\n\n")[2]
    split = split_documents([HELD_OUT, document(TITLES[part][0], *own[:4], copied, *own[4:])])
    assert split[part] == [document(TITLES[part][0], *own)]


def test_a_document_that_is_mostly_copied_is_left_out_whole() -> None:
    copied = HELD_OUT.text.split("\n\n")[:3]
    mixed = document(TITLES["base"][0], paragraph(10), *copied, paragraph(11))
    assert split_documents([HELD_OUT, mixed])["base"] == []


def test_base_and_adapter_may_share_texts() -> None:
    documents = [document(TITLES[part][0], paragraph(10)) for part in TRAINING_PARTS]
    split = split_documents([*documents, HELD_OUT])
    assert [*split["base"], *split["adapter"]] == documents


def test_overlap_is_the_share_of_repeated_8_grams() -> None:
    known = paragraph(0, 20)
    overlap = Overlap([known])
    assert overlap.share(known) == 1
    assert overlap.share(paragraph(1, 20)) == 0
    assert overlap.share("too short") == 0
    assert overlap.share(f"{known} {paragraph(1, 20)}") == pytest.approx(13 / 33)
