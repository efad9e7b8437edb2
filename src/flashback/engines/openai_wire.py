"""The wire to an OpenAI-compatible server: requests to JSON objects, whatever happens on the way.

Knows paths, statuses and server-sent events. Knows nothing of tokens.

A request is tried again only as long as nothing of its answer has come. A server that fails several
times in a row is left alone for a few seconds, and everything fails at once.
"""

import contextlib
import json
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlunsplit

from flashback.engines.openai_settings import RemoteSettings
from flashback.errors import EngineError
from flashback.wire.breaker import CircuitBreaker
from flashback.wire.http import Failure, Patience, address_of, connected, failures, shown, told

if TYPE_CHECKING:
    import httpx2

Record = dict[str, Any]
CONNECTIONS = 256
"""At a time, at most."""
_MOST_BYTES = 1 << 26
"""Of an answer that is not streamed."""
_AGAIN = (429, 502, 503)
_LONGEST_WAIT = 5.0
"""Seconds; a server that asks for more is not asked again."""
_REST_SECONDS = 5.0
_REFUSED = {
    401: "wrong credentials; put the server's key into ${variable}",
    403: "wrong credentials; put the server's key into ${variable}",
}


class Wire:
    """Requests to one server. Safe to share between threads."""

    def __init__(
        self,
        settings: RemoteSettings,
        patience: Patience | None = None,
        breaker: CircuitBreaker | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """Connect to nothing yet.

        Args:
            patience: None: 3 tries, with the settings' limit between two tokens.
            breaker: None: after 5 failures in a row, everything fails at once for 5 s.
            sleep: waits some seconds between tries.

        Raises:
            SettingsError: the URL is none, its key is missing, or the extra `remote` is.
        """
        parts = address_of("--base-url", settings.base_url)
        self.address = shown(parts)
        """For people."""
        path = parts.path.rstrip("/") or "/v1"
        self._url = urlunsplit(parts._replace(path=path))
        self._variable = settings.api_key_env
        self._patience = patience or Patience(read_seconds=settings.token_limit)
        self._breaker = breaker or CircuitBreaker(seconds=_REST_SECONDS)
        self._sleep = sleep
        self._client = connected(
            "--engine='openai'", self._url, settings.api_key, self._patience, CONNECTIONS
        )
        weakref.finalize(self, self._client.close)

    def models(self) -> list[Record]:
        """What the server says of its models.

        Raises:
            EngineError: it cannot be reached, refuses, or answers nonsense.
        """
        (found,) = self._chunks("GET", "models", None)
        listed = found.get("data")
        if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
            raise self.error("/models lists no models; expected an OpenAI-compatible server")
        return listed

    def whole(self, body: Record) -> Record:
        """The answer to a completion that is not streamed. Raises as `models`."""
        (found,) = self._chunks("POST", "completions", body)
        return found

    def streamed(self, body: Record) -> Generator[Record]:
        """The chunks of the answer to a streamed completion; close it to end the completion.

        Raises:
            EngineError: as `models`; or the answer broke off.
        """
        return self._chunks("POST", "completions", body)

    def error(self, reason: object) -> EngineError:
        """A failure with the server's name."""
        return EngineError(f"{self.name}: {reason}")

    @property
    def name(self) -> str:
        """For messages."""
        return f"engine {self.address}"

    def _chunks(self, method: str, path: str, body: Record | None) -> Generator[Record]:
        if not self._breaker.may_pass():
            raise self.error("failed several times in a row; it is left alone for a few seconds")
        try:
            yield from self._tried(method, path, body)
        except (Failure, ValueError) as failure:
            if isinstance(failure, Failure) and failure.own:
                self._breaker.succeeded()
            else:
                self._breaker.failed()
            raise self.error(failure) from failure

    def _tried(self, method: str, path: str, body: Record | None) -> Iterator[Record]:
        """The same, after some tries."""
        pause = self._patience.pause_seconds
        for left in reversed(range(self._patience.tries)):
            began = False
            try:
                with contextlib.closing(self._asked(method, path, body)) as chunks:
                    for chunk in chunks:
                        if not began:
                            self._breaker.succeeded()
                        began = True
                        yield chunk
                return
            except Failure as failure:
                if began or not failure.again or not left or failure.wait > _LONGEST_WAIT:
                    raise
                self._sleep(max(pause, failure.wait))
            pause *= 2

    def _asked(self, method: str, path: str, body: Record | None) -> Generator[Record]:
        """One try."""
        streamed = body is not None and body.get("stream")
        seconds = self._patience.read_seconds
        too_slow = f"no {'token' if streamed else 'answer'} in {seconds:g} s"
        with (
            failures(self._patience, too_slow),
            self._client.stream(method, f"{self._url}/{path}", json=body) as response,
        ):
            if response.status_code != 200:
                raise self._refusal(response)
            if streamed:
                yield from _events(response)
            else:
                yield _record(_content(response))

    def _refusal(self, response: "httpx2.Response") -> Failure:
        """Why a request was not answered."""
        status = response.status_code
        content = _content(response)
        reason = _REFUSED.get(status, "").replace("{variable}", self._variable)
        own = status < 500
        return Failure(
            f"{reason or told(content) or 'expected 200'} (status {status})",
            again=status in _AGAIN,
            own=own,
            wait=_seconds(response.headers.get("Retry-After", "")),
        )


def _seconds(text: str) -> float:
    """Of a Retry-After; 0: it is none, or a date."""
    return float(text) if text.isascii() and text.isdigit() else 0.0


def _content(response: "httpx2.Response") -> bytes:
    content = bytearray()
    for part in response.iter_bytes():
        content += part
        if len(content) > _MOST_BYTES:
            raise Failure(f"an answer of more than {_MOST_BYTES >> 20} MiB")
    return bytes(content)


def _events(response: "httpx2.Response") -> Iterator[Record]:
    """The objects of a stream.

    Raises:
        Failure: the server says that it failed, or the stream ends before its end.
    """
    import httpx2

    done = False
    for event in httpx2.EventSource(response):
        if done or event.data == "[DONE]":
            done = True  # what is read to its end leaves the connection for the next request
            continue
        record = _record(event.data.encode())
        if "error" in record:
            raise Failure(told(event.data.encode()) or "the server failed")
        yield record
    if not done:
        raise Failure("the answer broke off", again=True)


def _record(content: bytes) -> Record:
    """An object.

    Raises:
        ValueError: it is none.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"an answer that is no JSON ({type(error).__name__})") from error
    if not isinstance(found, dict):
        raise ValueError("an answer that is no JSON object")
    return found
