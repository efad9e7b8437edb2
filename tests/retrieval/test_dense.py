"""The dense index: the contract, its encoders, and folders that are refused."""

import json
import logging
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flashback.corpus.documents import CorpusReport
from flashback.corpus.passages import Passage
from flashback.errors import CorpusError, IndexFolderError, ReaderError, SettingsError
from flashback.retrieval import dense, static_encoder
from flashback.retrieval.bm25 import IndexSettings
from flashback.retrieval.dense import DenseIndex, build_dense
from flashback.retrieval.encoders import ENCODERS, Encoder, encode, load_encoder
from flashback.retrieval.index_folder import MANIFEST, Manifest, verify
from flashback.retrieval.index_settings import DenseSettings
from flashback.retrieval.indexing import index_corpus
from flashback.retrieval.kinds import KINDS, Index, open_index
from flashback.retrieval.live import LiveIndex
from flashback.retrieval.passage_store import PassageStore
from flashback.retrieval.updating import delete_documents
from flashback.settings import SearchOptions
from retrieval.contract import PETS, Make, RetrieverContract, ask_one, found, passages_of
from retrieval.letters import Letters
from throw_away import registered

pytest.importorskip("usearch")
pytest.importorskip("wordllama")


def build(folder: Path, passages: Iterable[Passage], encoder: Encoder | None = None) -> Manifest:
    encoder = encoder or load_encoder("wordllama")
    return build_dense(
        folder, passages, IndexSettings(deduplicate=False), encoder, CorpusReport(), overwrite=True
    )


class TestDense(RetrieverContract):
    lexical = False

    @pytest.fixture(scope="class")
    @classmethod
    def make(cls, tmp_path_factory: pytest.TempPathFactory) -> Make:
        def make(passages: Sequence[Passage]) -> DenseIndex:
            folder = tmp_path_factory.mktemp("dense") / "index"
            build(folder, passages)
            return DenseIndex.open(folder)

        return make


class TestDenseGraph(TestDense):
    """The same, with the graph asked wherever it may be."""

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def graph(cls) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dense, "_COMPARED", 0)
            yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "index"


def test_a_dense_index_is_an_index(folder: Path) -> None:
    manifest = build(folder, passages_of(PETS))
    opened = open_index(folder)
    assert isinstance(opened, DenseIndex)
    assert isinstance(opened, Index)
    assert opened.manifest == manifest == verify(folder)
    assert len(opened) == 4
    assert sorted(opened.sample()) == sorted(f"{title}\n{text}" for title, text in PETS.items())
    assert manifest.content.settings["encoder"] == "wordllama"
    assert manifest.content.settings["dimension"] == 256
    assert not {"k1", "b", "language"} & {*manifest.content.settings}


def test_meaning_is_found_without_a_common_word(folder: Path) -> None:
    texts = {
        "a": "The physician examined her patient.",
        "b": "The volcano erupted.",
        "c": "Trains.",
    }
    build(folder, passages_of(texts))
    assert found(open_index(folder), "doctor")[0] == "a"


def test_a_live_index_takes_a_new_version(folder: Path) -> None:
    build(folder, passages_of(PETS))
    live = LiveIndex(folder)
    build(folder, passages_of({"Bats": "A bat hangs."}))
    assert len(ask_one(live, "cat")) == 4  # the files of the old version are gone
    assert live.renew()
    assert found(live, "cat") == ["bats"]


def test_shared_passages_are_shown_as_an_allowed_document_has_them(folder: Path) -> None:
    twins = [Passage(f"{name}#0", name, "Same", "The same words.") for name in ("one", "two")]
    encoder = load_encoder("wordllama")
    build_dense(folder, twins, IndexSettings(), encoder, CorpusReport())
    opened = open_index(folder)
    assert len(opened) == 1
    assert found(opened, "words") == ["one"]
    assert found(opened, "words", forbid_documents=("one",)) == ["two"]
    assert found(opened, "words", forbid_documents=("one", "two")) == []


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.text("abcd", min_size=1, max_size=8), min_size=1, max_size=60),
    st.text("abcd", min_size=1, max_size=5),
)
def test_the_best_are_those_of_all_cosines(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], query: str
) -> None:
    folder = tmp_path_factory.mktemp("letters") / "index"
    build(folder, [Passage(str(n), str(n), "", text) for n, text in enumerate(texts)], Letters())
    with registered(ENCODERS, "letters", Letters):
        opened = open_index(folder)
    vectors, (wanted,) = encode(Letters(), texts), encode(Letters(), [query])
    cosines = sorted((float(score) for score in vectors @ wanted), reverse=True)
    for k in (1, 3, len(texts)):
        (hits,) = opened.search([query], SearchOptions(k=k, min_score=-1.0))
        assert [hit.score for hit in hits] == pytest.approx(cosines[:k], abs=2e-3)


def test_an_index_of_another_encoder_is_refused(folder: Path) -> None:
    class Longer(Letters):
        dimension = 27

    class Other(Letters):
        def encode(self, texts: Sequence[str], *, query: bool = False) -> NDArray[np.float32]:
            return np.flip(super().encode(texts), 1)

    build(folder, passages_of(PETS), Letters())
    with pytest.raises(ReaderError, match=r"index .*: encoder letters"):
        open_index(folder)
    with (
        registered(ENCODERS, "letters", Longer),
        pytest.raises(
            IndexFolderError, match=r"vectors of 26 dimensions, but the encoder letters has 27"
        ),
    ):
        open_index(folder)
    with (
        registered(ENCODERS, "letters", Other),
        pytest.raises(
            IndexFolderError,
            match=r"the encoder letters gives other vectors than those in the index",
        ),
    ):
        open_index(folder)


def test_an_encoder_that_gives_no_vectors_is_refused(folder: Path) -> None:
    class Broken(Letters):
        def encode(self, texts: Sequence[str], *, query: bool = False) -> NDArray[np.float32]:
            return np.full((len(texts), 26), np.nan, np.float32)

    with pytest.raises(ReaderError, match=r"encoder letters: gave an array of shape \(4, 26\)"):
        build(folder, passages_of(PETS), Broken())
    assert not folder.exists()


def test_a_failed_build_leaves_the_old_index(folder: Path) -> None:
    def failing() -> Iterator[Passage]:
        yield from passages_of(PETS)
        raise KeyboardInterrupt

    build(folder, passages_of({"Bats": "A bat hangs."}))
    with pytest.raises(KeyboardInterrupt):
        build(folder, failing())
    assert found(open_index(folder), "cat") == ["bats"]
    assert len(list(folder.iterdir())) == 2
    with pytest.raises(CorpusError, match="the corpus is empty"):
        build(folder, [])
    assert found(open_index(folder), "cat") == ["bats"]


@pytest.mark.parametrize("name", ["vectors.usearch", "passages.sqlite"])
def test_damaged_files_are_refused(folder: Path, name: str) -> None:
    manifest = build(folder, passages_of(PETS))
    file = folder / manifest.data / name
    file.write_bytes(b"\0" * file.stat().st_size)
    with pytest.raises(IndexFolderError, match=r"index .*: damaged \(.*\); build it again"):
        open_index(folder)


def test_a_manifest_must_name_an_encoder_and_the_right_count(folder: Path) -> None:
    build(folder, passages_of(PETS))
    record = json.loads((folder / MANIFEST).read_text("utf-8"))
    for part, key, value, message in (
        ("counts", "passages", 5, "holds 4 passages, but its manifest says 5"),
        ("settings", "encoder", 7, "encoder 7; expected a name"),
    ):
        changed = json.loads(json.dumps(record))
        changed["content"][part][key] = value
        (folder / MANIFEST).write_text(json.dumps(changed), "utf-8")
        with pytest.raises(IndexFolderError, match=message):
            open_index(folder)


def test_passages_without_a_known_token_are_stored_but_not_found(folder: Path) -> None:
    build(folder, passages_of({"": "12345", "a": "abc"}), Letters())
    with registered(ENCODERS, "letters", Letters):
        opened = open_index(folder)
    assert len(opened) == 2
    assert found(opened, "abc") == ["a"]
    assert found(opened, "12345") == []


def test_a_corpus_becomes_a_dense_index(tmp_path: Path) -> None:
    (tmp_path / "pets.txt").write_text("\n".join(PETS.values()), "utf-8")
    told: list[int] = []

    def on_encoding(total: int, ready: int) -> Callable[[int], None]:
        told.extend([total, ready])
        return told.append

    manifest = index_corpus(
        tmp_path / "pets.txt",
        tmp_path / "index",
        IndexSettings(passage_words=10, kind="dense"),
        tokens_of="smollm2",
        dense=DenseSettings(encoder="wordllama"),
        on_encoding=on_encoding,
    )
    passages = manifest.content.counts["passages"]
    assert told == [passages, 0, passages]
    assert manifest.content.tokens_of == "smollm2"
    [hits] = open_index(tmp_path / "index").search(["cat"], SearchOptions(k=1))
    assert hits[0].place is not None
    with pytest.raises(IndexFolderError, match="kind 'dense' cannot be changed; expected 'bm25'"):
        delete_documents("pets.txt", tmp_path / "index")


def test_every_kind_can_be_asked_for() -> None:
    for kind in KINDS:
        assert IndexSettings(kind=kind).kind == kind
    with pytest.raises(SettingsError, match="kind='other': expected one of bm25, bm25s, dense"):
        IndexSettings(kind="other")


def test_settings_of_words_are_refused_for_vectors() -> None:
    with pytest.raises(SettingsError, match=r"k1=0\.9 and b=0\.75 with kind='dense'"):
        IndexSettings(kind="dense", k1=0.9)
    with pytest.raises(SettingsError, match="language='german' with kind='dense'"):
        IndexSettings(kind="dense", language="german")


def test_the_static_encoder_is_that_of_its_package() -> None:
    root = logging.getLogger()
    level, handlers = root.level, [*root.handlers]
    from wordllama.inference import WordLlamaInference

    root.setLevel(level)  # the package changes them when it is imported
    root.handlers[:] = handlers
    encoder = static_encoder.StaticEncoder()
    texts = ["A cat.", "naïve 雪 🦎", "", " ".join(["word"] * 3000)]
    given = encoder.encode(texts)
    theirs = WordLlamaInference(encoder._vectors, static_encoder.StaticEncoder()._tokenizer)
    np.testing.assert_allclose(given, theirs.embed(texts), atol=1e-3)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(static_encoder, "find_spec", lambda _: None)
    with pytest.raises(ReaderError, match=r"pip install '\.\[dense\]'"):
        load_encoder("wordllama")
    (tmp_path / "__init__.py").touch()
    with pytest.raises(ReaderError, match=r"expected those of version 0\.4"):
        static_encoder._load(tmp_path)


def test_an_unknown_encoder_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ReaderError) as caught:
        load_encoder(str(tmp_path / "nothing"))
    assert "\n" not in str(caught.value)
    assert "encoder" in str(caught.value)


def test_the_store_refuses_what_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"no database, but long enough to be looked at as one" * 20)
    with pytest.raises(sqlite3.Error):
        PassageStore(tmp_path / "file")
