"""The commands that change an index."""

import json
from pathlib import Path

import pytest

from command_line import index_notes, refused, run


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return index_notes(tmp_path)


def documents(index: Path, query: str) -> list[str]:
    hits = run("search", index, query, "--json").record["hits"]
    return [Path(hit["document_id"]).name for hit in hits]


def test_documents_are_added_and_replaced(index: Path) -> None:
    lines = b'{"id": "tea", "text": "Tea is brewed."}\n{"id": "rye", "text": "Rye bread."}\n'
    outcome = run("index", "add", "-", "--index", index, input=lines)
    assert "6 passages of 6 documents" in outcome.out
    assert documents(index, "brewed") == ["tea"]
    run("index", "add", "-", "--index", index, input=b'{"id": "tea", "text": "Tea is drunk."}')
    assert (documents(index, "brewed"), documents(index, "drunk")) == ([], ["tea"])


def test_an_index_follows_a_folder(index: Path) -> None:
    notes = index.parent / "notes"
    (notes / "moon.md").unlink()
    (notes / "tea.txt").write_text("Tea is brewed.")
    (notes / "snow.txt").write_text("Snow is white.")
    outcome = run("index", "sync", notes, "--index", index)
    assert outcome.err == "files: 1 new, 1 changed, 1 gone, 2 as they were\n"
    assert "4 passages of 4 documents" in outcome.out
    assert documents(index, "tides") == []
    assert documents(index, "tea white") == ["tea.txt", "snow.txt"]


def test_documents_are_deleted(index: Path) -> None:
    names = [str(index.parent / "notes" / name) for name in ("moon.md", "snow.txt")]
    assert "3 passages of 3 documents" in run("index", "delete", names[0], "--index", index).out
    lines = "\n".join([*names, "nobody"]).encode()
    outcome = run("index", "delete", "-", "--index", index, input=lines)
    assert outcome.err == "documents that were not there: 2\n"
    assert documents(index, "tides snow") == []


def test_what_is_in_an_index_is_shown(index: Path) -> None:
    name = index.parent / "notes" / "moon.md"
    run("index", "delete", name, "--index", index)
    record = run("index", "stats", index, "--json").record
    assert (record["documents"], record["passages"], record["deleted_passages"]) == (3, 3, 1)
    assert (record["kind"], record["tokens_of"], record["title"]) == (
        "bm25",
        "flashback-mini",
        True,
    )
    run("index", "merge", index)
    assert run("index", "stats", index, "--json").record["deleted_passages"] == 0
    assert "passages                 3\n" in run("index", "stats", index).out


def test_the_json_of_a_change_is_the_manifest(index: Path) -> None:
    found = run("index", "merge", index, "--json").record
    assert found == json.loads((index / "flashback-index.json").read_text("utf-8"))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("add", "nowhere"), "corpus nowhere: no such file or folder"),
        (("sync", "-"), "only files and folders"),
        (("add", "-"), "the corpus is empty"),
    ],
)
def test_what_cannot_be_read_changes_nothing(
    index: Path, command: tuple[str, ...], message: str
) -> None:
    before = (index / "flashback-index.json").read_bytes()
    assert message in refused("index", *command, "--index", index, code=1)
    assert (index / "flashback-index.json").read_bytes() == before


@pytest.mark.parametrize("command", [("add", "-"), ("sync", "."), ("delete", "x")])
def test_an_index_that_is_not_there_is_refused(tmp_path: Path, command: tuple[str, ...]) -> None:
    line = refused("index", *command, "--index", tmp_path / "IDX", code=1)
    assert "no such folder; make it with `flashback index`" in line


@pytest.mark.parametrize("command", ["add", "sync"])
def test_files_are_chosen_as_for_a_new_index(index: Path, command: str) -> None:
    notes = index.parent / "notes"
    (notes / "page.html").write_text("<h1>Owls</h1><p>Owls hunt at night.</p>")
    (notes / "more.txt").write_text("Bats hunt, too.")
    chosen = ("--exclude", "more.*", "--json")
    outcome = run("index", command, notes, "--index", index, *chosen)
    record = json.loads(outcome.out)
    assert record["content"]["counts"]["documents"] == 5
    [left_out] = [one for one in record["skipped_files"] if one["file"].endswith("more.txt")]
    assert left_out["reason"] == "fits --exclude='more.*'"
    assert outcome.err == f"skipped {notes}/more.txt: fits --exclude='more.*'\n"
    [hit] = run("search", index, "owls", "-k", "1", "--json").record["hits"]
    assert hit["place"]["heading"] == "Owls"


GERMAN = (
    "Der Leuchtturm der Insel wurde auf einem Felsen gebaut, und seine Lampen wurden jeden Abend "
    "von den Wärtern angezündet. Die späten Boote warteten auf sein Licht."
)


def test_the_language_of_a_corpus_is_found_and_said(tmp_path: Path) -> None:
    corpus = tmp_path / "texts"
    corpus.mkdir()
    (corpus / "a.txt").write_text(GERMAN, "utf-8")
    outcome = run("index", corpus, "--out", tmp_path / "IDX", "--language", "auto")
    said = "language: german 100% of 1 passages looked at (100.0%)"
    assert f"{said}; Latin script is taken for german\n" in outcome.err
    record = run("index", "stats", tmp_path / "IDX", "--json").record
    assert record["language"] == "german"
    (corpus / "b.txt").write_text("The lighthouse of the island was built on a rock.", "utf-8")
    words = ("index", corpus, "--out", tmp_path / "mixed", "--language", "auto", "--json")
    outcome = run(*words)
    assert "german 50%, english 50% of 2 passages" in outcome.err
    assert "Latin script is taken for german and english\n" in outcome.err
    detected = json.loads(outcome.out)["content"]["detected"]
    assert detected["languages"] == {"german": 0.5, "english": 0.5}
    assert run("index", corpus, "--out", tmp_path / "given").err == ""
