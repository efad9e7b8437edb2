"""Every format is read with the places of its text, and what cannot be read becomes one line."""

import gzip
import itertools
import json
import string
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flashback.corpus.documents import CorpusReport, Document
from flashback.corpus.formats import archives, lines, restructured
from flashback.corpus.formats import format as format_module
from flashback.corpus.formats.file_settings import FileSettings
from flashback.corpus.formats.reading import read_documents
from flashback.corpus.formats.registry import FORMATS, format_of
from flashback.corpus.formats.sources import find_sources
from flashback.corpus.passages import Passage, cut_documents
from flashback.errors import CorpusError
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

SECTIONS = (("Tides", "The tide follows the moon."), ("Lamps", "The lamp burns oil."))
Read = Callable[..., tuple[list[Document], CorpusReport]]


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Read:
    """Reads one file of a name and content."""
    monkeypatch.chdir(tmp_path)

    def one(
        name: str, data: bytes | str, *, strict: bool = False, **settings: str
    ) -> tuple[list[Document], CorpusReport]:
        path = write(tmp_path / name, data)
        report = CorpusReport(strict=strict)
        steps: list[int] = []
        chosen = FileSettings(**settings)  # type: ignore[arg-type]
        found = list(read_documents(find_sources([name], report), report, steps.append, chosen))
        assert sum(steps) == path.stat().st_size
        return found, report

    return one


def places(documents: list[Document]) -> list[str]:
    """The place of every passage, and its text in one line."""
    return [
        f"{passage.place}: {' '.join(passage.text.split())}" for passage in passages_of(documents)
    ]


def passages_of(documents: list[Document]) -> list[Passage]:
    """Passages, which are the text at their offsets."""
    found = list(cut_documents(documents))
    text = "".join(document.text for document in documents)
    for passage in found:
        assert passage.place is not None
        assert passage.text == text[passage.place.start : passage.place.end]
    return found


# What is read


def test_a_pdf_knows_its_pages(read: Read) -> None:
    long = "\n".join(f"Line {n} of the second page is long enough." for n in range(30))
    found, report = read("m.pdf", pdf(["The first (page).", long, "", "The last."]))
    passages = passages_of(found)
    pages = [passage.place.page or 0 for passage in passages if passage.place]
    assert pages[0] == 1
    assert sorted(pages) == pages
    assert "The first (page)." in passages[0].text
    assert all(page == 2 for page, one in zip(pages[1:-1], passages[1:-1], strict=True) if one)
    assert report == CorpusReport(documents=1)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.html", page(SECTIONS)),
        ("a.htm", page(SECTIONS)),
        ("a.docx", docx(SECTIONS)),
        ("a.epub", epub([page(SECTIONS[:1]), page(SECTIONS[1:])])),
    ],
)
def test_formats_with_headings_cut_at_them(read: Read, name: str, data: bytes) -> None:
    found, report = read(name, data)
    assert places(found) == [
        '"Tides": Tides The tide follows the moon.',
        '"Lamps": Lamps The lamp burns oil.',
    ]
    assert [(one.id, one.title) for one in found] == [(name, name)]
    assert report == CorpusReport(documents=1)


def test_markdown_knows_headings_and_lines(read: Read) -> None:
    text = (
        "---\ntitle: x\n---\nBefore.\n\n# One\n\n## Two *deep*\n\nText.\n\n"
        "```\n# no\n```\n\nThree\n=====\n\nEnd.\n"
    )
    found, _ = read("a.md", text)
    assert places(found) == [
        "line 1: --- title: x --- Before.",
        '"Two *deep*", line 6: # One ## Two *deep* Text. ``` # no ```',
        '"Three", line 16: Three ===== End.',
    ]


SPHINX = """\
=====
Tides
=====

Before |sub|, :func:`x` and `unfinished.

.. tabs:: foo
   :no: option

   Inside
   ------

Two :mod:`parts`
----------------

.. include:: made.txt
.. raw:: html
   :file: made.txt

Deep
~~~~
"""


def test_restructured_text_knows_headings_and_lines(read: Read, tmp_path: Path) -> None:
    write(tmp_path / "made.txt", "Included\n========\n")
    found, report = read("a.rst", SPHINX)
    assert places(found) == [
        '"Tides", line 1: ===== Tides ===== Before |sub|, :func:`x` and `unfinished. .. tabs:: foo '
        ":no: option Inside ------",
        '"Two :mod:`parts`", line 13: Two :mod:`parts` ---------------- .. include:: made.txt .. '
        "raw:: html :file: made.txt",
        '"Deep", line 20: Deep ~~~~',
    ]
    assert report == CorpusReport(documents=1)


def test_restructured_text_is_read_without_docutils(
    read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flashback.corpus.formats.restructured.find_spec", lambda _: None)
    found, _ = read("a.rst", SPHINX)
    assert "".join(one.text for one in found) == SPHINX
    assert {one.layout.headings for one in found} == {()}


@example([("=", False, ":\x85:")])
@given(
    st.lists(
        st.tuples(
            st.sampled_from("=-~^"), st.booleans(), st.text("ab é雪`*|:_.\\\t\v\x85", min_size=1)
        ),
        max_size=6,
    )
)
def test_headings_stand_where_they_say_they_do(titles: list[tuple[str, bool, str]]) -> None:
    """Whatever stands around them, none is lost that is a title and of a level that may be."""
    marked = []
    for mark, over, title in titles:
        line = mark * (2 * len(title.expandtabs()) + 4) + "\n"
        marked.append(f"{line if over else ''}{title}\n{line}\nText.\n\n")
    text = "".join(marked)
    found = restructured.headings(text)
    for one in found:
        lines = text[one.begin : one.end].translate({11: " ", 12: " "}).splitlines()
        assert len(lines) in (2, 3)
        assert one.title == " ".join(lines[-2].split())
        assert len({*lines[-1]}) == 1
        assert lines[-1][0] in string.punctuation  # a title ":\x85:" is a heading of its own
    assert all(one.end <= other.begin for one, other in itertools.pairwise(found))


@given(st.text("=-~`.:|*_ \n\tab\\[]<>0{}'", max_size=200))
def test_no_text_is_too_wrong_for_its_headings(text: str) -> None:
    assert all(0 <= one.begin < one.end <= len(text) for one in restructured.headings(text))


def test_plain_text_knows_lines(read: Read) -> None:
    text = "\n\n" + "\n".join(f"Sentence {n} has words in it." for n in range(40))
    found, _ = read("a.txt", text)
    split = text.split("\n")
    for passage in passages_of(found):
        assert passage.place is not None
        assert passage.place.line is not None
        assert split[passage.place.line - 1] == passage.text.split("\n")[0]


def test_python_knows_its_classes_and_functions(read: Read) -> None:
    text = (
        '"""A module."""\n\nimport os\n\n\n@decorated\ndef first(a):\n    return a\n\n\n'
        "class Second:\n    def third(self):\n        pass\n"
    )
    found, _ = read("a.py", text)
    assert places(found) == [
        'line 1: """A module.""" import os',
        '"first", line 6: @decorated def first(a): return a',
        '"Second.third", line 11: class Second: def third(self): pass',
    ]
    assert places(read("b.py", "def broken(:\n")[0]) == ["line 1: def broken(:"]
    assert places(read("c.rs", "fn main() {}\n")[0]) == ["line 1: fn main() {}"]


def test_a_notebook_is_the_sources_of_its_cells(read: Read) -> None:
    cells = [("markdown", "# Tides\nText."), ("code", "print(1)\n"), ("markdown", "## Moon\nMore.")]
    found, _ = read("a.ipynb", notebook(cells))
    assert places(found) == ['"Tides": # Tides Text. print(1)', '"Moon": ## Moon More.']
    old = {"worksheets": [{"cells": [{"cell_type": "code", "input": ["x = 1"]}]}]}
    assert [one.text for one in read("b.ipynb", json.dumps(old))[0]] == ["x = 1"]


def test_cells_of_tables_stay_apart(read: Read) -> None:
    rows = [["port", "height of the tide"], ["Brest", "7 m"]]
    (found,), _ = read("a.docx", docx([], rows))
    assert found.text == "port | height of the tide\nBrest | 7 m"
    cells = "".join(f"<tr>{''.join(f'<td>{one}</td>' for one in row)}</tr>" for row in rows)
    (found,), _ = read("a.html", f"<table>{cells}</table>")
    assert [line.rstrip().split("  ") for line in found.text.splitlines()] == rows


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("<p>caf\xe9".encode(), "caf\xe9"),
        (b"<meta charset=latin-1><p>caf\xe9", "caf\xe9"),
        (b"\xef\xbb\xbf<p>caf\xc3\xa9", "caf\xe9"),
    ],
)
def test_html_is_utf8_or_what_it_says(read: Read, data: bytes, text: str) -> None:
    (found,), _ = read("a.html", data)
    assert found.text.strip("\ufeff \n") == text


ROWS = {"id": ["a", "b"], "title": ["A", "B"], "text": ["The tide.", "The\nlamp."]}


def rows_of(columns: dict[str, list[str]]) -> list[list[str]]:
    return [list(columns), *map(list, zip(*columns.values(), strict=True))]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", table(rows_of(ROWS))),
        ("a.csv", b"\xef\xbb\xbf" + table(rows_of(ROWS), ";")),
        ("a.tsv", table(rows_of(ROWS), "\t")),
        ("a.csv.gz", gzip.compress(table(rows_of(ROWS)), mtime=0)),
        ("a.parquet", parquet(ROWS)),
    ],
)
def test_a_table_is_a_document_for_every_row(read: Read, name: str, data: bytes) -> None:
    found, report = read(name, data)
    assert [(one.id, one.title, one.text.replace("\r", "")) for one in found] == [
        ("a", "A", "The tide."),
        ("b", "B", "The\nlamp."),
    ]
    assert report == CorpusReport(documents=2)


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "a.jsonl"])
def test_columns_may_have_any_names(read: Read, name: str) -> None:
    columns = {"key": ["7"], "head": ["Moon"], "body": ["The tide."], "text": ["Not this."]}
    data = {
        "a.csv": table(rows_of(columns)),
        "a.parquet": parquet(columns),
        "a.jsonl": json.dumps({key: values[0] for key, values in columns.items()}).encode(),
    }
    names = {"text_field": "body", "title_field": "head", "id_field": "key"}
    assert read(name, data[name], **names)[0] == [Document("7", "Moon", "The tide.")]


def test_the_longest_known_end_of_a_name_decides() -> None:
    assert {suffix: format_of(f"a.b{suffix.upper()}") for suffix in FORMATS} == FORMATS
    assert format_of("a.gz") is None
    assert format_of("pdf") is None


# What is not

LYING = zipped({"word/document.xml": bytes(100_000)})
BROKEN: dict[str, tuple[str, bytes, str]] = {
    "no PDF": ("a.pdf", b"%PDF-1.7 nothing", "no readable PDF: "),
    "a truncated PDF": ("a.pdf", pdf(["The tide."])[:200], "no readable PDF: "),
    "an encrypted PDF": ("a.pdf", pdf(["The tide."], encrypted=True), "encrypted; save it"),
    "a PDF of images": ("a.pdf", pdf(["", ""]), "no text on its pages (2)"),
    "an encrypted DOCX": ("a.docx", OLD_WORD, "encrypted, or of an old format"),
    "no archive": ("a.docx", b"PK", "damaged: "),
    "another archive": ("a.docx", zipped({"a": b"b"}), "no readable DOCX: "),
    "a truncated archive": ("a.docx", docx(SECTIONS)[:-100], "damaged: "),
    "an archive that lies": (
        "a.docx",
        LYING.replace((100_000).to_bytes(4, "little"), (90).to_bytes(4, "little")),
        "no readable DOCX: ",
    ),
    "an empty DOCX": ("a.docx", docx([]), "no text in this file"),
    "no book": ("a.epub", zipped({"a": b"b"}), "damaged: META-INF/container.xml is missing"),
    "a book of nothing": ("a.epub", epub([]), "no text in this file"),
    "a page that is missing": (
        "a.epub",
        epub(
            [],
            {
                "OPS/book.opf": b"<package><manifest><item id='a' href='gone.xhtml'/></manifest>"
                b"<spine><itemref idref='a'/></spine></package>"
            },
        ),
        "damaged: OPS/gone.xhtml is missing",
    ),
    "a locked book": (
        "a.epub",
        epub(
            [page(SECTIONS)],
            {
                "META-INF/encryption.xml": b"<e xmlns='x'><CipherReference "
                b"URI='OPS/text/chapter%200.xhtml'/></e>"
            },
        ),
        "digital rights management",
    ),
    "entities": (
        "a.epub",
        epub(
            [],
            {
                "META-INF/container.xml": b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>'
                b"<a>&b;</a>"
            },
        ),
        "no book in it",
    ),
    "scripts only": ("a.html", SCRIPTS_ONLY, "no text in this file"),
    "an empty page": ("a.html", b" \n", "no text in this file"),
    "endless nesting": ("a.html", b"<div>" * 100_000 + b"text", "no readable HTML: "),
    "no notebook": ("a.ipynb", b"{}", "no notebook: "),
    "no cell": ("a.ipynb", b'{"cells": [1]}', "no notebook: "),
    "no JSON": ("a.ipynb", b"{", "not JSON"),
    "a lone surrogate": (
        "a.ipynb",
        b'{"cells": [{"source": "\\ud800"}]}',
        "a lone surrogate",
    ),
    "no text column": ("a.csv", b"a,b\n1,2\n", "no column 'text' or 'contents'; found 'a', 'b'"),
    "an empty table": ("a.csv", b"", "no column 'text' or 'contents'; found none"),
    "a column of another name": ("a.parquet", parquet({"body": ["x"]}), "found 'body'; name the"),
    "no Parquet": ("a.parquet", b"PAR1" * 10, "no readable Parquet: "),
    "a column of numbers": ("a.parquet", parquet({"text": [1]}), "no text: expected a non-empty"),
}


@pytest.mark.parametrize(("name", "data", "reason"), BROKEN.values(), ids=BROKEN.keys())
def test_what_cannot_be_read_is_one_line_or_refused_if_strict(
    read: Read, name: str, data: bytes, reason: str
) -> None:
    found, report = read(name, data)
    assert found == []
    assert report.bad_records == 1
    line = str(report.examples[0])
    assert reason in line
    assert line.startswith(f"{name}:")
    assert "\n" not in line
    with pytest.raises(CorpusError, match=r"^a\..*strict=True"):
        read(name, data, strict=True)


def test_any_exception_of_a_parser_is_a_bad_record(
    read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("pypdfium2.PdfDocument", fail)
    _, report = read("a.pdf", pdf(["x"]))
    assert report.examples[0].reason == "no readable PDF: no reason given (MemoryError)"


@pytest.mark.parametrize("name", ["a.docx", "a.epub"])
def test_a_zip_bomb_is_not_unpacked(read: Read, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("unpacked")

    monkeypatch.setattr(archives, "MOST_UNPACKED_BYTES", 1_000_000)
    monkeypatch.setattr(zipfile.ZipFile, "read", refuse)
    _, report = read(name, zipped({"word/document.xml": bytes(2_000_000)}))
    assert report.examples[0].reason == "unpacked 2,000,000 bytes; expected at most 1,000,000"


def test_a_line_without_an_end_is_one_bad_record(
    read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MOST_LINE_BYTES", 1000)
    good = b'{"text": "good"}\n'
    long = b'{"text": "' + b"x" * 5000 + b'"}\n'
    found, report = read("a.jsonl", good + long + good)
    assert [one.text for one in found] == ["good", "good"]
    assert [str(one) for one in report.examples] == [
        "a.jsonl:2: a line of over 1,000 bytes, which is the most"
    ]
    found, report = read("a.csv", b"text\ngood\n" + b"x" * 5000)
    assert [one.text for one in found] == ["good"]
    assert report.bad_records == 1


def test_a_quote_that_does_not_end_is_a_bad_table(
    read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flashback.corpus.formats.tables.MOST_LINE_BYTES", 1000)
    found, report = read("a.csv", b'text\ngood\n"' + b"no end\n" * 1000)
    assert [one.text for one in found] == ["good"]
    assert "field larger than field limit" in report.examples[0].reason


def test_a_large_page_is_not_parsed(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(format_module, "MOST_FILE_BYTES", 100)
    _, report = read("a.html", page(SECTIONS))
    assert "bytes; expected at most 100" in report.examples[0].reason


def test_an_id_in_two_files_is_a_bad_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one = [{"id": "a", "text": "part 1"}, {"id": "a", "text": "part 2"}, {"id": "b", "text": "b"}]
    two = [{"id": "c", "text": "c"}, {"id": "a", "text": "no"}, {"id": "a", "text": "no"}]
    for name, records in (("1.jsonl", one), ("2.jsonl", two)):
        write(tmp_path / name, "".join(json.dumps(record) + "\n" for record in records))
    report = CorpusReport()
    found = read_documents(find_sources(["."], report), report)
    assert [one.text for one in found] == ["part 1", "part 2", "b", "c"]
    assert report.documents == 3
    assert [str(one) for one in report.examples] == [
        "2.jsonl:2: id 'a' is that of a document of 1.jsonl already"
    ]
    strict = CorpusReport(strict=True)
    with pytest.raises(CorpusError, match=r"^2\.jsonl:2: id 'a'"):
        list(read_documents(find_sources(["."], strict), strict))


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.pdf", pdf(["x"]))
    write(tmp_path / "b.txt", "text")
    monkeypatch.setattr(format_module, "find_spec", lambda name: None)
    report = CorpusReport()
    assert [one.name for one in find_sources(["."], report)] == ["b.txt"]
    assert str(report.examples[0]).startswith("a.pdf: PDF needs pypdfium2; pip install '.[files]'")
    with pytest.raises(CorpusError, match=r"corpus a\.pdf: PDF needs pypdfium2"):
        find_sources(["a.pdf"], CorpusReport())
