"""Which files of a folder are read; every other one is named with its reason."""

import os
from pathlib import Path

import pytest

from flashback.corpus.documents import CorpusReport
from flashback.corpus.formats import datasets
from flashback.corpus.formats.file_settings import FileSettings
from flashback.corpus.formats.sources import find_sources
from flashback.errors import CorpusError, SettingsError
from flashback.retrieval.indexing import open_corpus
from made_files import parquet, write

FILES = ("a.txt", "b.md", "image.png", "Makefile", ".hidden.txt", ".git/c.txt", "drafts/d.md")


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in FILES:
        write(tmp_path / name, "text")


def look(**settings: object) -> tuple[list[str], dict[str, str]]:
    """The names of what is read, and the reasons for the rest."""
    report = CorpusReport()
    chosen = FileSettings(**settings)  # type: ignore[arg-type]
    found = [one.name for one in find_sources(["."], report, chosen)]
    assert report.ignored_files == len(report.skipped)
    return found, {one.file: one.reason for one in report.skipped}


def test_every_file_is_read_or_named_with_a_reason() -> None:
    os.symlink("drafts", "linked")
    os.symlink("nowhere", "gone.txt")
    found, reasons = look()
    assert found == ["a.txt", "b.md", "drafts/d.md"]
    assert reasons == {
        ".git/": "hidden; hidden=True reads it".replace("hidden=True", "--hidden=True"),
        "linked/": "a link to a folder; name the folder itself",
        ".hidden.txt": "hidden; --hidden=True reads it",
        "Makefile": "unknown format: no suffix",
        "gone.txt": "a link that leads nowhere",
        "image.png": "unknown format '.png'",
    }


def test_hidden_files_are_read_if_asked_for() -> None:
    found, _ = look(hidden=True)
    assert found == [".hidden.txt", "a.txt", "b.md", ".git/c.txt", "drafts/d.md"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"include": ("*.md",)}, ["b.md", "drafts/d.md"]),
        ({"include": ("*.md", "a.*")}, ["a.txt", "b.md", "drafts/d.md"]),
        ({"include": ("drafts/*",)}, ["drafts/d.md"]),
        ({"include": ("./drafts/*",)}, ["drafts/d.md"]),
        ({"exclude": ("drafts",)}, ["a.txt", "b.md"]),
        ({"exclude": ("drafts/",)}, ["a.txt", "b.md"]),
        ({"exclude": ("*.txt",)}, ["b.md", "drafts/d.md"]),
        ({"include": ("*.md",), "exclude": ("drafts/*",)}, ["b.md"]),
    ],
)
def test_patterns_choose_files(settings: dict[str, object], expected: list[str]) -> None:
    found, reasons = look(**settings)
    assert found == expected
    assert any("clude" in reason for reason in reasons.values())


def test_patterns_are_several() -> None:
    with pytest.raises(SettingsError, match="include"):
        FileSettings(include="*.md")  # type: ignore[arg-type]


def test_of_very_many_skipped_files_all_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CorpusReport, "KEPT_FILES", 2)
    report = CorpusReport()
    find_sources(["."], report)
    assert (report.ignored_files, len(report.skipped)) == (4, 2)


# Data sets as the hub has them

HUB = (
    "README.md",
    "small/train-00000-of-00002.parquet",
    "small/train-00001-of-00002.parquet",
    "small/test-00000-of-00001.parquet",
    "large/train-00000-of-00001.parquet",
)


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A folder as the hub has it; the text of a row is its file's name."""
    for name in HUB:
        write(tmp_path / "hub" / name, parquet({"body": [f"{name} 1", f"{name} 2"]}))
    return tmp_path / "hub"


def texts(name: str) -> tuple[list[str], CorpusReport]:
    report = CorpusReport()
    corpus = open_corpus([name], report, FileSettings(text_field="body"))
    return sorted({one.text[:-2] for one in corpus.read(lambda _: None)}), report


@pytest.mark.parametrize(
    ("part", "files"),
    [
        ("", HUB[1:]),
        (":train", (HUB[4], HUB[1], HUB[2])),
        (":test", (HUB[3],)),
        (":small/train", HUB[1:3]),
    ],
)
def test_a_data_set_is_read_from_a_folder(hub: Path, part: str, files: tuple[str, ...]) -> None:
    found, report = texts(f"dataset{part}@{hub}")
    assert found == sorted(files)
    assert report.documents == 2 * len(files)
    assert report.ignored_files == len(HUB) - len(files)


def test_a_data_set_is_asked_of_the_hub(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot(name: str, repo_type: str, allow_patterns: list[str]) -> str:
        asked.append((name, repo_type, allow_patterns[-1]))
        return str(hub)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    found, report = texts("dataset:owner/name:small/train")
    assert found == sorted(HUB[1:3])
    assert asked == [("owner/name", "dataset", "*small*train*.parquet")]
    corpus = open_corpus(["dataset:owner/name"], report, FileSettings(text_field="body"))
    first = next(iter(corpus.read(lambda _: None)))
    assert first.id == "owner/name/large/train-00000-of-00001.parquet:1"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dataset", r"expected dataset:OWNER/NAME, or dataset@FOLDER"),
        ("dataset:name", r"expected dataset:OWNER/NAME"),
        ("dataset@absent", "no such folder"),
        ("dataset:validation@hub", "no files of part 'validation' in it; expected .jsonl"),
    ],
)
def test_what_is_no_data_set_is_refused(hub: Path, name: str, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        texts(name)


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no\nnetwork")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(CorpusError, match=r"cannot be fetched: no network \(OSError\)"):
        datasets.fetch("owner/name", "")
