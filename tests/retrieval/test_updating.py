"""Documents into and out of an index that is there, by file and by id."""

import json
import os
from pathlib import Path

import pytest

from flashback.corpus.documents import CorpusReport
from flashback.corpus.formats.file_settings import FileSettings
from flashback.corpus.place import Place
from flashback.errors import CorpusError, IndexFolderError
from flashback.retrieval.bm25 import BM25Index, IndexSettings
from flashback.retrieval.index_folder import read_manifest, verify
from flashback.retrieval.indexing import index_corpus
from flashback.retrieval.kinds import open_index
from flashback.retrieval.protocol import Hit, Listed
from flashback.retrieval.sources import SOURCES, load_sources
from flashback.retrieval.updating import (
    add_documents,
    delete_documents,
    merge_index,
    sync_index,
)
from flashback.settings import SearchOptions

ANCIENT = 1_000_000_000


def write(path: Path, text: str, *, seconds: int = ANCIENT) -> Path:
    """Write a file as if it had been changed so many seconds after 1970."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    os.utime(path, (seconds, seconds))
    return path


def records(*documents: tuple[str, str]) -> str:
    return "".join(json.dumps({"id": name, "text": text}) + "\n" for name, text in documents)


def found(index: Path, query: str) -> list[str]:
    verify(index)
    [hits] = BM25Index.open(index).search([query], SearchOptions(k=99))
    return sorted(hit.document_id.rpartition("/")[2] for hit in hits)


def synced(texts: Path, index: Path) -> tuple[int, int, int, int]:
    """How many files were new, changed, gone, and as they were."""
    result = sync_index(texts, index)
    assert result.manifest == read_manifest(index)
    return result.added, result.changed, result.removed, result.unchanged


def best(index: Path, query: str, *, forbidden: tuple[str, ...] = ()) -> Hit:
    options = SearchOptions(k=1, forbid_documents=forbidden)
    [[hit]] = open_index(index).search([query], options)
    return hit


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    write(folder / "cats.md", "The cat sleeps.")
    write(folder / "more" / "dogs.txt", "A dog barks at the cat.")
    write(folder / "birds.jsonl", records(("robin", "A robin sings."), ("crow", "A crow caws.")))
    return folder


@pytest.fixture
def index(tmp_path: Path, texts: Path) -> Path:
    index_corpus(texts, tmp_path / "IDX")
    return tmp_path / "IDX"


def test_what_did_not_change_is_not_read(
    texts: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_manifest(index)

    def refuse(*_: object) -> None:
        raise AssertionError("a file was read")

    monkeypatch.setattr("hashlib.file_digest", refuse)
    assert synced(texts, index) == (0, 0, 0, 3)
    assert read_manifest(index) == before


def test_new_changed_and_vanished_files_are_followed(texts: Path, index: Path) -> None:
    write(texts / "fish.rst", "The fish is silent.")
    write(texts / "cats.md", "The kitten plays.", seconds=ANCIENT + 1)
    (texts / "more" / "dogs.txt").unlink()
    assert synced(texts, index) == (1, 1, 1, 1)
    assert found(index, "fish") == ["fish.rst"]
    assert found(index, "kitten") == ["cats.md"]
    assert found(index, "sleeps dog") == []
    assert found(index, "robin crow") == ["crow", "robin"]
    assert read_manifest(index).content.counts["documents"] == 4
    assert synced(texts, index) == (0, 0, 0, 3)


def test_records_of_a_file_are_followed_one_by_one(texts: Path, index: Path) -> None:
    lines = records(("crow", "A crow flies."), ("owl", "An owl hoots."))
    write(texts / "birds.jsonl", lines, seconds=ANCIENT + 1)
    assert synced(texts, index) == (0, 1, 0, 2)
    assert found(index, "robin caws") == []
    assert found(index, "flies hoots") == ["crow", "owl"]


def test_a_touched_file_is_no_changed_one(texts: Path, index: Path) -> None:
    os.utime(texts / "cats.md", (ANCIENT + 5, ANCIENT + 5))
    assert synced(texts, index) == (0, 0, 0, 3)


def test_a_file_of_the_same_size_and_time_is_compared_if_it_was_just_written(
    texts: Path, tmp_path: Path
) -> None:
    path = texts / "cats.md"
    path.write_text("The cat sleeps.")  # now
    state = path.stat()
    index_corpus(texts, tmp_path / "IDX")
    path.write_text("The dog sleeps.")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert synced(texts, tmp_path / "IDX") == (0, 1, 0, 2)
    assert found(tmp_path / "IDX", "dog sleeps") == ["cats.md", "dogs.txt"]


def test_a_file_is_known_wherever_it_is_named_from(
    texts: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(texts)
    write(texts / "cats.md", "The kitten plays.", seconds=ANCIENT + 1)
    assert synced(Path("."), index) == (0, 1, 0, 2)
    [[hit]] = BM25Index.open(index).search(["kitten"], SearchOptions())
    assert hit.document_id == (texts / "cats.md").as_posix()  # as it was


def test_documents_from_elsewhere_stay(texts: Path, index: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other.jsonl", records(("moon", "The moon shines.")))
    add_documents(other, index)
    (texts / "cats.md").unlink()
    assert synced(texts, index) == (0, 0, 1, 2)
    assert found(index, "moon") == ["moon"]
    assert sync_index(other, index).unchanged == 1
    assert synced(texts / "more", index) == (0, 0, 0, 1)


def test_a_passage_stays_while_one_file_has_it(texts: Path, tmp_path: Path) -> None:
    index = tmp_path / "IDX"
    write(texts / "copy.jsonl", records(("copy", "A robin sings.")))
    index_corpus(texts, index)
    write(texts / "birds.jsonl", records(("crow", "A crow caws.")), seconds=ANCIENT + 1)
    assert synced(texts, index) == (0, 1, 0, 3)
    assert found(index, "robin") == ["copy"]


def test_two_files_with_one_id_are_refused_until_one_of_them_goes(texts: Path, index: Path) -> None:
    before = read_manifest(index)
    write(texts / "twice.jsonl", records(("crow", "Another crow.")))
    with pytest.raises(CorpusError, match=r"document 'crow' is in .*birds.jsonl and in .*twice"):
        sync_index(texts, index)
    with pytest.raises(CorpusError, match="document 'crow' is in"):
        add_documents([texts / "twice.jsonl", texts / "birds.jsonl"], index)
    assert read_manifest(index) == before
    (texts / "birds.jsonl").unlink()
    assert synced(texts, index) == (1, 0, 1, 2)
    assert found(index, "crow robin") == ["crow"]


def test_an_index_that_was_built_with_one_id_twice_keeps_the_other_file(
    texts: Path, tmp_path: Path
) -> None:
    index = tmp_path / "IDX"
    write(texts / "twice.jsonl", records(("crow", "Another crow.")))
    index_corpus(texts, index)
    (texts / "birds.jsonl").unlink()
    assert synced(texts, index) == (0, 1, 1, 2)
    assert found(index, "crow caws") == ["crow"]


def test_an_added_document_replaces_the_one_with_its_id(
    texts: Path, index: Path, tmp_path: Path
) -> None:
    new = write(tmp_path / "new.jsonl", records(("crow", "A crow thinks."), ("owl", "An owl.")))
    manifest = add_documents(new, index)
    assert manifest.content.counts["documents"] == 5
    assert found(index, "caws") == []
    assert found(index, "thinks owl") == ["crow", "owl"]
    files = load_sources(index, manifest)
    listed = {Path(path).name: file.documents for path, file in files.items()}
    assert listed["birds.jsonl"] == ("robin",)
    assert listed["new.jsonl"] == ("crow", "owl")


def test_documents_are_deleted_by_id(texts: Path, index: Path) -> None:
    counts = delete_documents(["robin", "nobody"], index).content.counts
    assert (counts["documents"], counts["passages"]) == (3, 3)
    assert found(index, "robin crow") == ["crow"]
    assert synced(texts, index) == (0, 0, 0, 3)  # the file is as it was
    merge_index(index)
    assert found(index, "robin crow") == ["crow"]
    assert synced(texts, index) == (0, 0, 0, 3)


def test_an_index_keeps_the_settings_that_it_was_built_with(tmp_path: Path) -> None:
    first = write(tmp_path / "first.txt", "one two three four five")
    second = write(tmp_path / "second.txt", "six seven eight nine")
    index_corpus(first, tmp_path / "IDX", IndexSettings(passage_words=3, title=False))
    add_documents(second, tmp_path / "IDX")
    [hits] = BM25Index.open(tmp_path / "IDX").search(["four nine"], SearchOptions(k=9))
    assert {hit.text for hit in hits} == {"four five", "nine"}


def test_bad_records_are_counted_or_refused(texts: Path, index: Path) -> None:
    write(texts / "bad.jsonl", records(("x", "Text.")) + "no JSON\n")
    report = CorpusReport(strict=True)
    with pytest.raises(CorpusError, match="not JSON"):
        sync_index(texts, index, report)
    assert synced(texts, index) == (1, 0, 0, 3)
    assert read_manifest(index).content.counts["bad_records"] == 1
    assert synced(texts, index) == (0, 0, 0, 4)


@pytest.mark.parametrize("name", ["-", "python-docs"])
def test_only_files_and_folders_are_synchronised(index: Path, name: str) -> None:
    with pytest.raises(CorpusError, match=f"corpus {name}: only files and folders"):
        sync_index(name, index)


def test_an_empty_corpus_adds_nothing(index: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match="the corpus is empty"):
        add_documents(tmp_path / "empty", index)


def test_a_damaged_list_of_files_is_refused(texts: Path, index: Path) -> None:
    path = index / read_manifest(index).data / SOURCES
    for damage in (b"[", b"[]", b'{"x": {}}', b'{"x": 5}'):
        path.write_bytes(damage + b" " * (path.stat().st_size - len(damage)))
        with pytest.raises(IndexFolderError, match=f"{SOURCES} is damaged"):
            sync_index(texts, index)


SHARED = "Owls hunt at night."


@pytest.fixture
def sharing(tmp_path: Path) -> tuple[Path, Path]:
    """Two files with one passage, and other text above it in the second one."""
    first = write(tmp_path / "a" / "owls.md", f"# Owls\n\n{SHARED}")
    return first, write(tmp_path / "b" / "owls.md", f"Mice hide.\n\n# Owls\n\n{SHARED}")


def line(hit: Hit) -> tuple[str, int | None]:
    """The folder of a hit's document, and where it stands there."""
    assert hit.place is not None
    return Path(hit.document_id).parent.name, hit.place.line


@pytest.mark.parametrize("kind", ["bm25", "bm25s", "dense"])
def test_a_shared_passage_has_a_place_in_each_document(
    sharing: tuple[Path, Path], tmp_path: Path, kind: str
) -> None:
    index = tmp_path / "IDX"
    folders = [path.parent for path in sharing]
    manifest = index_corpus(folders, index, IndexSettings(kind=kind))
    assert manifest.content.counts["repeated_passages"] == 1
    first = best(index, "owls")
    assert line(first) == ("a", 1)
    assert line(best(index, "owls", forbidden=(first.document_id,))) == ("b", 3)
    opened = open_index(index)
    assert isinstance(opened, Listed)
    assert first.place in [hit.place for hit in opened.every()]


def test_the_place_of_a_deleted_document_is_not_shown(
    sharing: tuple[Path, Path], tmp_path: Path
) -> None:
    index = tmp_path / "IDX"
    folders = [path.parent for path in sharing]
    index_corpus(folders, index)
    before = best(index, "owls", forbidden=(str(sharing[0]),))
    delete_documents(str(sharing[0]), index)
    after = best(index, "owls")
    assert (after.document_id, after.place) == (before.document_id, before.place)
    assert line(after) == ("b", 3)
    add_documents(folders[0], index)
    assert line(best(index, "owls")) == ("b", 3)  # the other one is newer
    merge_index(index)
    assert line(best(index, "owls")) == ("b", 3)
    delete_documents(str(sharing[1]), index)
    assert line(best(index, "owls")) == ("a", 1)


def test_a_file_that_changed_has_new_places(texts: Path, index: Path) -> None:
    write(texts / "cats.md", "Mice hide.\n\n# Cats\n\nThe kitten plays.", seconds=ANCIENT + 1)
    assert synced(texts, index) == (0, 1, 0, 2)
    place = best(index, "kitten").place
    assert isinstance(place, Place)
    assert (place.heading, place.line) == ("Cats", 3)


def test_files_are_left_out_with_their_reasons(texts: Path, index: Path) -> None:
    write(texts / "page.html", "<p>A page about owls.</p>")
    write(texts / "table.csv", "id,text\nbat,A bat flies.\n")
    write(texts / "picture.png", "")
    report = CorpusReport()
    files = FileSettings(exclude=("*.csv", "cats.*"))
    found_files = sync_index(texts, index, report, files=files)
    assert (found_files.added, found_files.removed, found_files.unchanged) == (1, 1, 2)
    reasons = {Path(one.file).name: one.reason for one in report.skipped}
    assert reasons == {
        "cats.md": "fits --exclude='cats.*'",
        "picture.png": "unknown format '.png'",
        "table.csv": "fits --exclude='*.csv'",
    }
    assert found(index, "owls bat") == ["page.html"]
    add_documents(texts, index, files=FileSettings(include=("*.csv",)))
    assert found(index, "bat") == ["bat"]


def test_overlap_is_kept(tmp_path: Path) -> None:
    index = tmp_path / "IDX"
    first = write(tmp_path / "first.txt", "one")
    second = write(tmp_path / "second.txt", "six seven eight nine")
    index_corpus(first, index, IndexSettings(passage_words=3, overlap=1, title=False))
    add_documents(second, index)
    [hits] = open_index(index).search(["eight"], SearchOptions(k=9))
    assert {hit.text for hit in hits} == {"six seven eight", "eight nine"}


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (IndexSettings(kind="bm25s"), "kind 'bm25s' cannot be changed"),
        (IndexSettings(kind="dense"), "kind 'dense' cannot be changed"),
        (IndexSettings(drop_near_duplicates=True), "was built with drop_near_duplicates=True"),
    ],
)
def test_what_is_built_once_is_not_changed(
    texts: Path, tmp_path: Path, made: IndexSettings, message: str
) -> None:
    index = tmp_path / "IDX"
    before = index_corpus(texts, index, made)
    write(texts / "cats.md", "The kitten plays.", seconds=ANCIENT + 1)
    for change in (add_documents, sync_index):
        with pytest.raises(IndexFolderError, match=message):
            change(texts, index)
    with pytest.raises(IndexFolderError, match=message):
        delete_documents("robin", index)
    assert read_manifest(index) == before
