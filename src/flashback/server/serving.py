"""The application on a socket, until a signal stops it."""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Iterator

import uvicorn

from flashback.errors import FlashBackError
from flashback.server.app import make_app
from flashback.server.server_settings import ServerSettings
from flashback.server.service import Service

_POLL = 0.1
"""Seconds between looks for a second signal."""
DRAIN = 5
"""Seconds for finished answers to reach their clients."""


class Listener(uvicorn.Server):
    """A uvicorn server that finishes or cancels the scheduler's jobs before it closes."""

    def __init__(self, service: Service) -> None:
        config = uvicorn.Config(
            make_app(service),
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=DRAIN,
        )
        super().__init__(config)
        self._service = service

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and watch the index from now on."""
        await super().startup(sockets)
        if (watch := self._service.watch) is not None:
            watch.start()
            # No such signal on Windows; none for a server that is not on the main thread.
            with contextlib.suppress(AttributeError, NotImplementedError, RuntimeError, ValueError):
                asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, watch.look_now)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish active requests within the grace, cancel the rest, then close.

        A second signal cancels all of them now.
        """
        scheduler, grace = self._service.scheduler, self._service.settings.grace
        if self._service.watch is not None:
            self._service.watch.stop()
        closing = asyncio.create_task(asyncio.to_thread(scheduler.close, grace))
        while not (await asyncio.wait([closing], timeout=_POLL))[0]:
            if self.force_exit:
                scheduler.hurry()
        await closing
        await super().shutdown(sockets)


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


def serve(service: Service, bound: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM; SIGHUP looks for a new version of the index."""
    with logged():
        Listener(service).run(sockets=[bound])


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
