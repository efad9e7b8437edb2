"""A passage as a reader gets it: the beginning that fits m tokens, and what is said of the rest."""

import base64
import random
import time
from pathlib import Path

import pytest

from flashback.corpus.documents import CorpusReport
from flashback.corpus.passages import Passage
from flashback.engines.local import LocalEngine
from flashback.errors import FlashBackWarning
from flashback.loading import load
from flashback.readers.load import MINI, load_token_ends
from flashback.readers.passages import passage_ids, unseen_note
from flashback.readers.shipped import shipped
from flashback.readers.text_reader import TextReader
from flashback.retrieval.bm25 import BM25Index, IndexSettings, build_index
from flashback.retrieval.indexing import index_corpus
from flashback.settings import RetrievalSettings, SearchOptions, Settings, StoppingSettings
from flashback.writing.generator import Generator
from tiny_readers import MadeUpRetriever, tiny_reader

MAIL = base64.b64encode(random.Random(0).randbytes(300_000)).decode()
TEXTS = {
    "prose": "The keeper of the lighthouse, who had repaired the lamp, slept. " * 60,
    "code": "def add(first: int, second: int) -> int:\n    return first + second\n\n\n" * 40,
    "Chinese": "守卫在暴风雨之前修好了灯塔的灯，然后打开了大门。" * 60,
    "Thai": "คนเฝ้าประภาคารซ่อมตะเกียงก่อนเกิดพายุ" * 60,
    "mail": f"From: a@example.org\n\n{MAIL[:60_000]}",
    "numbers": " ".join(str(n * n) for n in range(500)),
    "special tokens": "</s> <s> <|endoftext|> " * 100,
}


@pytest.mark.parametrize("tokens", [16, 128])
def test_all_of_a_passage_is_shown_to_the_reader_that_it_was_cut_for(
    tmp_path: Path, tokens: int
) -> None:
    for name, text in TEXTS.items():
        (tmp_path / f"{name}.txt").write_text(text, "utf-8")
    ends = load_token_ends(MINI)
    settings = IndexSettings(passage_tokens=tokens)
    files = sorted(tmp_path.glob("*.txt"))
    index_corpus(files, tmp_path / "IDX", settings, token_ends=ends)
    index = BM25Index.open(tmp_path / "IDX")
    options = SearchOptions(k=100)
    queries = ["lighthouse", "first second", "暴风雨", "ประภาคาร", "example", "144", "endoftext"]
    for hits in index.search(queries, options):
        assert hits
        assert all(len(ends(hit.text)) <= tokens for hit in hits)


def test_the_ends_of_tokens_are_those_of_the_readers_ids() -> None:
    from transformers import AutoTokenizer

    ends = load_token_ends(MINI)
    tokenizer = AutoTokenizer.from_pretrained(shipped(MINI))
    for text in (*TEXTS.values(), "", "é"):
        plain = tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        found = ends(text)
        assert len(found) == len(plain["input_ids"])
        assert found == sorted(found)
        assert not found or found[-1] == len(text)


def test_only_the_beginning_of_an_endless_passage_is_tokenized(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader = tiny_reader()
    encoded: list[int] = []
    plain = type(reader).encode

    def encode(self: TextReader, text: str) -> list[int]:
        encoded.append(len(text))
        return plain(self, text)

    monkeypatch.setattr(type(reader), "encode", encode)
    settings = RetrievalSettings("append", passage_tokens=16)
    ids = passage_ids(reader, [MAIL, "short"], settings)
    assert ids == (*plain(reader, MAIL[:16]), *plain(reader, "short"))
    assert max(encoded) <= 16 * 128


def test_a_note_says_how_much_is_never_seen() -> None:
    reader = tiny_reader()  # a token for every byte
    assert unseen_note(reader, ["a" * 10, "b" * 10], 10) is None
    assert unseen_note(reader, [], 10) is None
    note = unseen_note(reader, ["a" * 10, "b" * 30], 10)
    assert note is not None
    assert note.startswith("1 of 2 passages looked at are longer than the 10 tokens")
    assert "50.0% of the text is never seen" in note
    assert f"--model={reader.name!r}" in note


def test_loading_says_if_an_index_was_cut_for_a_reader_with_fewer_tokens(tmp_path: Path) -> None:
    passages = [Passage(f"{n}#0", str(n), "", TEXTS["prose"]) for n in range(3)]
    build_index(tmp_path / "long", passages, IndexSettings(deduplicate=False), CorpusReport())
    with pytest.warns(FlashBackWarning, match="3 of 3 passages looked at are longer than the 128"):
        load(MINI, tmp_path / "long")
    load(MINI, tmp_path / "long", passage_tokens=4000)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_seconds_of_a_stride_include_tokenizing_its_passages(
    monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    now = [0.0]
    reader = tiny_reader()
    plain = type(reader).encode

    def encode(self: TextReader, text: str) -> list[int]:
        now[0] += 1.0
        return plain(self, text)

    writer = Generator(reader, LocalEngine(reader.model, reader.window), MadeUpRetriever())
    retrieval = RetrievalSettings("append", stride=4, query_tokens=8, passage_tokens=8)
    settings = Settings(retrieval, stopping=StoppingSettings(12, ignore_eos=True))
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(type(reader), "encode", encode)
    texts = writer.generate_batch([[5] * 9, [7] * 9], settings, batch_size=batch_size)
    strides = [stride for text in texts for stride in text.strides]
    passages = sum(len(stride.passages) for stride in strides)
    assert passages > 0
    assert sum(stride.retrieve_seconds for stride in strides) == passages
    assert sum(text.seconds for text in texts) == passages
