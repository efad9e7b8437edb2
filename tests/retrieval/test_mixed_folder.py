"""A folder of many formats becomes an index: every file is read, or named with a reason."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from command_line import run
from flashback.corpus.documents import CorpusReport
from flashback.retrieval.indexing import index_corpus
from flashback.retrieval.kinds import Index, open_index
from flashback.settings import SearchOptions
from made_files import (
    OLD_WORD,
    SCRIPTS_ONLY,
    docx,
    epub,
    notebook,
    page,
    parquet,
    pdf,
    table,
    write,
    zipped,
)

KINDS = 15
PAGES = 4
FILLING = "This page says nothing of interest to anybody. " * 3


def word(number: int) -> str:
    """A word that one file alone has."""
    return f"q{'abcdefghij'[number % 10]}{'klmnopqrst'[number // 10 % 10]}{'uvwxyz'[number // 100]}"


def good(number: int) -> tuple[str, bytes]:
    """The end of a file's name, and its content, in one of the formats that are read."""
    said = f"The keeper of lighthouse {number} is called {word(number)}."
    pages = [FILLING] * PAGES
    pages[number % PAGES] = said
    sections = (("Weather", FILLING), ("Keepers", said))
    row = [["id", "text"], [f"row-{number}", said]]
    makers: list[Callable[[], tuple[str, bytes]]] = [
        lambda: ("pdf", pdf(pages)),
        lambda: ("html", page(sections)),
        lambda: ("docx", docx(sections)),
        lambda: ("epub", epub([page(sections[:1]), page(sections[1:])])),
        lambda: ("csv", table(row)),
        lambda: ("tsv", table(row, "\t")),
        lambda: ("parquet", parquet({"id": row[1][:1], "text": row[1][1:]})),
        lambda: ("ipynb", notebook([("markdown", "# Keepers"), ("code", f"x = '{said}'")])),
        lambda: ("txt", said.encode()),
        lambda: ("md", f"# Weather\n\n{FILLING}\n\n# Keepers\n\n{said}\n".encode()),
        lambda: ("rst", said.encode()),
        lambda: ("jsonl", f'{{"text": "{said}"}}\n'.encode()),
        lambda: ("py", f'def keeper():\n    """{said}"""\n'.encode()),
        lambda: ("rs", f"// {said}\n".encode()),
        lambda: ("pdf", pdf(["", said])),
    ]
    return makers[number % KINDS]()


BAD = {
    "broken.pdf": b"%PDF-1.7",
    "locked.pdf": pdf(["The secret."], encrypted=True),
    "locked.docx": OLD_WORD,
    "scripts.html": SCRIPTS_ONLY,
    "columns.csv": b"a,b\n1,2\n",
    "again.jsonl": b'{"id": "row-4", "text": "A second keeper."}\n',
    "other.docx": zipped({"a": b"b"}),
    "empty.md": b"\n",
    "binary.txt": b"\0\0\0",
}
SKIPPED = {"photo.jpg": b"\xff\xd8", "Makefile": b"all:", ".hidden.txt": b"x", "z.tar.gz": b"\x1f"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("mixed")
    for number in range(190):
        suffix, data = good(number)
        write(base / f"part {number % 7}" / f"file{number:03}.{suffix}", data)
    for name, data in (BAD | SKIPPED).items():
        write(base / "zz" / name, data)
    return base


@pytest.fixture(scope="module")
def indexed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Index, CorpusReport]:
    report = CorpusReport()
    target = tmp_path_factory.mktemp("index") / "IDX"
    index_corpus(folder, target, report=report)
    return open_index(target), report


def test_every_file_is_read_or_named_with_its_reason(
    folder: Path, indexed: tuple[Index, CorpusReport]
) -> None:
    index, report = indexed
    bad = {Path(record.file).name: record.reason for record in report.examples}
    skipped = {Path(file.file).name: file.reason for file in report.skipped}
    assert set(bad) == set(BAD)
    assert set(skipped) == set(SKIPPED)
    assert all({**bad, **skipped}.values())
    assert report.documents == 190
    assert index.manifest.content.counts["bad_records"] == len(BAD)
    assert len(list(folder.rglob("*.*"))) + 1 == 190 + len(BAD) + len(SKIPPED)


def test_every_file_is_found_by_its_word(indexed: tuple[Index, CorpusReport]) -> None:
    index, _ = indexed
    for number in range(190):
        (hits,) = index.search([word(number)], SearchOptions(k=3))
        assert f"lighthouse {number} " in " ".join(hits[0].text.split())
        assert len(hits) == 1


def test_a_hit_knows_its_place(indexed: tuple[Index, CorpusReport]) -> None:
    index, _ = indexed
    for number in range(0, 190, KINDS):
        (hits,) = index.search([word(number)], SearchOptions(k=1))
        place = hits[0].place
        assert place is not None
        assert place.page == number % PAGES + 1
        assert hits[0].source == f"part {number % 7}/file{number:03}.pdf, page {place.page}"
    for number in (1, 2, 3, 9):
        (hits,) = index.search([word(number)], SearchOptions(k=1))
        assert hits[0].place is not None
        assert hits[0].place.heading == "Keepers"


def test_search_and_index_say_it_on_the_command_line(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "IDX"
    made = run("index", folder, "--out", target, "--model", "none", "--include", "*.pdf")
    assert "locked.pdf: encrypted; save it without a password" in made.err
    assert "fits no --include" in made.err
    found = run("search", target, word(0))
    assert found.out.startswith("1. part 0/file000.pdf, page 1  [")
    assert asdict(open_index(target).search(["keeper"], SearchOptions(k=1))[0][0])["place"]
