"""The audit: finds each planted overlap, and nothing in a clean corpus."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from command_line import run
from flashback.corpus.documents import CorpusReport
from flashback.corpus.passages import Passage
from flashback.errors import CorpusError
from flashback.retrieval.audit import Text, Verdict, audit, audit_shown, read_texts
from flashback.retrieval.bm25 import BM25Index, IndexSettings, build_index
from flashback.retrieval.protocol import Hit

SHARED = [f"word{number}" for number in range(2000)]
"""Both corpora draw their words from these, so single words and pairs are shared by accident."""


def prose(drawn: random.Random, words: int) -> str:
    return " ".join(drawn.choices(SHARED, k=words))


def passage(name: str, text: str) -> Passage:
    return Passage(f"{name}#0", name, f"Title of {name}", text)


def texts_of(drawn: random.Random, count: int) -> list[Text]:
    return [Text(f"question-{at}", f"Asked {at}", prose(drawn, 40)) for at in range(count)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "index"


def build(folder: Path, passages: list[Passage]) -> BM25Index:
    build_index(folder, passages, IndexSettings(), CorpusReport())
    return BM25Index.open(folder)


def test_each_of_100_planted_overlaps_is_found(folder: Path) -> None:
    drawn = random.Random(0)
    texts = texts_of(drawn, 100)
    clean = [passage(f"clean-{at}", prose(drawn, 60)) for at in range(300)]
    planted = []
    for at, text in enumerate(texts):
        words = text.text.split()
        begin = drawn.randrange(len(words) - 8)
        part = " ".join(words[begin : begin + drawn.randint(8, 40)]).upper().replace(" ", ", ")
        around = prose(drawn, 20), prose(drawn, 20)
        planted.append(passage(f"planted-{at}", f"{around[0]} {part}. {around[1]}"))
    mixed = [*clean, *planted]
    drawn.shuffle(mixed)
    found = audit(build(folder, mixed).every(), texts)
    assert {one.document_id for one in found.found} == {f"planted-{at}" for at in range(100)}
    assert all(one.texts[0] == f"question-{one.document_id[8:]}" for one in found.found)
    assert all(one.sequences and one.examples for one in found.found)
    assert found.count(Verdict.NONE) == 300
    assert found.count(Verdict.CONFIRMED) + found.count(Verdict.POSSIBLE) == 100


def test_nothing_is_found_in_a_clean_corpus(folder: Path) -> None:
    drawn = random.Random(1)
    clean = [passage(str(at), prose(drawn, 60)) for at in range(300)]
    found = audit(build(folder, clean).every(), texts_of(drawn, 100))
    assert (found.documents, found.found) == (300, [])


@given(st.integers(8, 40), st.integers(0, 1000))
def test_how_much_is_shared_decides(words: int, seed: int) -> None:
    drawn = random.Random(seed)
    text = Text(
        "q", "", " ".join(f"{word}{at}" for at, word in enumerate(prose(drawn, 40).split()))
    )
    shared = " ".join(text.text.split()[:words])
    (one,) = audit([Hit("d#0", "d", "", f"Before. {shared} Behind.", 0.0)], [text]).found
    assert one.sequences == words - 7
    assert one.share == pytest.approx((words - 7) / 33)
    expected = Verdict.CONFIRMED if one.share >= 0.5 or words - 7 >= 25 else Verdict.POSSIBLE
    assert one.verdict is expected


def test_titles_and_ids_are_possible() -> None:
    texts = [Text("doc-7", "", "x"), Text("3", "The Moon!", "y")]
    hits = [Hit("doc-7#0", "doc-7", "", "other", 0.0), Hit("e#0", "e", "the moon", "other", 0.0)]
    found = audit([*hits, Hit("3#0", "3", "Sun", "other", 0.0)], texts)  # a bare number is no name
    verdicts = {one.document_id: (one.verdict, one.same_id, one.same_title) for one in found.found}
    assert verdicts == {
        "doc-7": (Verdict.POSSIBLE, True, False),
        "e": (Verdict.POSSIBLE, False, True),
    }


def test_short_questions_count_as_a_whole_and_scripts_without_spaces_by_characters() -> None:
    texts = [
        Text("q", "", "Who built the old lighthouse?"),
        Text("z", "", "昔々ある所にお爺さんが居ました"),
    ]
    hits = [
        Hit("a#0", "a", "", "FAQ: who built the old lighthouse? Ada.", 0.0),
        Hit("b#0", "b", "", "物語:昔々ある所にお爺さんが。", 0.0),
        Hit("c#0", "c", "", "Who built the new lighthouse?", 0.0),
    ]
    found = audit(hits, texts)
    assert {one.document_id for one in found.found} == {"a", "b"}


def test_texts_are_read_from_lines_and_files(tmp_path: Path) -> None:
    lines = tmp_path / "questions.jsonl"
    record = {"id": "q1", "title": "T", "question": "who", "answers": ["Ada", {"text": "Bo"}]}
    lines.write_text(json.dumps(record) + '\n\n{"text": "x"}\n', "utf-8")
    assert read_texts(lines) == [
        Text("q1", "T", "who\nAda\nBo"),
        Text("questions.jsonl:3", "", "x"),
    ]
    (tmp_path / "a.txt").write_text("Plain text.", "utf-8")
    assert read_texts(tmp_path / "a.txt") == [Text("a.txt", "", "Plain text.")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"{", "a.jsonl:1: no JSON"),
        ("a.jsonl", b"[1]", "a.jsonl:1: found '.1.'; expected an object"),
        ("a.txt", b" \n", "no text in it"),
        ("a.txt", b"\xff", "cannot be read: not UTF-8"),
    ],
)
def test_bad_files_are_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        read_texts(tmp_path / name)
    with pytest.raises(CorpusError, match="cannot be read: No such file"):
        read_texts(tmp_path / "none")


@pytest.mark.parametrize("kind", ["bm25", "dense"])
def test_the_command(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")  # else the examples may not fit beside the rest
    if kind == "dense":
        pytest.importorskip("usearch")
    leaked = "Nine grey geese flew over the quiet harbour before the storm."
    (tmp_path / "a.txt").write_text(f"Some text. {leaked}", "utf-8")
    (tmp_path / "b.txt").write_text("Nothing of that.", "utf-8")
    (tmp_path / "test.jsonl").write_text(json.dumps({"text": leaked}), "utf-8")
    run("index", tmp_path / "a.txt", tmp_path / "b.txt", "--out", tmp_path / "I", "--kind", kind)
    command = ("index", "audit", tmp_path / "I", "--against", tmp_path / "test.jsonl")
    record = run(*command, "--json").record
    assert record["verdicts"] == {"none": 1, "possible": 0, "confirmed": 1}
    assert record["found"][0]["examples"][0] == "nine grey geese flew over the quiet harbour"
    shown = run(*command).out
    assert "2 documents against 1 texts: none 1, possible 0, confirmed 1" in shown
    assert "nine grey geese" in shown


def hit_of(document: str, text: str) -> Hit:
    return Hit(f"{document}#0", document, "", text, 1.0)


def test_what_was_shown_is_compared_with_what_it_was_shown_for_alone() -> None:
    drawn = random.Random(3)
    one, two, other = (prose(drawn, 40) for _ in range(3))
    texts = Text("one", "", one), Text("two", "", two)
    crossed = [(texts[0], [hit_of("a", two)]), (texts[1], [hit_of("b", one)])]
    assert audit_shown(crossed).found == []
    part = " ".join(one.split()[:9])
    shown = [
        (texts[0], [hit_of("a", other), hit_of("b", part)]),
        (texts[0], [hit_of("b", part), hit_of("c", one)]),
        (texts[1], [hit_of("b", two)]),
    ]
    found = audit_shown(shown)
    assert (found.documents, found.texts) == (3, 2)
    assert [found.count(verdict) for verdict in Verdict] == [1, 0, 2]
    assert [(each.document_id, each.texts) for each in found.found] == [
        ("b", ["one", "two"]),
        ("c", ["one"]),
    ]


@given(st.integers(1, 6), st.integers(0, 1000))
def test_shown_for_one_text_is_an_audit_against_it(documents: int, seed: int) -> None:
    drawn = random.Random(seed)
    text = Text("text", "", prose(drawn, 60))
    words = text.text.split()
    hits = []
    for at in range(documents):
        begin = drawn.randrange(60)
        hits.append(hit_of(str(at), f"{prose(drawn, 9)} {' '.join(words[begin:])}"))
    assert audit_shown([(text, hits), (text, hits[:1])]) == audit(hits, [text])
