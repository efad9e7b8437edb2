"""Milvus: the contract over gRPC against milvus-lite's server, and refusals."""

import itertools
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")

import grpc

from flashback.corpus.passages import Passage
from flashback.errors import RetrieverError, SettingsError
from flashback.retrieval.milvus import MilvusRetriever
from flashback.retrieval.specs import open_retriever
from flashback.settings import SearchOptions
from retrieval.contract import PETS, Make, RetrieverContract, found, passages_of
from retrieval.store_vectors_checks import OpenStore, StoreVectorsChecks
from servers import until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = str(Path(sys.executable).parent / "milvus-lite")
    command = [program, "server", "--host", "127.0.0.1"]
    folder = tmp_path_factory.mktemp("milvus")
    process = subprocess.Popen(
        [*command, "--port", str(port), "--data-dir", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def is_up() -> bool:
        assert process.poll() is None
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        until(is_up)
        yield f"milvus+http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


class TestContract(RetrieverContract):
    snapshots = False
    forbidding_keeps_scores = False  # in milvus-lite

    @pytest.fixture(scope="class")
    @classmethod
    def make(cls, server: str) -> Make:
        names = itertools.count()

        def made(passages: Sequence[Passage]) -> MilvusRetriever:
            retriever = MilvusRetriever(f"{server}/pets{next(names)}", seconds=240)
            retriever.add(passages)
            retriever.commit()
            return retriever

        return made


class TestDenseContract(RetrieverContract):
    lexical = snapshots = False

    @pytest.fixture(scope="class")
    @classmethod
    def make(cls, server: str) -> Make:
        names = itertools.count()

        def made(passages: Sequence[Passage]) -> MilvusRetriever:
            url = f"{server}/dense{next(names)}?encoder=wordllama"
            retriever = MilvusRetriever(url, seconds=240)
            retriever.add(passages)
            retriever.commit()
            return retriever

        return made


class TestVectors(StoreVectorsChecks):
    @pytest.fixture
    @staticmethod
    def open_store(server: str) -> OpenStore:
        def opened(name: str, encoder: str | None) -> MilvusRetriever:
            query = f"?encoder={encoder}" if encoder else ""
            return MilvusRetriever(f"{server}/{name}{query}", seconds=240)

        return opened


def test_a_collection_is_made_by_the_first_commit(server: str) -> None:
    retriever = MilvusRetriever(f"{server}/later")
    with pytest.raises(RetrieverError, match=r"retriever http://127.0.0.1:\d+/later: .*later"):
        retriever.search(["cat"], SearchOptions())
    retriever.add(passages_of(PETS))
    retriever.commit()
    opened = open_retriever(f"{server}/later")
    assert found(opened, "barks") == ["dogs"]


def test_scripts_without_spaces_are_found(server: str) -> None:
    retriever = MilvusRetriever(f"{server}/japanese")
    texts = {"a": "日本語のテキストを検索する。", "b": "猫が窓の外を見ている。"}
    retriever.add([Passage(f"{name}#0", name, "", text) for name, text in texts.items()])
    retriever.commit()
    assert found(retriever, "日本語の検索") == ["a"]
    assert found(retriever, "窓の猫", k=1) == ["b"]


def test_a_passage_that_is_too_long_is_refused_before_anything_is_written(server: str) -> None:
    retriever = MilvusRetriever(f"{server}/long")
    retriever.add([Passage("a#0", "a", "", "word " * 20_000)])
    with pytest.raises(RetrieverError, match="passage 'a#0': longer than Milvus takes"):
        retriever.commit()


def test_a_collection_of_something_else_is_refused(server: str) -> None:
    from pymilvus import MilvusClient

    client = MilvusClient(server.removeprefix("milvus+"))
    client.create_collection("customers", dimension=4)
    client.close()
    with pytest.raises(RetrieverError, match=r"the collection has other fields \(id, vector\)"):
        open_retriever(f"{server}/customers")


def test_a_server_that_is_down_is_one_line() -> None:
    with pytest.raises(RetrieverError, match=r"retriever http://127\.0\.0\.1:1/pets: ") as caught:
        MilvusRetriever("milvus+http://127.0.0.1:1/pets", seconds=0.2)
    assert "\n" not in str(caught.value)


def test_a_token_that_is_refused_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(grpc.GenericRpcHandler):  # type: ignore[misc] # it has no types
        def service(self, _: Any) -> Any:
            def refuse(_: Any, context: Any) -> None:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "auth check failure, check username")

            return grpc.unary_unary_rpc_method_handler(refuse)

    monkeypatch.setenv("MILVUS_TOKEN", "root:wrong")
    refusing = grpc.server(ThreadPoolExecutor(2), handlers=[Refusing()])
    port = refusing.add_insecure_port("127.0.0.1:0")
    refusing.start()
    try:
        with pytest.raises(RetrieverError, match="illegal connection params") as caught:
            MilvusRetriever(f"milvus+http://127.0.0.1:{port}/pets")
    finally:
        refusing.stop(None).wait()
    assert "\n" not in str(caught.value)
    assert "wrong" not in str(caught.value)


@pytest.mark.parametrize(
    "rest",
    [
        "host:1",
        "host:1/a-b",
        "host/pets",
        "u:p@host:1/pets",
        "host:x/p",
        "host:1/p?encoder=",
        "host:1/p?b=c",
    ],
)
def test_what_is_no_collection_is_refused(rest: str) -> None:
    with pytest.raises(SettingsError, match=r"expected milvus\+http://host:19530/collection"):
        open_retriever(f"milvus+http://{rest}")
