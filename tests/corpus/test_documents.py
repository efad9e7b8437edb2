"""Documents in: every format is read whole, and what cannot be read is named."""

import gzip
import io
import json
import os
import random
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flashback.corpus.formats.plain as plain_module
from flashback.corpus.documents import BadRecord, CorpusReport, Document
from flashback.corpus.formats.plain import BLOCK_BYTES
from flashback.corpus.formats.reading import read_documents
from flashback.corpus.formats.sources import find_sources
from flashback.errors import CorpusError

BOM = b"\xef\xbb\xbf"
Pipe = Callable[[bytes], None]


@pytest.fixture(autouse=True)
def _in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources carry the path as it was given; the tests give it relative to their folder."""
    monkeypatch.chdir(tmp_path)


def read(*names: str | Path, strict: bool = False) -> tuple[list[Document], CorpusReport]:
    report = CorpusReport(strict=strict)
    given = [name if name == "-" else os.path.relpath(name) for name in names]
    return list(read_documents(find_sources(given, report), report)), report


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def json_lines(*records: object) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Pipe:
    """Puts bytes on standard input."""

    def put(data: bytes) -> None:
        raw = io.BufferedReader(io.BytesIO(data))
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(raw))

    return put


@pytest.mark.parametrize("suffix", [".txt", ".md", ".rst"])
def test_a_text_file_is_one_document_named_after_it(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"notes{suffix}", "One line.\n\nAnother, with é.")
    found, report = read(path)
    assert found == [Document(path.name, path.name, "One line.\n\nAnother, with é.")]
    assert report == CorpusReport(documents=1)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_json_lines_may_have_our_field_names_or_those_of_beir_and_pyserini(
    tmp_path: Path, suffix: str
) -> None:
    data = json_lines(
        {"id": "a", "title": "A", "text": "ours"},
        {"_id": "b", "title": "B", "text": "BEIR's"},
        {"id": "c", "contents": "Pyserini's"},
        {"id": 7, "text": "a number"},
        {"text": "no id", "title": None},
    )
    path = write(tmp_path / f"c{suffix}", gzip.compress(data) if suffix.endswith("gz") else data)
    found, report = read(path)
    assert found == [
        Document("a", "A", "ours"),
        Document("b", "B", "BEIR's"),
        Document("c", "", "Pyserini's"),
        Document("7", "", "a number"),
        Document(f"{path.name}:5", "", "no id"),
    ]
    assert report == CorpusReport(documents=5)


def test_blank_lines_between_records_are_no_bad_records(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", b'\n{"text": "one"}\r\n  \n\n{"text": "two"}')
    found, report = read(path)
    assert [document.text for document in found] == ["one", "two"]
    assert report.bad_records == 0


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path, pipe: Pipe) -> None:
    text = write(tmp_path / "a.txt", BOM + b"text")
    records = write(tmp_path / "b.jsonl", BOM + json_lines({"text": "record"}))
    pipe(BOM + json_lines({"text": "piped"}))
    found, report = read(text, records, "-")
    assert [document.text for document in found] == ["text", "record", "piped"]
    assert report.bad_records == 0


def test_folders_are_read_in_order_without_hidden_folders_and_other_formats(tmp_path: Path) -> None:
    for name in ("b.txt", "a.md", "sub/deep/c.rst", ".git/d.txt", "sub/.cache/e.txt"):
        write(tmp_path / name, name)
    for name in ("image.png", "sub/script.xyz"):
        write(tmp_path / name, name)
    found, report = read(tmp_path)
    assert [document.id for document in found] == ["a.md", "b.txt", "sub/deep/c.rst"]
    assert [file.file for file in report.skipped] == [
        ".git/",
        "image.png",
        "sub/.cache/",
        "sub/script.xyz",
    ]
    assert report.ignored_files == 4


def test_standard_input_may_hold_json_lines_longer_than_a_block(pipe: Pipe) -> None:
    long = "word " * (BLOCK_BYTES // 4)
    pipe(b"\n " + json_lines({"id": "a", "text": "short"}, {"id": "b", "text": long}))
    found, report = read("-")
    assert found == [Document("a", "", "short"), Document("b", "", long)]
    assert report == CorpusReport(documents=2)


def test_standard_input_may_hold_plain_text(pipe: Pipe) -> None:
    pipe(b"Plain text.\nTwo lines of it.\n")
    found, _ = read("-")
    assert found == [
        Document("standard input", "standard input", "Plain text.\nTwo lines of it.\n")
    ]


def test_standard_input_cannot_be_named_twice(pipe: Pipe) -> None:
    pipe(b"text")
    with pytest.raises(CorpusError, match="standard input can be read only once"):
        read("-", "-")


def test_a_large_text_file_comes_in_blocks_of_one_document(tmp_path: Path) -> None:
    text = "".join(f"This is line {n} of a large file.\n" for n in range(70_000))
    found, report = read(write(tmp_path / "large.txt", text))
    assert len(found) == 3
    assert {document.id for document in found} == {"large.txt"}
    assert "".join(document.text for document in found).rstrip() == text.rstrip()
    assert max(len(document.text) for document in found) < BLOCK_BYTES + 100
    assert report == CorpusReport(documents=1)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    text=st.text(st.sampled_from("ab \n.éß中🙂"), max_size=60),
    block=st.integers(1, 12),
)
def test_blocks_lose_nothing_even_where_they_cut_a_long_line(
    tmp_path_factory: pytest.TempPathFactory, text: str, block: int
) -> None:
    path = write(tmp_path_factory.getbasetemp() / "blocks.txt", text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain_module, "BLOCK_BYTES", block)
        found, report = read(path)
    assert "".join(document.text for document in found).rstrip() == text.rstrip()
    assert report.bad_records == (not text.strip())


BAD_RECORDS = {
    "not JSON": (b"{oops", "not JSON"),
    "endless nesting": (b"[" * 100_000, "not JSON"),
    "endless number": (b'{"text": "x", "id": ' + b"9" * 5000 + b"}", "not JSON"),
    "not an object": (b"[1, 2]", "expected a JSON object, found list"),
    "no text": (b'{"title": "x"}', "no text"),
    "empty text": (b'{"text": " \\n"}', "no text"),
    "text of wrong type": (b'{"text": 5}', "no text"),
    "title of wrong type": (b'{"text": "x", "title": 5}', "'title' is int"),
    "id of wrong type": (b'{"text": "x", "id": [1]}', "'id' is list"),
    "NUL byte": (b'{"text": "a\0b"}', "binary data"),
    "not UTF-8": (b'{"text": "caf\xe9"}', "not UTF-8 at byte 14"),
    "lone surrogate": (b'{"text": "\\ud83d"}', "lone surrogate"),
}


@pytest.mark.parametrize(("line", "reason"), BAD_RECORDS.values(), ids=BAD_RECORDS.keys())
def test_a_bad_record_is_skipped_and_named_or_refused_if_strict(
    tmp_path: Path, line: bytes, reason: str
) -> None:
    good = json_lines({"id": "a", "text": "good"})
    path = write(tmp_path / "c.jsonl", good + line + b"\n" + good)
    found, report = read(path)
    assert [document.text for document in found] == ["good", "good"]
    assert report.bad_records == 1
    assert str(report.examples[0]).startswith("c.jsonl:2: ")
    assert reason in report.examples[0].reason
    with pytest.raises(CorpusError, match=r"^c\.jsonl:2: .*strict=True") as caught:
        read(path, strict=True)
    assert "\n" not in str(caught.value)


def test_only_the_first_bad_records_are_kept_but_all_are_counted(tmp_path: Path) -> None:
    found, report = read(write(tmp_path / "c.jsonl", b"bad\n" * 100))
    assert (found, report.bad_records) == ([], 100)
    assert [record.line for record in report.examples] == list(range(1, CorpusReport.KEPT + 1))


def test_a_line_of_text_that_is_not_utf8_is_left_out(tmp_path: Path) -> None:
    found, report = read(write(tmp_path / "a.txt", b"one\ncaf\xe9\nthree\n"))
    assert [document.text for document in found] == ["one\nthree\n"]
    assert report.examples == [BadRecord("a.txt", 2, "not UTF-8 at byte 4 of the line")]


def test_a_binary_file_named_as_text_is_given_up_once(tmp_path: Path) -> None:
    found, report = read(write(tmp_path / "a.txt", b"\x7fELF\0\0\n" * 50))
    assert found == []
    assert report.examples == [BadRecord("a.txt", 1, "binary data; expected UTF-8 text")]
    with pytest.raises(CorpusError, match="binary data"):
        read(tmp_path / "a.txt", strict=True)


@pytest.fixture
def compressed() -> bytes:
    rng = random.Random(0)
    return gzip.compress(json_lines(*({"text": rng.randbytes(50).hex()} for _ in range(1000))))


def truncated(data: bytes) -> bytes:
    return data[:-500]


def with_a_wrong_checksum(data: bytes) -> bytes:
    return data[:-8] + bytes(4) + data[-4:]


def overwritten_in_the_middle(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + b"\xff" * 100 + data[middle + 100 :]


def without_a_gzip_header(data: bytes) -> bytes:
    return b"PK" + data[2:]


@pytest.mark.parametrize(
    ("damage", "most_lost"),
    [
        (truncated, 200),
        (with_a_wrong_checksum, 0),
        (without_a_gzip_header, 1000),
    ],
)
def test_damaged_gzip_data_is_named_and_what_stands_before_it_kept(
    tmp_path: Path, compressed: bytes, damage: Callable[[bytes], bytes], most_lost: int
) -> None:
    path = write(tmp_path / "c.jsonl.gz", damage(compressed))
    found, report = read(path)
    assert len(found) >= 1000 - most_lost
    assert "damaged gzip data" in report.examples[-1].reason
    with pytest.raises(CorpusError, match=r"^c\.jsonl\.gz:\d+: damaged gzip data"):
        read(path, strict=True)


def test_damage_in_the_middle_of_gzip_data_spares_the_records_before_it(
    tmp_path: Path, compressed: bytes
) -> None:
    whole, _ = read(write(tmp_path / "c.jsonl.gz", compressed))
    found, report = read(write(tmp_path / "c.jsonl.gz", overwritten_in_the_middle(compressed)))
    assert found[:400] == whole[:400]
    assert report.bad_records


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.txt", "no such file or folder"),
        ("table.xls", r"unknown format; expected one of \.txt"),
    ],
)
def test_a_name_that_is_no_corpus_is_refused(tmp_path: Path, name: str, message: str) -> None:
    write(tmp_path / "table.xls", "a,b")
    with pytest.raises(CorpusError, match=message):
        read(tmp_path / name)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "text")
    report = CorpusReport()
    sources = find_sources(["a.txt"], report)
    path.unlink()
    with pytest.raises(CorpusError, match=r"corpus a\.txt: No such file"):
        list(read_documents(sources, report))


def test_a_folder_that_cannot_be_listed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> Iterator[object]:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        with pytest.raises(CorpusError, match="Permission denied"):
            read(tmp_path)


def test_a_file_name_that_is_not_utf8_becomes_a_storable_id(tmp_path: Path) -> None:
    try:
        path = write(tmp_path / os.fsdecode(b"caf\xe9.txt"), "text")
    except OSError:
        pytest.skip("this file system has only UTF-8 names")
    for name in (path, tmp_path):
        found, _ = read(name)
        assert found == [Document("caf�.txt", "caf�.txt", "text")]


def test_progress_adds_up_to_the_size_of_the_files(tmp_path: Path, compressed: bytes) -> None:
    good = json_lines({"text": "good"})
    write(tmp_path / "good.txt", "text\n" * 100_000)
    write(tmp_path / "empty.txt", "")
    write(tmp_path / "binary.txt", b"text\n\0\0\n" + b"\xff" * 1000)
    write(tmp_path / "records.jsonl", good + b"bad\n\xff\n\n" + good)
    write(tmp_path / "good.jsonl.gz", compressed)
    write(tmp_path / "damaged.jsonl.gz", overwritten_in_the_middle(compressed))
    report = CorpusReport()
    sources = find_sources([str(tmp_path)], report)
    steps: list[int] = []
    for _ in read_documents(sources, report, steps.append):
        pass
    assert sum(steps) == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert min(steps) >= 0


@pytest.mark.parametrize(
    ("unit", "whole"),
    [
        ("word ", r"(word )+"),
        ("A sentence ends here. ", r"(A sentence ends here\. )+"),
        ("守卫打开大门。", "(守卫打开大门。)+"),
        ("e\u0301", "(e\u0301)+"),
        ("🇩🇪🇫🇷", "(🇩🇪|🇫🇷)+"),
        ("A line\nof a\n\nparagraph\n\n", r"(paragraph\n\n|A line\nof a\n\n)+"),
    ],
)
def test_blocks_of_a_long_line_end_between_sentences_words_or_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: str, whole: str
) -> None:
    text = unit * 400
    path = write(tmp_path / "a.txt", text)
    for block in range(50, 60):
        monkeypatch.setattr(plain_module, "BLOCK_BYTES", block)
        blocks = [document.text for document in read(path)[0]]
        assert len(blocks) > 5
        assert "".join(blocks) == text
        assert all(re.fullmatch(whole, one) for one in blocks)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("NOTES.TXT", b"text"),
        ("README.MD", b"text"),
        ("page.Rst", b"text"),
        ("DATA.JSONL", json_lines({"text": "text"})),
        ("data.jsonl.GZ", gzip.compress(json_lines({"text": "text"}), mtime=0)),
        ("DATA.JSONL.GZ", gzip.compress(json_lines({"text": "text"}), mtime=0)),
    ],
)
def test_the_end_of_a_name_may_be_in_capitals(tmp_path: Path, name: str, content: bytes) -> None:
    path = write(tmp_path / "folder" / name, content)
    for named in (path, path.parent):
        documents, report = read(named)
        assert [document.text for document in documents] == ["text"]
        assert (report.ignored_files, report.bad_records) == (0, 0)


def test_binary_data_in_capitals_ends_a_text_file(tmp_path: Path) -> None:
    documents, report = read(write(tmp_path / "A.TXT", b"a\n\0\nb\n"))
    assert [document.text for document in documents] == ["a\n"]
    assert report.bad_records == 1


@pytest.mark.parametrize(
    ("written", "identifier"),
    [("1.0", "1.0"), ("2.50", "2.5"), ("-0.5", "-0.5"), ("1e3", "1000.0"), ("7", "7")],
)
def test_an_id_may_be_any_finite_number(tmp_path: Path, written: str, identifier: str) -> None:
    line = f'{{"text": "x", "id": {written}}}\n'
    documents, _ = read(write(tmp_path / "a.jsonl", line))
    assert documents[0].id == identifier


@pytest.mark.parametrize(
    ("written", "found"),
    [("NaN", "nan"), ("Infinity", "inf"), ("1e999", "inf"), ("true", "bool"), ("{}", "dict")],
)
def test_an_id_that_is_no_number_is_named(tmp_path: Path, written: str, found: str) -> None:
    line = f'{{"text": "x", "id": {written}}}\n'
    _, report = read(write(tmp_path / "a.jsonl", line))
    assert f"'id' is {found}, expected a string or a " in report.examples[0].reason
