"""The controls show what they say: another document's passages, those of the text to come."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from flashback.corpus.documents import Document
from flashback.errors import SettingsError
from flashback.retrieval.protocol import Hit
from flashback.scoring.control_kind import Control
from flashback.scoring.controls import random_passages
from flashback.scoring.lookup import Found
from flashback.scoring.retrieved_windows import RetrievedWindows, cut_and_retrieve
from flashback.scoring.window_settings import WindowSettings
from flashback.settings import RetrievalSettings, SearchOptions
from tiny_readers import tiny_reader

WINDOWS = WindowSettings(window_tokens=96, first_boundary=24)
SETTINGS = RetrievalSettings(stride=8, query_tokens=16, passage_tokens=60)
DOCUMENTS = [
    Document(f"d{at}", f"T{at}", " ".join(f"{word}{at}{n}" for n in range(40)))
    for at, word in enumerate(("tide", "kiln", "moss"))
]


class Echoing:
    """Finds the query itself, three times, in a document of its own."""

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        return [
            [Hit(f"p{at}", "elsewhere", "E", f"{query}|{at}", 9.0 - at) for at in range(3)]
            for query in queries
        ]


def retrieved(*controls: Control) -> RetrievedWindows:
    (found,) = cut_and_retrieve(
        DOCUMENTS, tiny_reader(), Echoing(), [SETTINGS], WINDOWS, controls=controls
    )
    return found


def test_the_oracle_searches_with_the_tokens_behind_a_boundary() -> None:
    reader, found = tiny_reader(), retrieved(Control.ORACLE)
    assert found.controls.keys() == {Control.ORACLE}
    for window, ahead, behind in zip(
        found.windows, found.controls[Control.ORACLE], found.found, strict=True
    ):
        for cut, hits, others in zip(window.cuts, ahead.hits, behind.hits, strict=True):
            to_come = window.ids[cut.boundary : cut.boundary + SETTINGS.query_tokens]
            past = window.ids[cut.boundary - SETTINGS.query_tokens : cut.boundary]
            assert hits[0].text.startswith(reader.decode(to_come))
            assert others[0].text.startswith(reader.decode(past))


def test_random_passages_are_of_other_documents_and_the_same_again() -> None:
    found = retrieved(Control.RANDOM)
    drawn = found.controls[Control.RANDOM]
    assert drawn == retrieved(Control.RANDOM, Control.ORACLE).controls[Control.RANDOM]
    of = {
        hits: window.document.id
        for window, one in zip(found.windows, found.found, strict=True)
        for hits in one.hits
    }
    for window, one in zip(found.windows, drawn, strict=True):
        assert len(one.hits) == len(window.cuts)
        assert all(of[hits] != window.document.id for hits in one.hits)
    assert len({hits for one in drawn for hits in one.hits}) > 1
    other = random_passages(found.windows, found.found, SETTINGS, seed=1)
    assert tuple(other) != drawn


def test_random_passages_are_never_of_the_document_or_copies_of_it() -> None:
    found = retrieved()
    own = found.windows[0].document
    hits = (
        Hit("a", own.id, "X", "of the document", 3.0),
        Hit("b", "other", own.title, "of its title", 2.0),
        Hit("c", "other", "X", own.text[:200], 1.0),
    )
    planted = [
        Found(tuple(hits for _ in one.hits), one.copies, one.overlapping) for one in found.found
    ]
    drawn = random_passages(
        found.windows, planted, replace(SETTINGS, passages=3, min_relative_score=0.0), seed=0
    )
    for window, one in zip(found.windows, drawn, strict=True):
        for shown in one.hits:
            assert [hit.id for hit in shown] == ([] if window.document == own else ["a", "b", "c"])


def test_passages_of_one_document_are_no_control() -> None:
    with pytest.raises(SettingsError, match=r"control random: .* give more documents"):
        cut_and_retrieve(
            DOCUMENTS[:1],
            tiny_reader(),
            Echoing(),
            [SETTINGS],
            WINDOWS,
            controls=[Control.RANDOM],
        )


def test_examples_hold_the_passages_of_a_control() -> None:
    reader, found = tiny_reader(), retrieved(Control.ORACLE)
    shown, ahead = (found.examples(reader, SETTINGS, one) for one in (None, Control.ORACLE))
    assert [one.window for one in shown] == [one.window for one in ahead]
    assert [one.passages for one in shown] != [one.passages for one in ahead]
    first = found.first_windows()
    assert first.examples(reader, SETTINGS, Control.ORACLE)[0] == ahead[0]
    assert len(first.windows) == len(DOCUMENTS)
