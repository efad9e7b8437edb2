"""HTTP to other machines: addresses, the client, patience, and failures in one line.

Knows httpx. Knows nothing of what is asked or answered.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from flashback.errors import SettingsError, missing_extra

if TYPE_CHECKING:
    import httpx2


@dataclass(frozen=True)
class Patience:
    """How long a server is waited for, and how often it is asked again."""

    connect_seconds: float = 3.0
    read_seconds: float = 10.0
    """For a whole answer; of a stream, for its next part."""
    tries: int = 3
    """Of a request that may go better another time, such as one answered 502 or 503."""
    pause_seconds: float = 0.1
    """Before the second try; twice as long before each one after it."""


class Failure(Exception):
    """A try that failed; the message is one line."""

    def __init__(
        self, reason: str, *, again: bool = False, own: bool = False, wait: float = 0.0
    ) -> None:
        super().__init__(reason)
        self.again = again
        """Whether another try may go better."""
        self.own = own
        """Whether the request was at fault, not the server."""
        self.wait = wait
        """Seconds that the server asks to wait before it."""


def address_of(flag: str, url: str) -> SplitResult:
    """The parts of a server's URL.

    Raises:
        SettingsError: it is no URL of HTTP.
    """
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment:
        raise SettingsError(f"{flag}={url!r}: expected a URL such as http://host:8000")
    return parts


def shown(parts: SplitResult) -> str:
    """A server's name for people, without what may be secret."""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def connected(
    what: str, url: str, key: str | None, patience: Patience, connections: int = 100
) -> "httpx2.Client":
    """A client, connected to nothing yet; safe to share between threads.

    Args:
        what: needs it, for messages.
        key: sent as a bearer token; None: none.
        connections: at a time, at most.

    Raises:
        SettingsError: the extra `remote` is not installed.
    """
    try:
        import httpx2
    except ImportError as error:
        raise missing_extra(what, error.name, "remote") from None
    return httpx2.Client(
        timeout=httpx2.Timeout(patience.read_seconds, connect=patience.connect_seconds),
        headers={"Authorization": f"Bearer {key}"} if key else {},
        # Certificates take long to load, and nothing else is followed from a plain address.
        verify=url.startswith("https:"),
        follow_redirects=False,
        limits=httpx2.Limits(max_connections=connections),
    )


@contextlib.contextmanager
def failures(patience: Patience, too_slow: str) -> Iterator[None]:
    """Raise a `Failure` for whatever the client raises.

    Args:
        too_slow: what to say where nothing came in time.
    """
    import httpx2

    try:
        yield
    except httpx2.ConnectTimeout as error:
        seconds = patience.connect_seconds
        raise Failure(f"no connection in {seconds:g} s", again=True) from error
    except httpx2.TimeoutException as error:
        raise Failure(too_slow) from error
    except httpx2.ConnectError as error:
        raise Failure(f"cannot be reached ({one_line(str(error))})", again=True) from error
    except (httpx2.NetworkError, httpx2.RemoteProtocolError) as error:
        raise Failure(f"the connection broke ({one_line(str(error))})", again=True) from error
    except httpx2.HTTPError as error:
        raise Failure(one_line(f"{type(error).__name__}: {error}")) from error


def told(content: bytes) -> str:
    """The message of OpenAI's error object; empty: it is none."""
    try:
        return one_line(str(json.loads(content)["error"]["message"]))
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""


def one_line(text: str) -> str:
    """A text of any length from elsewhere as a short line."""
    return " ".join(text.split())[:300]
