"""Qdrant: the contract against the client's embedded engine, and refusals."""

import contextlib
import itertools
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("qdrant_client")

from qdrant_client import QdrantClient, models

from flashback.corpus.passages import Passage
from flashback.errors import RetrieverError, SettingsError
from flashback.retrieval.fusion import FusedRetriever
from flashback.retrieval.qdrant import QdrantRetriever, weights
from flashback.retrieval.specs import open_retriever
from flashback.settings import SearchOptions
from retrieval.contract import PETS, Make, RetrieverContract, found, passages_of
from retrieval.store_vectors_checks import OpenStore, StoreVectorsChecks


@pytest.fixture(scope="module")
def client() -> Iterator[QdrantClient]:
    """An engine in this process."""
    client = QdrantClient(":memory:")
    yield client
    client.close()


class TestContract(RetrieverContract):
    snapshots = False

    @pytest.fixture(scope="class")
    @classmethod
    def make(cls, client: QdrantClient) -> Make:
        names = itertools.count()

        def made(passages: Sequence[Passage]) -> QdrantRetriever:
            retriever = QdrantRetriever(client, f"pets{next(names)}")
            retriever.add(passages)
            retriever.commit()
            return retriever

        return made


class TestDenseContract(RetrieverContract):
    lexical = snapshots = False

    @pytest.fixture(scope="class")
    @classmethod
    def make(cls, client: QdrantClient) -> Make:
        names = itertools.count()

        def made(passages: Sequence[Passage]) -> QdrantRetriever:
            retriever = QdrantRetriever(client, f"dense{next(names)}", "wordllama")
            retriever.add(passages)
            retriever.commit()
            return retriever

        return made


class TestHybridContract(RetrieverContract):
    """One collection, searched by words and by vectors, and fused."""

    lexical = snapshots = False
    forbidding_keeps_scores = False  # ranks close up

    @pytest.fixture(scope="class")
    @classmethod
    def make(cls, client: QdrantClient) -> Make:
        names = itertools.count()

        def made(passages: Sequence[Passage]) -> FusedRetriever:
            name = f"hybrid{next(names)}"
            meaning = QdrantRetriever(client, name, "wordllama")
            meaning.add(passages)
            meaning.commit()
            return FusedRetriever([QdrantRetriever(client, name), meaning])

        return made


class TestVectors(StoreVectorsChecks):
    @pytest.fixture
    @staticmethod
    def open_store(client: QdrantClient) -> OpenStore:
        return lambda name, encoder: QdrantRetriever(client, name, encoder)


def test_a_folder_keeps_a_collection(tmp_path: Path) -> None:
    first = QdrantRetriever(QdrantClient(path=str(tmp_path)), "pets")
    first.add(passages_of(PETS))
    first.commit()
    first.close()
    again = QdrantRetriever(QdrantClient(path=str(tmp_path)), "pets")
    assert found(again, "barks") == ["dogs"]
    again.close()


def test_a_collection_is_made_by_the_first_commit(client: QdrantClient) -> None:
    retriever = QdrantRetriever(client, "later")
    with pytest.raises(RetrieverError, match="retriever qdrant/later: Collection later not found"):
        retriever.search(["cat"], SearchOptions())


def test_rare_words_count_more(client: QdrantClient) -> None:
    retriever = QdrantRetriever(client, "rare")
    texts = ["alpha beta", "alpha gamma", "alpha delta", "epsilon zeta"]
    retriever.add([Passage(f"{n}#0", str(n), "", text) for n, text in enumerate(texts)])
    retriever.commit()
    assert found(retriever, "alpha delta")[0] == "2"
    assert found(retriever, "alpha epsilon", k=1) == ["3"]


def test_weights_are_those_of_bm25_at_the_usual_length() -> None:
    terms = Counter({"cat": 1, "dog": 3, **{f"w{n}": 1 for n in range(60)}})
    found = weights(terms)
    assert found["cat"] == pytest.approx(2.2 / (1 + 1.2))
    assert found["dog"] == pytest.approx(3 * 2.2 / (3 + 1.2))


def test_a_collection_of_something_else_is_refused(client: QdrantClient) -> None:
    size = models.VectorParams(size=4, distance=models.Distance.DOT)
    client.create_collection("customers", vectors_config=size)
    with pytest.raises(RetrieverError, match="the collection has no sparse vectors 'terms'"):
        QdrantRetriever(client, "customers")


@contextlib.contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """A server that gives every request the same answer, for its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, b"Must provide an API key", "401.*API key"),
        (200, b"<html>", "no JSON"),
        (200, b'{"result": 7}', "CollectionExistence"),
    ],
)
@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
def test_a_refused_key_and_garbage_are_one_line(
    status: int, body: bytes, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QDRANT_API_KEY", "secret")
    with answering(status, body) as url:
        for query in ("", "?encoder=wordllama"):
            expected = f"retriever qdrant/pets: .*({said})"
            with pytest.raises(RetrieverError, match=expected) as caught:
                open_retriever(f"qdrant+{url}/pets{query}")
            assert "\n" not in str(caught.value)
            assert "secret" not in str(caught.value)


def test_a_server_that_is_down_is_one_line() -> None:
    with pytest.raises(RetrieverError, match="retriever qdrant/pets: ") as caught:
        open_retriever("qdrant+http://127.0.0.1:1/pets")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "rest",
    [
        "host:1",
        "host/pets",
        "u:p@host:1/pets",
        "host:x/p",
        "h:1/a/b",
        "h:1/a?encoder=",
        "h:1/a?b=c",
    ],
)
def test_what_is_no_collection_is_refused(rest: str) -> None:
    with pytest.raises(SettingsError, match=r"expected qdrant\+http://host:6333/collection"):
        open_retriever(f"qdrant+http://{rest}")
