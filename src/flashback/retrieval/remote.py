"""Another machine's retriever over HTTP: what `POST /v1/retrieve` of `flashback serve` speaks.

docs/retrieval.md has the protocol. An answer is checked as input: whatever is wrong with it, or
with the way there, is one line.
"""

import json
import math
import os
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from flashback.errors import RetrieverError, SettingsError
from flashback.retrieval.breaker import CircuitBreaker
from flashback.retrieval.protocol import Hit, check_search, missing_extra, storable
from flashback.settings import SearchOptions

if TYPE_CHECKING:
    import httpx2

KEY = "FLASHBACK_RETRIEVER_KEY"
"""The environment variable with the server's key."""
_PATH = "/v1/retrieve"
_MOST_QUERIES = 1024
"""In a request; more are asked in several."""
_MOST_BYTES = 1 << 26
"""Of an answer."""
_AGAIN = (502, 503)
_REFUSED = {
    401: f"wrong credentials; put the server's key into ${KEY}",
    403: f"wrong credentials; put the server's key into ${KEY}",
    404: "there is no such path; expected the address of a server that speaks /v1/retrieve",
}


@dataclass(frozen=True)
class Patience:
    """How long a server is waited for, and how often it is asked again."""

    connect_seconds: float = 3.0
    read_seconds: float = 10.0
    """For a whole answer."""
    tries: int = 3
    """Of a request whose connection fails, or that is answered 502 or 503."""
    pause_seconds: float = 0.1
    """Before the second try; twice as long before each one after it."""


class _Failure(Exception):
    """A try that failed."""

    def __init__(self, reason: str, *, again: bool = False, own: bool = False) -> None:
        super().__init__(reason)
        self.again = again
        """Whether another try may go better."""
        self.own = own
        """Whether the request was at fault, not the server."""


class HttpRetriever:
    """A `Retriever` behind a URL. Safe to share between threads."""

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        patience: Patience | None = None,
        breaker: CircuitBreaker | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """Connect to nothing yet.

        Args:
            url: the server's address, with or without `/v1/retrieve`.
            api_key: None: of the environment variable FLASHBACK_RETRIEVER_KEY, if it is set.
            patience: None: as `Patience` has it.
            breaker: None: after 5 failures in a row, searches fail at once for 30 s.
            sleep: waits some seconds between tries.

        Raises:
            SettingsError: the URL is none, or the extra `remote` is not installed.
        """
        self._url, self._shown = _endpoint(url)
        self._patience = patience or Patience()
        self._breaker = breaker or CircuitBreaker()
        self._sleep = sleep
        self._client = self._connected(os.environ.get(KEY) if api_key is None else api_key)
        weakref.finalize(self, self._client.close)

    @classmethod
    def open(cls, url: str) -> "HttpRetriever":
        """Connect, and search once to see that it works.

        Raises:
            SettingsError: see `HttpRetriever`.
            RetrieverError: see `search`.
        """
        opened = cls(url)
        opened.search(["a"], SearchOptions())
        return opened

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        """See `Retriever.search`; at most 1,000 hits per query.

        Raises:
            RetrieverError: the server cannot be reached, is too slow, refuses, or answers what is
                none.
        """
        check_search(queries, options)
        found: list[list[Hit]] = []
        for at in range(0, len(queries), _MOST_QUERIES):
            found += self._search_some(queries[at : at + _MOST_QUERIES], options)
        return found

    def _search_some(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        body = {
            "queries": [storable(query) for query in queries],
            "passages": options.k,
            "min_score": options.min_score,
            "forbid_titles": [storable(title) for title in options.forbid_titles],
            "forbid_documents": [storable(name) for name in options.forbid_documents],
        }
        if not self._breaker.may_pass():
            raise RetrieverError(
                f"retriever {self._shown}: failed several times in a row; it is left alone for a "
                "while"
            )
        try:
            found = hits_of(self._answer(body), len(queries), options)
        except (_Failure, ValueError) as failure:
            if isinstance(failure, _Failure) and failure.own:
                self._breaker.succeeded()
            else:
                self._breaker.failed()
            raise RetrieverError(f"retriever {self._shown}: {failure}") from failure
        self._breaker.succeeded()
        return found

    def _answer(self, body: dict[str, Any]) -> bytes:
        """What the server answers, after some tries."""
        pause = self._patience.pause_seconds
        for left in reversed(range(self._patience.tries)):
            try:
                return self._asked(body)
            except _Failure as failure:
                if not failure.again or not left:
                    raise
            self._sleep(pause)
            pause *= 2
        raise AssertionError("not one try")

    def _asked(self, body: dict[str, Any]) -> bytes:
        """What the server answers to one request."""
        import httpx2

        try:
            with self._client.stream("POST", self._url, json=body) as response:
                content = self._content(response)
        except httpx2.ConnectTimeout as error:
            seconds = self._patience.connect_seconds
            raise _Failure(f"no connection in {seconds:g} s", again=True) from error
        except httpx2.TimeoutException as error:
            raise self._too_slow() from error
        except httpx2.ConnectError as error:
            raise _Failure(f"cannot be reached ({error})", again=True) from error
        except (httpx2.NetworkError, httpx2.RemoteProtocolError) as error:
            raise _Failure(f"the connection broke ({error})", again=True) from error
        except httpx2.HTTPError as error:
            raise _Failure(f"{type(error).__name__}: {error}") from error
        if response.status_code == 200:
            return content
        raise _refusal(response.status_code, content)

    def _content(self, response: "httpx2.Response") -> bytes:
        """The body, unless it takes too long or too much."""
        ends = time.monotonic() + self._patience.read_seconds
        content = bytearray()
        for part in response.iter_bytes():
            content += part
            if len(content) > _MOST_BYTES:
                raise _Failure(f"an answer of more than {_MOST_BYTES >> 20} MiB")
            if time.monotonic() > ends:
                raise self._too_slow()
        return bytes(content)

    def _too_slow(self) -> _Failure:
        return _Failure(f"no whole answer in {self._patience.read_seconds:g} s")

    def _connected(self, key: str | None) -> "httpx2.Client":
        try:
            import httpx2
        except ImportError as error:
            raise missing_extra("http://", error.name, "remote") from None
        limit = httpx2.Timeout(self._patience.read_seconds, connect=self._patience.connect_seconds)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # Certificates take long to load, and nothing else is followed from a plain address.
        verify = self._url.startswith("https:")
        return httpx2.Client(timeout=limit, headers=headers, verify=verify, follow_redirects=False)


def _endpoint(url: str) -> tuple[str, str]:
    """The URL of the endpoint, and the server's name as it is shown.

    Raises:
        SettingsError: it is no URL of HTTP.
    """
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment:
        raise SettingsError(f"--retriever={url!r}: expected a URL such as http://host:8000")
    path = parts.path.rstrip("/")
    if not path.endswith(_PATH):
        path = path.removesuffix("/v1") + _PATH
    shown = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, parts.netloc, path, "", "")), f"{parts.scheme}://{shown}"


def _refusal(status: int, content: bytes) -> _Failure:
    """Why a request was not answered."""
    reason = _REFUSED.get(status)
    if reason is None:
        try:
            reason = str(json.loads(content)["error"]["message"])
        except (ValueError, TypeError, KeyError, RecursionError):
            reason = "expected 200"
    own = status < 500 and status != 429
    return _Failure(f"{_one_line(reason)} (status {status})", again=status in _AGAIN, own=own)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]


def hits_of(content: bytes, queries: int, options: SearchOptions) -> list[list[Hit]]:
    """The hits of an answer.

    Raises:
        ValueError: it is none, or has what was not asked for.
    """
    try:
        results = json.loads(content)["results"]
        by_query = {result["index"]: result["passages"] for result in results}
        if len(results) != queries or set(by_query) != set(range(queries)):
            raise ValueError(f"an answer to {len(results)} of {queries} queries")
        found = [[_hit(record) for record in by_query[at]] for at in range(queries)]
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"not an answer of /v1/retrieve ({_told(error)})") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not an answer of /v1/retrieve (no JSON: {error})") from error
    for hits in found:
        _check(hits, options)
    return found


def _told(error: Exception) -> str:
    missing = isinstance(error, KeyError) and error.args
    return f"without {error.args[0]!r}" if missing else _one_line(str(error))


def _hit(record: dict[str, Any]) -> Hit:
    """A passage; without a document and a title it has its own id and none."""
    name, score = record["id"], record["score"]
    texts = name, record.get("document_id", name), record.get("title", ""), record["text"]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a passage whose id, document_id, title or text is no text")
    if type(score) not in (int, float) or not math.isfinite(score):
        raise TypeError(f"a score of {score!r}"[:60])
    return Hit(*texts, float(score))


def _check(hits: Sequence[Hit], options: SearchOptions) -> None:
    """Refuse what the options forbid: a server that passes over them would let texts leak."""
    scores = [hit.score for hit in hits]
    if len(hits) > options.k:
        raise ValueError(f"{len(hits)} passages for a query, expected {options.k} at most")
    if scores != sorted(scores, reverse=True):
        raise ValueError("passages that do not come best first")
    for hit in hits:
        if hit.score < options.min_score:
            raise ValueError(f"a passage with a score below {options.min_score:g}")
        if hit.title in options.forbid_titles or hit.document_id in options.forbid_documents:
            raise ValueError(f"the passage {hit.id!r}, whose title or document is forbidden")
