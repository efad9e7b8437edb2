"""What every server needs to serve: a listening socket, its configuration, and a log."""

import contextlib
import logging
import socket
import sys
from collections.abc import Iterator
from typing import Any

import uvicorn

from flashback.errors import FlashBackError
from flashback.server.server_settings import ServerSettings

_DRAIN = 5
"""Seconds for finished answers to reach their clients."""


def config_of(app: Any, *, lifespan: bool) -> uvicorn.Config:
    """How an application is served: it logs itself, and ends its own requests."""
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on" if lifespan else "off",
        timeout_graceful_shutdown=_DRAIN,
    )


def bind(settings: ServerSettings) -> socket.socket:
    """A listening socket.

    Raises:
        FlashBackError: the address is not this machine's, or the port is taken.
    """
    host, port = settings.host, settings.port
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # Of TCP by name: else asyncio holds back the end of each answer for some 40 ms (Nagle).
        bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(1024)
    except (OSError, UnicodeError) as error:  # the latter: no name of a host
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise FlashBackError(
            f"--host={host!r} --port={port}: cannot listen there: {reason}; give another host or "
            "port (0 for any)"
        ) from error
    return bound


@contextlib.contextmanager
def logged() -> Iterator[None]:
    """Lines of the server's log go to standard error as they are."""
    log = logging.getLogger("flashback.server")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
