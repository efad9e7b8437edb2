"""The paper's data sets: cut as the authors cut them, read whole, and never executed."""

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest

import flashback.corpus.paper_datasets as paper_datasets
from flashback.corpus.documents import CorpusReport, Document
from flashback.corpus.paper_datasets import PAPER_DATASETS, PaperDataset
from flashback.errors import CorpusError
from flashback.retrieval.bm25 import BM25Index
from flashback.retrieval.indexing import index_corpus, open_corpus
from flashback.settings import SearchOptions

# As on the hub: a row per line, nothing in the row of a blank line.
DU_FU = [
    "",
    " = Du Fu = \n",
    "",
    " Du Fu was a poet . \n",
    "",
    " = = Life = = \n",
    "",
    " Long . \n",
]
FILTER = [
    "",
    " = Constant k filter = \n",
    "",
    " It is a filter whose \n",
    " = 1 henry and capacitance C = \n",
    " 1 farad . \n",
    "",
]
E_IS_MC2 = ["", " = E = mc2 = \n", ""]


def read(name: str, *, strict: bool = False) -> tuple[list[Document], CorpusReport]:
    report = CorpusReport(strict=strict)
    return list(open_corpus([name], report).read(lambda _: None)), report


def refusal(action: Callable[[], object]) -> str:
    """The one line with which a corpus is refused."""
    with pytest.raises(CorpusError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_wikitext(folder: Path, split: str, rows: list[str], **options: int) -> Path:
    path = folder / "wikitext-2-raw-v1" / f"{split}-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table({"text": pyarrow.array(rows, pyarrow.string())})
    pyarrow.parquet.write_table(table, path, **options)
    return path


def record(text: str, subset: str = "ArXiv") -> bytes:
    return json.dumps({"text": text, "meta": {"pile_set_name": subset}}).encode() + b"\n"


def write_pile(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    if name.endswith(".zst"):  # in two frames, as a parallel compressor writes it
        codec, middle = pyarrow.Codec("zstd"), len(data) // 2
        data = codec.compress(data[:middle], asbytes=True) + codec.compress(
            data[middle:], asbytes=True
        )
    path.write_bytes(data)
    return path


@pytest.fixture
def wikitext(tmp_path: Path) -> Path:
    write_wikitext(tmp_path, "train", FILTER + E_IS_MC2)
    write_wikitext(tmp_path, "validation", E_IS_MC2)
    write_wikitext(tmp_path, "test", DU_FU + FILTER)
    return tmp_path


@pytest.fixture(params=[".jsonl", ".jsonl.zst"])
def pile(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Three validation and twenty test documents of ArXiv, one of FreeLaw between all of them."""
    other = record("Of ArXiv v. ArXiv.", "FreeLaw")
    for name, count in (("val", 3), ("test", 20)):
        data = other.join(record(f"{name} paper {n}") for n in range(count))
        write_pile(tmp_path, f"{name}{request.param}", data)
    return tmp_path


# WikiText


def test_an_article_goes_from_its_heading_to_the_next(wikitext: Path) -> None:
    found, report = read(f"wikitext-2:test@{wikitext}")
    assert [(one.id, one.title) for one in found] == [
        ("wikitext-2/test/0", "Du Fu"),
        ("wikitext-2/test/1", "Constant k filter"),
    ]
    assert found[0].text.startswith(" = Du Fu = \n \n Du Fu was a poet . \n \n = = Life = = \n")
    assert report == CorpusReport(documents=2)


def test_the_text_is_that_of_the_published_file(wikitext: Path) -> None:
    found, _ = read(f"wikitext-2:test@{wikitext}")
    raw = "".join(row or " \n" for row in DU_FU + FILTER)
    assert " \n" + "".join(one.text for one in found) == raw


def test_a_line_between_two_signs_of_equality_is_no_heading_within_a_paragraph(
    wikitext: Path,
) -> None:
    found, _ = read(f"wikitext-2:train@{wikitext}")
    assert [one.title for one in found] == ["Constant k filter", "E = mc2"]
    assert " = 1 henry and capacitance C = \n 1 farad" in found[0].text


@pytest.mark.parametrize(
    ("part", "splits"),
    [
        (":train", ["train", "train"]),
        (":validation", ["validation"]),
        ("", ["train", "train", "validation", "test", "test"]),
    ],
)
def test_the_splits_are_the_published_ones(wikitext: Path, part: str, splits: list[str]) -> None:
    found, _ = read(f"wikitext-2{part}@{wikitext}")
    assert [one.id.split("/")[1] for one in found] == splits


def test_the_files_may_lie_in_the_folder_itself(wikitext: Path) -> None:
    folder = wikitext / "wikitext-2-raw-v1"
    assert read(f"wikitext-2:test@{folder}") == read(f"wikitext-2:test@{wikitext}")


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("line", ["", " = A = \n"], "expected a column 'text' of strings"),
        ("text", [1, 2], "expected a column 'text' of strings"),
        ("text", ["", " Du Fu was a poet . \n"], "expected ' = Title = ' at the start"),
    ],
)
def test_another_table_is_refused(
    wikitext: Path, column: str, values: list[object], message: str
) -> None:
    path = write_wikitext(wikitext, "test", [])
    pyarrow.parquet.write_table(pyarrow.table({column: values}), path)
    assert message in refusal(lambda: read(f"wikitext-2:test@{wikitext}"))


@pytest.mark.parametrize("part", [slice(0), slice(100), slice(4, None), slice(-20)])
def test_a_damaged_table_is_refused(wikitext: Path, part: slice) -> None:
    path = write_wikitext(wikitext, "test", DU_FU * 100)
    path.write_bytes(path.read_bytes()[part])
    assert f"{path} cannot be read: " in refusal(lambda: read(f"wikitext-2:test@{wikitext}"))


def test_bytes_that_are_no_utf8_are_refused(wikitext: Path) -> None:
    path = write_wikitext(wikitext, "test", ["", " = A = \n"])
    path.write_bytes(path.read_bytes().replace(b" = A = \n", b" = \xff = \n"))
    assert "cannot be read: 'utf-8' codec" in refusal(lambda: read(f"wikitext-2:test@{wikitext}"))


class _Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (Path.touch, (self.path,))


def test_nothing_in_a_folder_is_unpickled_or_executed(wikitext: Path) -> None:
    sprung = wikitext / "sprung"
    trap = pickle.dumps(_Trap(sprung))
    extension = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": trap.decode("latin-1"),
    }
    schema = pyarrow.schema([pyarrow.field("text", pyarrow.string(), metadata=extension)])
    path = write_wikitext(wikitext, "test", [])
    pyarrow.parquet.write_table(pyarrow.table({"text": DU_FU}, schema=schema), path)
    (wikitext / "wikitext.py").write_text(f"open({str(sprung)!r}, 'w')")
    (wikitext / "state.pkl").write_bytes(trap)
    assert read(f"wikitext-2:test@{wikitext}")[0][0].title == "Du Fu"
    assert not sprung.exists()


# The Pile


def test_a_subset_is_cut_as_the_authors_cut_it(pile: Path) -> None:
    validation = [Document(f"pile-arxiv/validation/{n}", "", f"val paper {n}") for n in range(3)]
    test = [Document(f"pile-arxiv/test/{n}", "", f"test paper {n}") for n in range(20)]
    expected = {
        ":index": validation + test[:16],
        ":train": test[16:18],
        ":evaluation": test[18:],
        "": validation + test,
    }
    for part, documents in expected.items():
        found, report = read(f"pile-arxiv{part}@{pile}")
        assert found == documents
        assert report == CorpusReport(documents=len(documents))
    assert len(read(f"pile-freelaw@{pile}")[0]) == 2 + 19
    assert read(f"pile-stackexchange@{pile}")[0] == []


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 9, 11, 99])
def test_the_parts_of_the_test_set_are_the_whole_of_it(tmp_path: Path, count: int) -> None:
    write_pile(tmp_path, "val.jsonl", b"")
    write_pile(tmp_path, "test.jsonl", b"".join(record(f"{n}") for n in range(count)))
    parts = (":index", ":train", ":evaluation")
    texts = [one.text for part in parts for one in read(f"pile-arxiv{part}@{tmp_path}")[0]]
    assert texts == [str(n) for n in range(count)]


BAD_LINES = {
    "not JSON": b'{"text": "ArXiv"',
    "not UTF-8": b'{"text": "\xff", "meta": {"pile_set_name": "ArXiv"}}',
    "lone surrogate": rb'{"text": "\ud83d", "meta": {"pile_set_name": "ArXiv"}}',
    "no text": b'{"meta": {"pile_set_name": "ArXiv"}}',
    "text of wrong type": b'{"text": 5, "meta": {"pile_set_name": "ArXiv"}}',
    "no subset": b'{"text": "ArXiv"}',
    "meta as text": b'{"text": "x", "meta": "{\'pile_set_name\': \'ArXiv\'}"}',
    "not an object": b'["ArXiv"]',
    "endless nesting": b"[" * 100_000 + b"ArXiv",
}


@pytest.mark.parametrize("line", BAD_LINES.values(), ids=BAD_LINES.keys())
def test_a_bad_record_is_skipped_and_named_once_or_refused_if_strict(
    tmp_path: Path, line: bytes
) -> None:
    path = write_pile(tmp_path, "test.jsonl", record("a") + line + b"\n" + record("b"))
    found, report = read(f"pile-arxiv:evaluation@{tmp_path}")
    assert [(one.id, one.text) for one in found] == [("pile-arxiv/test/1", "b")]
    assert report.bad_records == 1
    assert str(report.examples[0]).startswith(f"{path}:2: expected 'text' and 'meta'")
    message = refusal(lambda: read(f"pile-arxiv:evaluation@{tmp_path}", strict=True))
    assert message.startswith(f"{path}:2: ")


def test_blank_texts_are_no_documents(tmp_path: Path) -> None:
    write_pile(tmp_path, "test.jsonl", record(" \n") + record("a") + record(""))
    found, report = read(f"pile-arxiv:evaluation@{tmp_path}")
    assert found == [Document("pile-arxiv/test/0", "", "a")]
    assert report.bad_records == 0


def with_a_broken_block(data: bytes) -> bytes:
    second = data.index(b"\x28\xb5\x2f\xfd", 4)  # where the second frame begins
    return data[: second - 20] + b"\xff" * 20 + data[second:]


@pytest.mark.parametrize(
    "damage", [with_a_broken_block, lambda data: data[:-9], lambda data: b"PK" + data]
)
def test_damaged_compressed_data_is_refused(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    data = b"".join(record(f"{n} {n * 7919 % 1000003}") for n in range(1000))
    path = write_pile(tmp_path, "test.jsonl.zst", data)
    path.write_bytes(damage(path.read_bytes()))
    message = refusal(lambda: read(f"pile-arxiv:train@{tmp_path}"))
    assert message.startswith(f"corpus pile-arxiv: {path} cannot be read: ")


# Both


@pytest.mark.parametrize("part", ["", ":index", ":train", ":evaluation"])
def test_progress_over_the_pile_adds_up(pile: Path, part: str) -> None:
    assert_progress(f"pile-arxiv{part}@{pile}")


@pytest.mark.parametrize("rows", [[], DU_FU, DU_FU * 1000])
def test_progress_over_wikitext_adds_up(wikitext: Path, rows: list[str]) -> None:
    write_wikitext(wikitext, "train", rows)
    assert_progress(f"wikitext-2@{wikitext}")


def assert_progress(name: str) -> None:
    steps: list[int] = []
    corpus = open_corpus([name], CorpusReport())
    for _ in corpus.read(steps.append):
        pass
    assert sum(steps) == corpus.bytes > 0
    assert min(steps) >= 0


def test_documents_come_while_a_file_is_read(tmp_path: Path) -> None:
    write_wikitext(tmp_path, "test", DU_FU * 10_000, row_group_size=1000)
    write_pile(tmp_path, "val.jsonl.zst", b"".join(record(f"{n}" * 99) for n in range(20_000)))
    write_pile(tmp_path, "test.jsonl", b"")
    for name in ("wikitext-2:test", "pile-arxiv"):
        steps: list[int] = []
        corpus = open_corpus([f"{name}@{tmp_path}"], CorpusReport())
        next(iter(corpus.read(steps.append)))
        assert sum(steps) < corpus.bytes / 2


def test_a_data_set_can_be_indexed_by_its_name(wikitext: Path, tmp_path: Path) -> None:
    report = CorpusReport()
    index_corpus([f"wikitext-2@{wikitext}"], tmp_path / "IDX", report=report)
    [[hit]] = BM25Index.open(tmp_path / "IDX").search(["poet"], SearchOptions())
    assert (hit.title, hit.document_id) == ("Du Fu", "wikitext-2/test/0")
    assert report.documents == 5


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["wikitext-2:dev"], "wikitext-2:dev: unknown part; expected one of train, validation, te"),
        (["pile-arxiv:test"], "pile-arxiv:test: unknown part; expected one of index, train, eval"),
        (["python-docs:x"], "unknown part; expected one of train, base, adapter, evaluation"),
        (["python-docs@x"], "python-docs is not read from a folder; leave out '@x'"),
        (["wikitext-2:test@"], "expected a folder after '@', found an empty name"),
        (["wikitext-2@absent"], "wikitext-2: no folder absent; expected wikitext-2-raw-v1/train-"),
        (["wikitext-2@~nobody-at-all"], "no folder ~nobody-at-all; expected"),
        (["wikitext-2@" + "x" * 300], "cannot be read: "),
        (["wikitext-2:test@."], "no test split in .; expected wikitext-2-raw-v1/test-00000-of-"),
        (["pile-arxiv:train@."], "no test split in .; expected test.jsonl or test.jsonl.zst"),
        (["pile-arxiv", "a.txt"], "pile-arxiv cannot be mixed with others; name one of them"),
        (["pile-github"], "pile-github: no such file or folder"),
    ],
)
def test_what_cannot_be_opened_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refusal(lambda: open_corpus(names, CorpusReport()))


def test_without_pyarrow_only_plain_json_lines_can_be_read(
    wikitext: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    message = refusal(lambda: open_corpus([f"wikitext-2@{wikitext}"], CorpusReport()))
    assert "need pyarrow" in message
    assert message.endswith("pip install '.[train]' in a clone of the project")
    write_pile(wikitext, "test.jsonl", record("a"))
    assert len(read(f"pile-arxiv:evaluation@{wikitext}")[0]) == 1


# The hub


def test_without_a_folder_the_files_come_from_the_hub(
    wikitext: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(dataset: PaperDataset, split: str) -> Path:
        return wikitext / dataset.files[split][0]

    monkeypatch.setattr(paper_datasets, "fetch", fetch)
    for part in ("", ":test"):
        assert read(f"wikitext-2{part}") == read(f"wikitext-2{part}@{wikitext}")


def test_the_hub_is_asked_for_one_file_at_a_fixed_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(repository: str, name: str, *, repo_type: str, revision: str) -> str:
        assert (repository, repo_type) == ("Salesforce/wikitext", "dataset")
        assert len(revision) == 40
        return f"cache/{name}"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    path = paper_datasets.fetch(PAPER_DATASETS["wikitext-2"], "test")
    assert path == Path("cache/wikitext-2-raw-v1/test-00000-of-00001.parquet")


def test_a_hub_out_of_reach_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    assert refusal(lambda: read("pile-arxiv:train")) == (
        "corpus pile-arxiv: test.jsonl of hub data set EleutherAI/pile_val_test cannot be fetched: "
        "no network (ConnectionError); a folder can be named instead, as in pile-arxiv@FOLDER"
    )
