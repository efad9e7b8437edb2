"""The settings of a front: a server without a model, before several that have one."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from flashback.declared import CheckedSettings, setting
from flashback.errors import SettingsError

DNS = "dns+"
"""Before a URL: every address of its host is a replica."""


@dataclass(frozen=True)
class FrontSettings(CheckedSettings):
    """The replicas, and when a request goes to which."""

    replicas: tuple[str, ...] = setting(
        (),
        "Serve no model, but pass requests on to this server (repeatable): another 'flashback "
        "serve', or any of OpenAI's API. dns+http://NAME:PORT: every address of the name.",
        flag="--replica",
    )
    check_every: float = setting(
        1.0, "Seconds between looks at whether replicas are there.", low=0.01, high=3600.0
    )
    check_limit: float = setting(
        5.0,
        "Seconds of such a look, and of a connection; two in a row that take longer: it is lost.",
        low=0.01,
        high=3600.0,
    )
    load_factor: float = setting(
        2.0,
        "A replica with so many times the mean of the requests passes further ones on.",
        low=1.0,
        high=1e6,
    )
    free_requests: int = setting(
        4, "Requests that a replica takes whatever the mean is.", low=1, high=1 << 20
    )

    tries: int = setting(
        3,
        "Replicas that may be lost over a request before it is refused: it may be what they die "
        "of.",
        low=1,
        high=1000,
    )
    wait_limit: float = setting(
        10.0, "Seconds that a request waits for a replica if none is up.", low=0.0, high=3600.0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for url in self.replicas:
            check_url(url)


def check_url(url: str) -> None:
    """Refuse what is no server's address with a SettingsError."""
    try:
        parts = urlsplit(url.removeprefix(DNS))
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment or parts.path.rstrip("/") not in ("", "/v1"):
        raise SettingsError(
            f"--replica={url!r}: expected a server's address, such as http://host:8000"
        )
