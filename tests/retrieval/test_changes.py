"""An index that was changed finds what one built of the final documents finds."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashback.corpus.documents import CorpusReport
from flashback.corpus.passages import Passage
from flashback.errors import IndexFolderError
from flashback.files import folder_locked
from flashback.retrieval.bm25 import BM25Index, IndexSettings, build_index
from flashback.retrieval.changes import changing, merge
from flashback.retrieval.index_folder import Manifest, read_manifest, verify
from flashback.retrieval.protocol import Hit
from flashback.retrieval.writable import WritableIndex
from flashback.settings import SearchOptions
from retrieval.contract import Make, RetrieverContract

Documents = dict[str, list[str]]
"""The texts of each document's passages, by its id."""

WORDS = ("cat", "dog", "bird", "cuckoo", "雪")
COUNTED = ("documents", "passages", "repeated_passages", "letters", "letters_without_stems")


def passages_of(documents: Documents) -> list[Passage]:
    return [
        Passage(f"{name}#{at}", name, f"Title {text[:1]}", text)
        for name, texts in documents.items()
        for at, text in enumerate(texts)
    ]


def build(folder: Path, documents: Documents, *, once: bool = True) -> Manifest:
    made = IndexSettings(deduplicate=once)
    report = CorpusReport(documents=len(documents))
    return build_index(folder, passages_of(documents), made, report, overwrite=True)


def change(folder: Path, gone: Iterable[str], new: Documents) -> Manifest:
    with changing(folder) as changes:
        changes.delete(gone)
        changes.add(passages_of(new))
        return changes.commit()


def hits(folder: Path, *, scores: bool) -> list[list[Hit]]:
    """What words find: with scores in their order, without them by their ids."""
    verify(folder)
    index = BM25Index.open(folder)
    forbidden = SearchOptions(k=100, forbid_documents=("a",))
    found = [*index.search(WORDS, SearchOptions(k=100)), *index.search(WORDS, forbidden)]
    if scores:
        return [[with_score(hit, round(hit.score, 3)) for hit in some] for some in found]
    bare = ([with_score(hit, 0) for hit in some] for some in found)
    return [sorted(some, key=lambda hit: hit.id) for some in bare]


def with_score(hit: Hit, score: float) -> Hit:
    return Hit(hit.id, hit.document_id, hit.title, hit.text, score)


def counts(folder: Path) -> dict[str, int]:
    found = read_manifest(folder).content.counts
    return {name: found[name] for name in COUNTED}


texts = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join), max_size=3)
names = st.sampled_from("abcde")
some_documents = st.dictionaries(names, texts.filter(bool), min_size=1, max_size=4)
steps = st.one_of(
    st.just("merge"), st.tuples(st.lists(names, max_size=2), some_documents | st.just({}))
)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(first=some_documents, then=st.lists(steps, min_size=1, max_size=4), once=st.booleans())
def test_any_changes_give_what_a_new_index_of_the_final_documents_gives(
    tmp_path_factory: pytest.TempPathFactory,
    first: Documents,
    then: Sequence[str | tuple[list[str], Documents]],
    once: bool,
) -> None:
    changed, fresh = (tmp_path_factory.mktemp("index") for _ in range(2))
    documents = dict(first)
    build(changed, first, once=once)
    for step in then:
        if isinstance(step, str):
            merge(changed)
            continue
        gone, new = step
        for name in (*gone, *new):
            documents.pop(name, None)
        documents |= new
        change(changed, [*gone, *new], new)
    if documents:
        build(fresh, documents, once=once)
        assert hits(changed, scores=False) == hits(fresh, scores=False)
        assert counts(changed) == counts(fresh)
        merge(changed)
        assert hits(changed, scores=True) == hits(fresh, scores=True)
        assert counts(changed) == counts(fresh)
    else:
        assert not any(hits(changed, scores=False))
    shutil.rmtree(changed)
    shutil.rmtree(fresh)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build(tmp_path / "IDX", {"a": ["cat", "dog"], "b": ["cat", "bird"]})
    return tmp_path / "IDX"


def test_a_passage_of_two_documents_stays_when_one_of_them_goes(folder: Path) -> None:
    index = WritableIndex(folder)
    [[hit]] = index.search(["cat"], SearchOptions(k=9))
    assert (hit.id, hit.document_id) == ("a#0", "a")
    change(folder, ["a"], {})
    index.refresh()
    [[hit]] = index.search(["cat"], SearchOptions(k=9))
    assert (hit.id, hit.document_id) == ("b#0", "b")
    assert index.search(["dog"], SearchOptions()) == [[]]


def test_a_document_that_gets_a_passage_joins_those_that_have_it(folder: Path) -> None:
    change(folder, [], {"c": ["cat"]})
    index = BM25Index.open(folder)
    assert len(index) == 3
    [[hit]] = index.search(["cat"], SearchOptions(k=9, forbid_documents=("a", "b")))
    assert (hit.id, hit.document_id) == ("c#0", "c")


def test_what_is_deleted_behind_an_addition_is_not_added(folder: Path) -> None:
    with changing(folder) as changes:
        changes.add(passages_of({"c": ["cuckoo"], "d": ["cuckoo"]}))
        changes.delete(["c", "nobody"])
        changes.commit()
    [[hit]] = BM25Index.open(folder).search(["cuckoo"], SearchOptions(k=9))
    assert hit.document_id == "d"
    assert read_manifest(folder).content.counts["documents"] == 3


def test_a_reader_sees_the_version_that_it_opened(folder: Path) -> None:
    old = BM25Index.open(folder)
    before = old.search(WORDS, SearchOptions(k=9))
    change(folder, ["a", "b"], {"c": ["cuckoo"]})
    merge(folder)
    assert old.search(WORDS, SearchOptions(k=9)) == before
    [[hit]] = BM25Index.open(folder).search(["cuckoo cat"], SearchOptions(k=9))
    assert hit.document_id == "c"


def test_files_of_the_version_before_are_shared_and_never_written_to(folder: Path) -> None:
    before = read_manifest(folder)
    kept = folder.parent / "kept"
    shutil.copytree(folder / before.data, kept)
    links = {path.name: path for path in (folder / before.data).iterdir()}
    for name, path in links.items():
        (folder.parent / f"link-{name}").hardlink_to(path)
    after = change(folder, ["a"], {"c": ["dog"]})
    shared = [name for name in after.files if after.files[name] == before.files.get(name)]
    assert any(name.endswith(".store") for name in shared)
    for name in before.files:
        assert (folder.parent / f"link-{name}").read_bytes() == (kept / name).read_bytes()


def test_without_links_files_are_copied(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    change(folder, ["a"], {"c": ["cuckoo"]})
    assert sum(map(len, hits(folder, scores=False))) > 0


def test_a_commit_of_nothing_makes_no_new_version(folder: Path) -> None:
    before = read_manifest(folder)
    with changing(folder) as changes:
        assert changes.commit() == before
    with changing(folder) as changes:
        changes.add(passages_of({"c": ["cuckoo"]}))  # and no commit
    assert read_manifest(folder) == before
    assert len(list(folder.iterdir())) == 2


def test_an_index_may_become_empty_and_grow_again(folder: Path) -> None:
    change(folder, ["a", "b"], {})
    for _ in range(2):
        index = BM25Index.open(folder)
        assert (len(index), index.sample(), index.deleted) == (0, [], index.deleted)
        assert index.search(["cat"], SearchOptions()) == [[]]
        merge(folder)
    change(folder, [], {"c": ["cuckoo"]})
    assert BM25Index.open(folder).sample() == ["Title c\ncuckoo"]


def test_deleted_passages_take_space_until_merge(folder: Path) -> None:
    change(folder, ["a"], {"c": ["cuckoo"]})
    index = BM25Index.open(folder)
    assert (index.segments, index.deleted) == (2, 2)
    merge(folder)
    index = BM25Index.open(folder)
    assert (index.segments, index.deleted) == (1, 0)


def test_a_second_writer_is_told(folder: Path) -> None:
    message = "another process is building or changing it; wait for it"
    with folder_locked(folder) as ours:
        assert ours
        with pytest.raises(IndexFolderError, match=message):
            change(folder, ["a"], {})
        with pytest.raises(IndexFolderError, match=message):
            merge(folder)
    index = WritableIndex(folder)
    index.delete(["a"])
    with pytest.raises(IndexFolderError, match=message):
        merge(folder)
    index.commit()
    merge(folder)


def test_an_index_without_near_duplicates_is_not_changed(tmp_path: Path) -> None:
    made = IndexSettings(drop_near_duplicates=True)
    build_index(tmp_path / "IDX", passages_of({"a": ["cat"]}), made, CorpusReport())
    with pytest.raises(IndexFolderError, match="was built with drop_near_duplicates=True"):
        change(tmp_path / "IDX", ["a"], {})
    merge(tmp_path / "IDX")


def test_a_folder_that_is_no_index_cannot_be_changed(tmp_path: Path) -> None:
    with pytest.raises(IndexFolderError, match="no such folder"):
        change(tmp_path / "IDX", ["a"], {})
    assert not (tmp_path / "IDX").exists()


class TestContractOfWritableIndex(RetrieverContract):
    @pytest.fixture(scope="class")
    @classmethod
    def make(cls, tmp_path_factory: pytest.TempPathFactory) -> Make:
        def make(passages: Sequence[Passage]) -> WritableIndex:
            folder = tmp_path_factory.mktemp("index")
            made = IndexSettings(deduplicate=False)
            build_index(folder, passages, made, CorpusReport(), overwrite=True)
            return WritableIndex(folder)

        return make
