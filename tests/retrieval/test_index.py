"""The BM25 index: what it finds, and that its folder is whole, refused or absent."""

import contextlib
import dataclasses
import json
import math
import os
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashback.corpus.documents import BadRecord, CorpusReport
from flashback.corpus.passages import Passage
from flashback.errors import CorpusError, IndexFolderError, SettingsError
from flashback.retrieval.bm25 import NEAR_DUPLICATES, BM25Index, IndexSettings, build_index
from flashback.retrieval.index_folder import MANIFEST, Manifest, read_manifest, verify
from flashback.retrieval.indexing import index_corpus
from flashback.retrieval.protocol import Hit
from flashback.settings import SearchOptions
from retrieval.contract import PETS, Make, RetrieverContract, found, passages_of


def build(
    folder: Path, passages: Iterable[Passage], *, overwrite: bool = False, **values: Any
) -> Manifest:
    return build_index(
        folder, passages, IndexSettings(**values), CorpusReport(), overwrite=overwrite
    )


def refusal(action: Callable[[], object]) -> str:
    """The message, one line, with which an action refuses an index folder."""
    with pytest.raises(IndexFolderError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def listing(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> BM25Index:
    folder = tmp_path_factory.mktemp("index") / "pets"
    build(folder, passages_of(PETS))
    return BM25Index.open(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A fresh index of the pets, to be damaged or replaced."""
    build(tmp_path / "IDX", passages_of(PETS))
    return tmp_path / "IDX"


# Searching


class TestContract(RetrieverContract):
    @pytest.fixture(scope="class")
    @classmethod
    def make(cls, tmp_path_factory: pytest.TempPathFactory) -> Make:
        def made(passages: Sequence[Passage]) -> BM25Index:
            folder = tmp_path_factory.mktemp("index") / "IDX"
            build(folder, passages, deduplicate=False)
            return BM25Index.open(folder)

        return made


def test_a_k_may_be_larger_than_any_corpus(pets: BM25Index) -> None:
    assert found(pets, "dog cat", k=1 << 70) == ["dogs", "cats"]


def test_what_was_stored_is_found_again(pets: BM25Index) -> None:
    [[hit]] = pets.search(["singing birds"], SearchOptions())
    text = f"Birds\n{PETS['Birds']}"
    assert hit == Hit("birds#0", "birds", "Birds", text, hit.score)
    assert hit.score > 0
    assert len(pets) == 4


@pytest.mark.parametrize(
    "query",
    [
        '"sings (loudly)"',
        "sings AND NOT bird",
        "+sings -bird",
        "text:sings",
        "sings^2 ~1 [a TO b] {",
        "SINGING\\",
        "Sings!🙂",
        "naïve",
        "sings\0sings",
    ],
)
def test_queries_are_plain_text_without_a_syntax(pets: BM25Index, query: str) -> None:
    assert found(pets, query, k=1) == ["birds"]


@pytest.mark.parametrize("query", ["", " \n", "the of and", "zebra", "🙂 ()", "s" * 10_000])
def test_a_query_without_known_words_finds_nothing(pets: BM25Index, query: str) -> None:
    assert found(pets, query) == []
    assert found(pets, query, forbid_titles=("Cats",)) == []


def test_a_repeated_query_word_counts_as_often(pets: BM25Index) -> None:
    [[once], [thrice]] = pets.search(["sings", "sings Singing sing"], SearchOptions())
    assert thrice.score == pytest.approx(3 * once.score)
    assert found(pets, "barks sings sings") == ["birds", "dogs"]
    assert found(pets, "barks barks sings") == ["dogs", "birds"]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    queries=st.lists(
        st.text(st.characters(codec="utf-8"), max_size=30)
        | st.lists(st.sampled_from(["cat", "dog", "bird", "cuckoo", "the"])).map(" ".join),
        max_size=5,
    )
)
def test_a_batch_gives_what_its_queries_give_one_by_one(
    pets: BM25Index, queries: list[str]
) -> None:
    options = SearchOptions(k=3, forbid_titles=("Fish",))
    alone = [pets.search([query], options)[0] for query in queries]
    assert pets.search(queries, options) == alone


def test_the_title_is_searched_and_shown_only_if_the_index_was_made_so(tmp_path: Path) -> None:
    passages = [Passage("a#0", "a", "Zebra", "Striped."), Passage("b#0", "b", "", "Dotted.")]
    build(tmp_path / "with", passages, title=True)
    build(tmp_path / "without", passages, title=False)
    titled, bare = (BM25Index.open(tmp_path / name) for name in ("with", "without"))
    assert (found(titled, "zebra"), found(bare, "zebra")) == (["a"], [])
    for index, text in ((titled, "Zebra\nStriped."), (bare, "Striped.")):
        [[hit]] = index.search(["striped"], SearchOptions())
        assert (hit.text, hit.title) == (text, "Zebra")
    [[hit]] = titled.search(["dotted"], SearchOptions())
    assert hit.text == "Dotted."


def test_repeated_passages_are_stored_once_if_the_index_is_made_so(tmp_path: Path) -> None:
    passages = passages_of(PETS)
    again = [dataclasses.replace(passage, id=f"{passage.id}-2") for passage in passages]
    manifest = build(tmp_path / "once", passages + again, deduplicate=True)
    assert manifest.content.counts["passages"] == 4
    assert manifest.content.counts["repeated_passages"] == 4
    manifest = build(tmp_path / "twice", passages + again, deduplicate=False)
    assert manifest.content.counts["passages"] == 8
    assert manifest.content.counts["repeated_passages"] == 0
    assert found(BM25Index.open(tmp_path / "once"), "dog") == ["dogs"]
    assert found(BM25Index.open(tmp_path / "twice"), "dog") == ["dogs", "dogs"]


def test_equal_scores_are_ranked_in_the_order_of_the_corpus(tmp_path: Path) -> None:
    passages = [Passage(f"{n}#0", str(n), "", f"alpha beta{n}") for n in range(2000)]
    build(tmp_path / "IDX", passages, deduplicate=False)
    assert found(BM25Index.open(tmp_path / "IDX"), "alpha") == [str(n) for n in range(10)]


def reference_bm25(query: Sequence[str], documents: Sequence[Sequence[str]]) -> list[float]:
    """The formula of Robertson and Zaragoza (2009) with k1 = 1.2 and b = 0.75, word by word."""
    k1, b = 1.2, 0.75
    average = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        score = 0.0
        for term in query:
            n = sum(term in other for other in documents)
            idf = math.log(1 + (len(documents) - n + 0.5) / (n + 0.5))
            tf = document.count(term)
            score += idf * tf * (k1 + 1) / (tf + k1 * (1 - b + b * len(document) / average))
        scores.append(score)
    return scores


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_the_bm25_formula(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    words = [f"w{n}x" for n in range(12)]  # neither stemmed nor stop words
    documents = [rng.choices(words, k=rng.randint(2, 39)) for _ in range(9)]
    passages = [Passage(f"{n}#0", str(n), "", " ".join(t)) for n, t in enumerate(documents)]
    build(tmp_path / "IDX", passages, deduplicate=False)
    index = BM25Index.open(tmp_path / "IDX")
    for _ in range(20):
        query = rng.choices(words, k=rng.randint(1, 6))
        expected = {
            str(n): pytest.approx(score, rel=1e-4)
            for n, score in enumerate(reference_bm25(query, documents))
            if score
        }
        hits = index.search([" ".join(query)], SearchOptions(k=9))[0]
        assert {hit.document_id: hit.score for hit in hits} == expected
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


# The folder


def test_the_manifest_says_what_was_counted_and_how_the_index_was_made(tmp_path: Path) -> None:
    report = CorpusReport(documents=4, bad_records=2, ignored_files=3)
    asked = IndexSettings(passage_words=50, title=False)
    steps: list[None] = []
    manifest = build_index(
        tmp_path / "IDX",
        passages_of(PETS) + passages_of(PETS),
        asked,
        report,
        on_passage=lambda: steps.append(None),
    )
    assert manifest.content.counts == {
        "documents": 4,
        "passages": 4,
        "repeated_passages": 4,
        "near_duplicates": 0,
        "bad_records": 2,
        "ignored_files": 3,
        "passages_read": 8,
        "letters": 145,
        "letters_without_stems": 0,
    }
    assert len(steps) == 8
    assert manifest.content.settings == dataclasses.asdict(asked)
    assert read_manifest(tmp_path / "IDX") == manifest
    assert verify(tmp_path / "IDX") == manifest
    files = listing(tmp_path / "IDX")
    assert set(files) == {MANIFEST, *(f"{manifest.data}/{name}" for name in manifest.files)}
    assert manifest.bytes == sum(map(len, files.values())) - len(files[MANIFEST])


def data_files(folder: Path) -> list[Path]:
    manifest = read_manifest(folder)
    return [folder / manifest.data / name for name in manifest.files]


def with_a_flipped_bit(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def test_verify_finds_a_flipped_bit_in_every_file(folder: Path) -> None:
    rng = random.Random(0)
    checked = 0
    for path in data_files(folder):
        if data := path.read_bytes():  # a lock file is empty
            path.write_bytes(with_a_flipped_bit(data, rng))
            assert f"/{path.name} has changed" in refusal(lambda: verify(folder))
            path.write_bytes(data)
            checked += 1
    assert checked >= 7
    verify(folder)


def use(folder: Path) -> None:
    BM25Index.open(folder).search(["dog cat"], SearchOptions(forbid_titles=("Fish",)))


@pytest.mark.parametrize("suffix", [".term", ".store", ".json"])
def test_data_of_zeros_is_refused_when_opened_or_searched(folder: Path, suffix: str) -> None:
    for path in data_files(folder):
        if path.suffix == suffix:
            data = path.read_bytes()
            for zeros in (len(data), len(data) // 2):
                path.write_bytes(bytes(zeros) + data[zeros:])
                message = refusal(lambda: use(folder))
                assert "damaged (" in message
                assert len(message) < 400 + len(str(folder))
            path.write_bytes(data)
    use(folder)


@pytest.mark.parametrize("suffix", [".fast", ".term"])
def test_flipped_bits_make_no_other_error_even_where_the_search_library_panics(
    folder: Path, suffix: str
) -> None:
    rng = random.Random(0)
    [path] = (path for path in data_files(folder) if path.suffix == suffix)
    data = path.read_bytes()
    for _ in range(60):
        path.write_bytes(with_a_flipped_bit(data, rng))
        with contextlib.suppress(IndexFolderError):
            use(folder)


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data + b"\0"])
def test_a_data_file_of_another_size_is_refused(
    folder: Path, damage: Callable[[bytes], bytes]
) -> None:
    for path in data_files(folder):
        data = path.read_bytes()
        if changed := damage(data):
            path.write_bytes(changed)
            assert f"/{path.name} has {len(changed)} bytes, expected {len(data)}" in refusal(
                lambda: BM25Index.open(folder)
            )
            path.write_bytes(data)
    BM25Index.open(folder)


def test_a_missing_data_file_is_refused(folder: Path) -> None:
    for path in data_files(folder):
        data = path.read_bytes()
        path.unlink()
        assert f"/{path.name} is missing" in refusal(lambda: BM25Index.open(folder))
        path.write_bytes(data)
    BM25Index.open(folder)


def test_a_data_file_that_cannot_be_read_is_named_by_verify(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("hashlib.file_digest", fail)
    assert "cannot be read: Input/output error" in refusal(lambda: verify(folder))


def test_a_folder_that_holds_no_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "letter.txt").write_text("Dear reader")
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "half" / "flashback-data-abcdefgh").mkdir(parents=True)
    (tmp_path / "manifest" / MANIFEST).mkdir(parents=True)
    for name in ("absent", "file"):
        assert "no such folder" in refusal(lambda name=name: BM25Index.open(tmp_path / name))  # type: ignore[misc]
    for name in ("empty", "foreign", "half", "manifest"):
        assert f"no {MANIFEST} in it" in refusal(lambda name=name: BM25Index.open(tmp_path / name))  # type: ignore[misc]


def change_manifest(folder: Path, **changes: object) -> None:
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_one_corpus_may_be_named_alone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The cat sleeps.")
    assert index_corpus(tmp_path / "a.txt", tmp_path / "IDX").content.counts["documents"] == 1
    assert index_corpus(str(tmp_path / "a.txt"), tmp_path / "IDY").content.counts["documents"] == 1


def test_opening_leaves_nothing_though_the_library_writes_late(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = tmp_path / "links"
    links.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(links))
    remove = os.rmdir
    late: list[Path] = []

    def rmdir(path: Path, **options: Any) -> None:
        if not late:  # what its thread that watches a folder does, once
            late.append(next(links.iterdir()) / ".tantivy-meta.lock")
            late[0].touch()
        remove(path, **options)

    monkeypatch.setattr(os, "rmdir", rmdir)
    assert found(BM25Index.open(folder), "dogs") == found(BM25Index.open(folder), "dogs") != []
    assert late
    assert not list(links.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 1}, "format 1, but this version reads format 3"),
        ({"format": None}, "format None, but this version reads format 3"),
        ({"data": "../elsewhere"}, "names '../elsewhere', which is no file"),
        ({"data": "/etc"}, "names '/etc', which is no file"),
        ({"data": ".."}, "names '..', which is no file"),
        ({"data": ""}, "names '', which is no file"),
        ({"data": 5}, "names 5, which is no file"),
        ({"data": "flashback-data-otherone"}, "is missing"),
        ({"files": {"../x": {"bytes": 1, "sha256": ""}}}, "names '../x', which is no file"),
        ({"files": {}}, "names no files"),
        ({"files": []}, "is damaged"),
        ({"files": {"x": {"bytes": 1}}}, "is damaged"),
        ({"content": {}}, "is damaged"),
        ({"unknown": 1}, "is damaged"),
        ({"content": {"kind": "x", "counts": {}, "settings": {}, "versions": {}}}, "kind 'x'"),
        ({"content": {"kind": "bm25", "counts": [], "settings": {}, "versions": {}}}, "is damaged"),
        (
            {
                "content": {
                    "kind": "bm25",
                    "counts": {"passages": 9},
                    "settings": {},
                    "versions": {},
                }
            },
            "holds 4 passages, but its manifest says 9",
        ),
    ],
)
def test_a_changed_manifest_is_refused(
    folder: Path, changes: dict[str, object], message: str
) -> None:
    change_manifest(folder, **changes)
    assert message in refusal(lambda: BM25Index.open(folder))


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"5", b"\xff\xfe", b"\0" * 100, b"[" * 100_000]
)
def test_a_manifest_that_is_no_manifest_is_refused(folder: Path, data: bytes) -> None:
    (folder / MANIFEST).write_bytes(data)
    assert f"{MANIFEST} is damaged" in refusal(lambda: BM25Index.open(folder))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_no_damage_to_a_manifest_makes_anything_but_a_refusal(
    pets: BM25Index, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = (pets.folder / MANIFEST).read_bytes()
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(len(whole), start + 10)))
    copy = tmp_path_factory.getbasetemp() / "manifest"
    copy.mkdir(exist_ok=True)
    if not (copy / pets.manifest.data).exists():
        (copy / pets.manifest.data).symlink_to(pets.folder / pets.manifest.data)
    (copy / MANIFEST).write_bytes(whole[:start] + data.draw(st.binary(max_size=3)) + whole[end:])
    with contextlib.suppress(IndexFolderError):
        assert found(BM25Index.open(copy), "dog") == ["dogs"]


# Building


@pytest.mark.parametrize("name", ["letter.txt", "data-raw/table.csv", "flashback/notes.md"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_foreign_folder_is_refused_and_left_alone(
    tmp_path: Path, name: str, overwrite: bool
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("Dear reader")
    message = refusal(lambda: build(tmp_path, passages_of(PETS), overwrite=overwrite))
    assert "not empty and no FlashBack index" in message
    assert listing(tmp_path) == {name: b"Dear reader"}


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("Dear reader")
    assert "a file is in the way" in refusal(lambda: build(tmp_path / "file", passages_of(PETS)))
    message = refusal(lambda: build(tmp_path / "file" / "IDX", passages_of(PETS)))
    assert "cannot be written: " in message


def test_an_index_that_is_there_is_replaced_only_when_asked(folder: Path) -> None:
    before = listing(folder)
    assert "exists already; use overwrite=True" in refusal(lambda: build(folder, passages_of(PETS)))
    assert listing(folder) == before


def test_overwriting_replaces_and_clears_the_old_index(folder: Path) -> None:
    (folder / "flashback-data-leftover").mkdir()
    (folder / "flashback-data-leftover" / "x").write_text("debris")
    (folder / f".{MANIFEST}.leftover").write_text("debris")
    (folder / "mine.txt").write_text("no debris")
    manifest = build(folder, passages_of({"Zebra": "Stripes."}), overwrite=True)
    assert {path.name for path in folder.iterdir()} == {MANIFEST, manifest.data, "mine.txt"}
    assert found(BM25Index.open(folder), "stripes dog") == ["zebra"]
    verify(folder)


def test_an_opened_index_still_answers_after_it_was_overwritten(folder: Path) -> None:
    opened = BM25Index.open(folder)
    build(folder, passages_of({"Zebra": "Stripes."}), overwrite=True)
    assert found(opened, "dog") == ["dogs"]
    assert found(opened, "stripes") == []
    assert opened.search(["dog"], SearchOptions())[0][0].text == f"Dogs\n{PETS['Dogs']}"


def test_debris_of_an_interrupted_first_build_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "flashback-data-leftover").mkdir()
    (tmp_path / f".{MANIFEST}.leftover").write_text("{")
    manifest = build(tmp_path, passages_of(PETS))
    assert {path.name for path in tmp_path.iterdir()} == {MANIFEST, manifest.data}


def test_a_corpus_without_passages_is_refused_and_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"the corpus is empty: no passage was found$"):
        build(tmp_path / "IDX", [])
    report = CorpusReport(ignored_files=2)
    report.refuse(BadRecord("c.jsonl", 1, "not JSON"))
    explained = r"bad records: 1, skipped files: 2; the first: c\.jsonl:1: not JSON$"
    with pytest.raises(CorpusError, match=explained):
        build_index(tmp_path / "IDX", [], IndexSettings(), report)
    assert list(tmp_path.iterdir()) == []


def interrupted(passages: Iterable[Passage], error: BaseException) -> Iterator[Passage]:
    yield from passages
    raise error


FAILURES = [CorpusError("bad record"), KeyboardInterrupt(), RuntimeError("bug")]


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_a_failure_while_reading_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        build(tmp_path / "IDX", interrupted(passages_of(PETS), error))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_a_failure_while_overwriting_leaves_the_old_index(
    folder: Path, error: BaseException
) -> None:
    before = listing(folder)
    with pytest.raises(type(error)):
        build(folder, interrupted(passages_of({"Zebra": "x"}), error), overwrite=True)
    assert listing(folder) == before
    assert len(list(folder.iterdir())) == 2
    assert found(BM25Index.open(folder), "dog") == ["dogs"]


# Copies


SHARED = [
    Passage("a#3", "a", "Moon", "The tides follow the moon."),
    Passage("b#0", "b", "Moon", "The  tides\nfollow the moon."),
    Passage("c#1", "c", "Moon", "The tides follow the moon. "),
    Passage("c#2", "c", "Sun", "The tides follow the sun, too."),
    Passage("d#0", "d", "Moon", "The tides follow the moon!"),
]


@pytest.mark.parametrize(
    ("forbidden", "left"),
    [
        ((), ["a#3", "c#2", "d#0"]),
        (("a",), ["b#0", "c#2", "d#0"]),
        (("b",), ["a#3", "c#2", "d#0"]),
        (("c",), ["a#3", "d#0"]),
        (("a", "b"), ["c#1", "c#2", "d#0"]),
        (("a", "b", "c"), ["d#0"]),
        (("a", "b", "c", "d"), []),
    ],
)
def test_a_shared_passage_is_found_while_one_of_its_documents_is_allowed(
    tmp_path: Path, forbidden: tuple[str, ...], left: list[str]
) -> None:
    manifest = build(tmp_path / "IDX", SHARED)
    assert manifest.content.counts["passages"] == 3
    index = BM25Index.open(tmp_path / "IDX")
    for k in (1, 2, 10):
        options = SearchOptions(k=k, forbid_documents=forbidden)
        hits = index.search(["tides moon"], options)[0]
        assert {hit.id for hit in hits} <= set(left)
        assert len(hits) == min(k, len(left))
    assert found(index, "tides", forbid_titles=("Moon",)) == ["c"]


def test_many_shared_passages_of_forbidden_documents_hide_no_other(tmp_path: Path) -> None:
    passages = [
        Passage(f"{name}#{n}", name, "", f"alpha {n}") for n in range(50) for name in ("a", "b")
    ]
    build(tmp_path / "IDX", [*passages, Passage("c#0", "c", "", "alpha and much that is longer")])
    index = BM25Index.open(tmp_path / "IDX")
    assert found(index, "alpha", k=1, forbid_documents=("a", "b")) == ["c"]
    assert found(index, "alpha", k=2, forbid_documents=("a",)) == ["b", "b"]
    assert found(index, "alpha", k=1, forbid_documents=("a", "b"), min_score=100.0) == []


def test_near_identical_passages_are_left_out_and_listed_only_when_asked(tmp_path: Path) -> None:
    words = " ".join(f"w{chr(97 + n)}x" for n in range(26))
    texts = {"one": words, "two": words.upper()}
    passages = [Passage(f"{name}#0", name, "", text) for name, text in texts.items()]
    kept = build(tmp_path / "kept", passages)
    assert kept.content.counts["near_duplicates"] == 0
    assert found(BM25Index.open(tmp_path / "kept"), "wax") == ["one", "two"]
    manifest = build(tmp_path / "IDX", passages, drop_near_duplicates=True)
    assert manifest.content.counts["near_duplicates"] == 1
    listed = tmp_path / "IDX" / manifest.data / NEAR_DUPLICATES
    assert json.loads(listed.read_text("utf-8"))["similar_to"] == "one#0"
    verify(tmp_path / "IDX")
    assert found(BM25Index.open(tmp_path / "IDX"), "wax") == ["one"]


def test_equal_passages_cannot_be_kept_where_similar_ones_are_left_out() -> None:
    with pytest.raises(SettingsError, match="drop_near_duplicates=True with deduplicate=False"):
        IndexSettings(deduplicate=False, drop_near_duplicates=True)


def test_a_sample_is_spread_evenly_over_the_index(tmp_path: Path) -> None:
    for count, step in ((5, 1), (256, 1), (257, 2), (1000, 4)):
        passages = [Passage(f"{n}#0", str(n), "", f"alpha beta{n}") for n in range(count)]
        build(tmp_path / str(count), passages)
        sample = BM25Index.open(tmp_path / str(count)).sample()
        assert sample == [f"alpha beta{n}" for n in range(0, count, step)]


def test_of_a_long_title_the_beginning_is_shown_and_all_is_searched(tmp_path: Path) -> None:
    passages = [
        Passage("a#0", "a", "Zebra crossing", "Striped.", "Zebra"),
        Passage("b#0", "b", "", "x"),
    ]
    build(tmp_path / "IDX", passages)
    for query in ("zebra", "crossing", "striped"):
        [[hit]] = BM25Index.open(tmp_path / "IDX").search([query], SearchOptions())
        assert (hit.text, hit.title) == ("Zebra\nStriped.", "Zebra crossing")
