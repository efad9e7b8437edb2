"""Judged searches: the formats, the measures against figures by hand, and the command."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from command_line import refused, run
from flashback.errors import CorpusError, SettingsError
from flashback.evaluation.judgements import Judgements, read_judgements, read_qrels, read_queries
from flashback.evaluation.search_quality import (
    QualitySettings,
    check_measures,
    measure_search,
    ranked_documents,
    run_lines,
)
from flashback.retrieval.protocol import Hit
from flashback.settings import SearchOptions

pytest.importorskip("ir_measures")

DOCUMENTS = {"a": "The cat sleeps.", "b": "A dog barks.", "c": "A bird sings.", "d": "Cat and dog."}


def hit(document: str, number: int = 0, score: float = 1.0) -> Hit:
    return Hit(f"{document}#{number}", document, "", f"{document} {number}", score)


class Always:
    """Finds these documents for every query, in this order."""

    def __init__(self, *documents: str) -> None:
        self.documents = documents

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        hits = [hit(one, at) for at, one in enumerate(self.documents)]
        return [hits[: options.k] for _ in queries]


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, "utf-8")
    return folder / name


def test_both_formats_say_the_same(tmp_path: Path) -> None:
    beir = write(tmp_path, "b.tsv", "query-id\tcorpus-id\tscore\n1\ta\t1\n1\tb\t0\n2\tc d\t2\n")
    assert read_qrels(beir) == {"1": {"a": 1, "b": 0}, "2": {"c d": 2}}
    trec = write(tmp_path, "t.qrels", "1 0 a 1\n1 0 b 0\n\n2\t0\tc\t2\n3 0 a 0\n")
    assert read_qrels(trec) == {"1": {"a": 1, "b": 0}, "2": {"c": 2}}  # 3 has nothing to find
    lines = write(tmp_path, "q.jsonl", '{"_id": "1", "text": "cat"}\n{"id": 2, "text": "bird"}\n')
    table = write(tmp_path, "q.tsv", "1\tcat\n2\tbird\n")
    assert read_queries(lines) == read_queries(table) == {"1": "cat", "2": "bird"}
    assert read_judgements(lines, trec).queries == {"1": "cat", "2": "bird"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no judgements of relevant documents in it"),
        ("1 0 a 0\n", "no judgements of relevant documents in it"),
        ("1 a\n", ":1: '1 a'; expected query, document and relevance"),
        ("1\ta\tb\n", ":1: .*; expected query, document and relevance"),
        ("1 0 a inf\n", ":1: .*; expected query, document and relevance"),
    ],
)
def test_malformed_judgements_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(CorpusError, match=message) as caught:
        read_qrels(write(tmp_path, "qrels", text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no queries in it"),
        ("only a text\n", ":1: expected a query's id, a tab and its text"),
        ('{"text": "x"}\n', ':1: expected an object with "_id" and "text"'),
        ('{"_id": 1, "text": 2}\n', ':1: expected an object with "_id" and "text"'),
        ("1\ta\n1\tb\n", ":2: query '1' a second time"),
        ("[" * 3000 + "\n", ":1: expected a query's id"),
    ],
)
def test_malformed_queries_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        read_queries(write(tmp_path, "queries", text))


def test_unreadable_files_and_foreign_queries_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="cannot be read: No such file"):
        read_qrels(tmp_path / "none")
    (tmp_path / "latin").write_bytes("1\tnaïve\n".encode("latin-1"))
    with pytest.raises(CorpusError, match="not UTF-8"):
        read_queries(tmp_path / "latin")
    qrels = write(tmp_path, "qrels", "1 0 a 1\n2 0 a 1\n")
    with pytest.raises(CorpusError, match=r"no query '2', which .* \(1 of 2 are missing\)"):
        read_judgements(write(tmp_path, "q.tsv", "1\tcat\n"), qrels)


def test_measures_are_those_by_hand() -> None:
    judgements = Judgements({"1": "cat", "2": "dog"}, {"1": {"a": 1, "b": 1}, "2": {"c": 1}})
    found = measure_search(
        Always("x", "a", "a", "b", "y"),
        judgements,
        QualitySettings(measure=("nDCG@10", "R@2", "RR@10")),
    )
    assert found.run["1"] == {"x": 1.0, "a": 1 / 2, "b": 1 / 3, "y": 1 / 4}
    gain = 1 / math.log2(3) + 1 / math.log2(4)
    ideal = 1 + 1 / math.log2(3)
    assert found.values["nDCG@10"] == pytest.approx(gain / ideal / 2)
    assert found.values["R@2"] == pytest.approx(0.25)
    assert found.values["RR@10"] == pytest.approx(0.25)
    assert 0 < found.milliseconds[0] <= found.milliseconds[1]


def test_a_query_that_finds_nothing_counts_as_nothing() -> None:
    judgements = Judgements({"1": "cat"}, {"1": {"a": 1}})
    found = measure_search(Always(), judgements, QualitySettings())
    assert set(found.values.values()) == {0.0}


@given(st.lists(st.sampled_from("abcdef")))
def test_documents_rank_by_their_best_passage(documents: list[str]) -> None:
    ranked = ranked_documents([hit(one, at) for at, one in enumerate(documents)])
    assert list(ranked) == list(dict.fromkeys(documents))
    assert list(ranked.values()) == sorted(ranked.values(), reverse=True)
    lines = run_lines({"q": ranked}, "tag").splitlines()
    assert [line.split()[:4] for line in lines] == [
        ["q", "Q0", document, str(rank)] for rank, document in enumerate(ranked, 1)
    ]


def test_unknown_measures_are_named() -> None:
    for name in ("nonsense", "nDCG@", "__import__('os')"):
        with pytest.raises(SettingsError, match="expected one of ir-measures'"):
            check_measures([name])


@pytest.fixture
def judged(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A corpus, queries and judgements in BEIR's layout."""
    lines = (json.dumps({"_id": name, "text": text}) for name, text in DOCUMENTS.items())
    corpus = write(tmp_path, "corpus.jsonl", "\n".join(lines) + "\n")
    queries = write(tmp_path, "queries.jsonl", '{"_id": "1", "text": "bird"}\n')
    return corpus, queries, write(tmp_path, "test.tsv", "query-id\tcorpus-id\tscore\n1\tc\t1\n")


def test_the_command(judged: tuple[Path, Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("usearch")
    corpus, queries, qrels = judged
    words, meaning = tmp_path / "words", tmp_path / "meaning"
    run("index", corpus, "--out", words)
    run("index", corpus, "--out", meaning, "--kind", "dense")
    command = ("eval", "retrieval", qrels, "--queries", queries, "--index", words)
    both = (*command, "--index", meaning, "--fused", "--run", tmp_path / "run.trec")
    record = run(*both, "--json").record
    assert [row["name"] for row in record["rows"]] == [str(words), str(meaning), "fused"]
    assert [row["measures"]["nDCG@10"] for row in record["rows"]] == [1.0, 1.0, 1.0]
    sizes = [row["bytes"] for row in record["rows"]]
    assert sizes[2] == sizes[0] + sizes[1] > 0
    assert record["queries"] == record["judged"] == 1
    assert (tmp_path / "run.trec").read_text().startswith("1 Q0 c 1 1.000000 flashback\n")
    reader = ("--reranker", "reader", "--model", "flashback-mini", "--device", "cpu")
    shown = run(*command, *reader, "--measure", "RR@10").out
    assert "reranked by flashback-mini" in shown
    assert "1.000" in shown


def test_foreign_ids_are_pointed_out(judged: tuple[Path, Path, Path], tmp_path: Path) -> None:
    corpus, queries, _ = judged
    run("index", corpus, "--out", tmp_path / "words")
    foreign = write(tmp_path, "foreign", "1 0 zzz 1\n")
    command = ("eval", "retrieval", foreign, "--queries", queries)
    outcome = run(*command, "--index", tmp_path / "words")
    assert "not one judged document was found" in outcome.err


def test_refusals(judged: tuple[Path, Path, Path]) -> None:
    _, queries, qrels = judged
    command = ("eval", "retrieval", qrels, "--queries", queries)
    assert "give --index or --retriever" in refused(*command)
    assert "expected one of ir-measures'" in refused(*command, "--index", "x", "--measure", "y")
