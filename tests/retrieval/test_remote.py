"""The HTTP client: the contract against a real server, and servers that misbehave."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from command_line import refused, run
from flashback.corpus.documents import CorpusReport
from flashback.corpus.passages import Passage
from flashback.errors import RetrieverError, SettingsError
from flashback.retrieval.bm25 import BM25Index, IndexSettings, build_index
from flashback.retrieval.remote import HttpRetriever
from flashback.retrieval.specs import open_retriever
from flashback.server.server_settings import ServerSettings
from flashback.server.sockets import bind
from flashback.settings import SearchOptions
from flashback.wire.breaker import CircuitBreaker
from flashback.wire.http import Patience
from retrieval.contract import PETS, Make, RetrieverContract, found, passages_of
from servers import MINUTES, Clock, chat_reader, serving

ONE = {"id": "a#0", "document_id": "a", "title": "A", "text": "An ant.", "score": 2.5}


class TestContract(RetrieverContract):
    @pytest.fixture(scope="class")
    @classmethod
    def make(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
        reader = chat_reader()
        with contextlib.ExitStack() as servers:

            def made(passages: Sequence[Passage]) -> HttpRetriever:
                folder = tmp_path_factory.mktemp("index") / "IDX"
                settings = IndexSettings(deduplicate=False)
                build_index(folder, passages, settings, CorpusReport())
                served = servers.enter_context(serving(reader, BM25Index.open(folder)))
                return HttpRetriever(served.url, patience=Patience(read_seconds=MINUTES))

            yield made


def answer(*results: Any) -> bytes:
    """A good answer: the passages of each query."""
    listed = [{"index": at, "passages": passages} for at, passages in enumerate(results)]
    return json.dumps({"object": "list", "results": listed}).encode()


Reply = tuple[int, bytes] | Callable[[BaseHTTPRequestHandler], None]


class Fake:
    """A server that gives prepared replies, the last one again and again."""

    def __init__(self, *replies: Reply) -> None:
        self.replies = list(replies)
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.url = ""


@contextlib.contextmanager
def faking(*replies: Reply) -> Iterator[Fake]:
    fake = Fake(*replies)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            fake.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            fake.headers.append(self.headers)
            reply = fake.replies.pop(0) if len(fake.replies) > 1 else fake.replies[0]
            if callable(reply):
                self.close_connection = True
                return reply(self)
            status, body = reply
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return None

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def asked(fake: Fake, *queries: str, options: SearchOptions | None = None, **more: Any) -> Any:
    more = {"sleep": lambda _: None} | more
    return HttpRetriever(fake.url, **more).search(queries or ["ant"], options or SearchOptions())


def failure(fake: Fake, **more: Any) -> str:
    with pytest.raises(RetrieverError) as caught:
        asked(fake, **more)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"retriever {fake.url}: ")
    return message.removeprefix(f"retriever {fake.url}: ")


def test_what_is_sent_and_what_is_made_of_the_answer() -> None:
    with faking((200, answer([ONE], [{"id": "b", "text": "A bee.", "score": 1}]))) as fake:
        options = SearchOptions(3, 0.5, ("T\ud800",), ("d",))
        (first,), (second,) = asked(fake, "ant", "b\ud800e", options=options, api_key="k")
    assert (first.id, first.document_id, first.title, first.score) == ("a#0", "a", "A", 2.5)
    assert (second.id, second.document_id, second.title) == ("b", "b", "")
    assert fake.bodies == [
        {
            "queries": ["ant", "b?e"],
            "passages": 3,
            "min_score": 0.5,
            "forbid_titles": ["T?"],
            "forbid_documents": ["d"],
        }
    ]
    assert fake.headers[0]["Authorization"] == "Bearer k"


def test_many_queries_are_several_requests() -> None:
    first, second = answer(*[[]] * 1024), answer([ONE])
    with faking((200, first), (200, second)) as fake:
        hits = asked(fake, *map(str, range(1025)))
    assert [len(body["queries"]) for body in fake.bodies] == [1024, 1]
    assert [len(one) for one in hits] == [0] * 1024 + [1]


@pytest.mark.parametrize("status", [502, 503])
def test_a_server_that_will_be_back_is_asked_again(status: int) -> None:
    pauses: list[float] = []
    with faking((status, b""), (status, b""), (200, answer([ONE]))) as fake:
        ((hit,),) = asked(fake, sleep=pauses.append)
    assert hit.text == "An ant."
    assert pauses == [0.1, 0.2]


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 504])
def test_others_are_asked_once(status: int) -> None:
    with faking((status, b"<html>")) as fake:
        assert f"(status {status})" in failure(fake)
    assert len(fake.bodies) == 1


def test_tries_are_bounded() -> None:
    with faking((503, b'{"error": {"message": "shutting\\ndown"}}')) as fake:
        assert failure(fake) == "shutting down (status 503)"
    assert len(fake.bodies) == 3


def test_wrong_credentials_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(api_key="secret") as served:
        with pytest.raises(
            RetrieverError, match=r"wrong credentials; .* \$FLASHBACK_RETRIEVER_KEY"
        ):
            open_retriever(served.url)
        monkeypatch.setenv("FLASHBACK_RETRIEVER_KEY", "secret")
        assert found(open_retriever(f"{served.url}/v1"), "a")
        assert found(open_retriever(f"{served.url}/v1/retrieve"), "a")


def hung_up(handler: BaseHTTPRequestHandler) -> None:
    """No answer at all."""


def half(handler: BaseHTTPRequestHandler) -> None:
    """Half of the body that was announced."""
    body = answer([ONE])
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2])


@pytest.mark.parametrize("broken", [hung_up, half])
def test_a_broken_connection_is_tried_again(broken: Reply) -> None:
    with faking(broken, broken, (200, answer([ONE]))) as fake:
        assert len(asked(fake)[0]) == 1
    with faking(broken) as fake:
        assert failure(fake).startswith("the connection broke (")
    assert len(fake.bodies) == 3


def test_a_server_that_is_down() -> None:
    with faking((200, b"")) as fake:
        pass
    assert failure(fake).startswith("cannot be reached (")
    assert "cannot be reached" in refused("search", "--retriever", fake.url, "ant", code=1)


def test_a_server_that_does_not_answer_in_time_is_asked_once() -> None:
    ended = threading.Event()

    def hang(handler: BaseHTTPRequestHandler) -> None:
        ended.wait()

    with faking(hang) as fake:
        message = failure(fake, patience=Patience(read_seconds=0.05))
        ended.set()
    assert message == "no whole answer in 0.05 s"
    assert len(fake.bodies) == 1


def test_a_server_that_dribbles_is_left() -> None:
    left = threading.Event()

    def dribble(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        with contextlib.suppress(OSError):
            while not left.wait(0.01):
                handler.wfile.write(b" ")

    with faking(dribble) as fake:
        message = failure(fake, patience=Patience(read_seconds=0.1))
        left.set()
    assert message == "no whole answer in 0.1 s"


def test_an_endless_answer_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashback.retrieval.remote._MOST_BYTES", 1 << 20)
    with faking((200, b" " * (3 << 20))) as fake:
        assert "more than" in failure(fake)


def changed(**fields: Any) -> bytes:
    return answer([ONE | fields])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no JSON"),
        (b"<html>It works!</html>", "no JSON"),
        (answer([ONE])[:-20], "no JSON"),
        (b"\xff\xfe\xfa", "not an answer of /v1/retrieve"),
        (b"[" * 100_000, "not an answer of /v1/retrieve"),
        (b"[]", "not an answer"),
        (b"null", "not an answer"),
        (b"{}", "without 'results'"),
        (b'{"results": 5}', "not an answer"),
        (b'{"results": [5]}', "not an answer"),
        (b'{"results": [{"index": 0}]}', "without 'passages'"),
        (b'{"results": [{"index": [], "passages": []}]}', "not an answer"),
        (b'{"results": [{"index": 0, "passages": 7}]}', "not an answer"),
        (answer(), "an answer to 0 of 1 queries"),
        (answer([], []), "an answer to 2 of 1 queries"),
        (answer([{"id": "a"}]), "without 'score'"),
        (changed(text=None), "is no text"),
        (changed(id=5), "is no text"),
        (changed(title=["x"]), "is no text"),
        (changed(score="2"), "a score of '2'"),
        (changed(score=True), "a score of True"),
        (changed(score=float("nan")), "a score of nan"),
        (changed(score=0.1), "a score below 0.5"),
        (changed(title="No"), "the passage 'a#0', whose title or document is forbidden"),
        (changed(document_id="none"), "the passage 'a#0', whose title or document is forbidden"),
        (answer([ONE, ONE, ONE]), "3 passages for a query, expected 2 at most"),
        (answer([ONE, ONE | {"score": 9}]), "do not come best first"),
    ],
)
def test_garbage_is_one_line(content: bytes, message: str) -> None:
    options = SearchOptions(2, 0.5, ("No",), ("none",))
    with faking((200, content)) as fake:
        assert message in failure(fake, options=options)
    assert len(fake.bodies) == 1


def test_a_redirection_is_not_followed() -> None:
    with faking((307, b"")) as fake:
        assert "(status 307)" in failure(fake)


@pytest.mark.parametrize(
    "url", ["http://", "http://host:x", "http://a?b=c", "http://a#b", "http://[::1"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="expected a URL such as http://host:8000"):
        open_retriever(url)


# The circuit breaker


def test_after_failures_in_a_row_all_fail_at_once_for_a_while() -> None:
    clock = Clock()
    breaker = CircuitBreaker(2, 10.0, clock)
    with faking((500, b""), (500, b""), (500, b""), (200, answer([ONE]))) as fake:
        retriever = HttpRetriever(fake.url, breaker=breaker)

        def tell() -> str:
            with pytest.raises(RetrieverError) as caught:
                retriever.search(["ant"], SearchOptions())
            return str(caught.value)

        assert ["500" in tell(), "500" in tell()] == [True, True]
        assert "left alone for a while" in tell()
        assert len(fake.bodies) == 2
        clock.advance(10.0)
        assert "500" in tell()  # one tries
        assert "left alone for a while" in tell()
        clock.advance(10.0)
        assert len(retriever.search(["ant"], SearchOptions())[0]) == 1
        assert len(retriever.search(["ant"], SearchOptions())[0]) == 1
    assert len(fake.bodies) == 5


def test_only_one_tries_when_the_time_is_over() -> None:
    clock = Clock()
    breaker = CircuitBreaker(1, 10.0, clock)
    breaker.failed()
    clock.advance(10.0)
    assert [breaker.may_pass() for _ in range(3)] == [True, False, False]
    breaker.succeeded()
    assert breaker.may_pass()


def test_a_wrong_request_is_not_the_servers_failure() -> None:
    breaker = CircuitBreaker(1)
    with faking((400, b'{"error": {"message": "too long"}}'), (200, answer([ONE]))) as fake:
        retriever = HttpRetriever(fake.url, breaker=breaker)
        with pytest.raises(RetrieverError, match=r"too long \(status 400\)"):
            retriever.search(["ant"], SearchOptions())
        assert len(retriever.search(["ant"], SearchOptions())[0]) == 1


def test_the_servers_answers_are_not_held_back() -> None:
    """Only for sockets that are TCP's by name does asyncio switch off Nagle's algorithm."""
    with bind(ServerSettings(port=0)) as bound:
        assert bound.proto == socket.IPPROTO_TCP


def test_it_writes_from_a_server(model_folder: Any, tmp_path: Any) -> None:
    build_index(tmp_path / "IDX", passages_of(PETS), IndexSettings(), CorpusReport())
    small = ("--stride", "4", "--passage-tokens", "16", "--max-new-tokens", "4")
    with serving(None, BM25Index.open(tmp_path / "IDX")) as served:
        spec = ("--retriever", served.url, "--model", model_folder)
        record = run("generate", *spec, *small, "--json", "A dog barks").record
    assert record["strides"][0]["passages"][0]["title"] == "Dogs"
