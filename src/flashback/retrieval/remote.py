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
from typing import TYPE_CHECKING, Any
from urllib.parse import urlunsplit

from flashback.errors import RetrieverError
from flashback.retrieval.protocol import Hit, check_search, storable
from flashback.settings import SearchOptions
from flashback.wire.breaker import CircuitBreaker
from flashback.wire.http import (
    Failure,
    Patience,
    address_of,
    connected,
    failures,
    one_line,
    shown,
    told,
)

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
        key = os.environ.get(KEY) if api_key is None else api_key
        self._client = connected("http://", self._url, key, self._patience)
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
        except (Failure, ValueError) as failure:
            if isinstance(failure, Failure) and failure.own:
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
            except Failure as failure:
                if not failure.again or not left:
                    raise
            self._sleep(pause)
            pause *= 2
        raise AssertionError("not one try")

    def _asked(self, body: dict[str, Any]) -> bytes:
        """What the server answers to one request."""
        with (
            failures(self._patience, self._too_slow),
            self._client.stream("POST", self._url, json=body) as response,
        ):
            content = self._content(response)
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
                raise Failure(f"an answer of more than {_MOST_BYTES >> 20} MiB")
            if time.monotonic() > ends:
                raise Failure(self._too_slow)
        return bytes(content)

    @property
    def _too_slow(self) -> str:
        return f"no whole answer in {self._patience.read_seconds:g} s"


def _endpoint(url: str) -> tuple[str, str]:
    """The URL of the endpoint, and the server's name as it is shown.

    Raises:
        SettingsError: it is no URL of HTTP.
    """
    parts = address_of("--retriever", url)
    path = parts.path.rstrip("/")
    if not path.endswith(_PATH):
        path = path.removesuffix("/v1") + _PATH
    return urlunsplit((parts.scheme, parts.netloc, path, "", "")), shown(parts)


def _refusal(status: int, content: bytes) -> Failure:
    """Why a request was not answered."""
    reason = _REFUSED.get(status) or told(content) or "expected 200"
    own = status < 500 and status != 429
    return Failure(f"{reason} (status {status})", again=status in _AGAIN, own=own)


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
    return f"without {error.args[0]!r}" if missing else one_line(str(error))


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
