"""The application on a socket, until a signal stops it."""

import asyncio
import contextlib
import signal
import socket

import uvicorn

from flashback.server.app import make_app
from flashback.server.service import Service
from flashback.server.sockets import config_of, logged

_POLL = 0.1
"""Seconds between looks for a second signal."""


class Listener(uvicorn.Server):
    """A uvicorn server that finishes or cancels the scheduler's jobs before it closes."""

    def __init__(self, service: Service) -> None:
        super().__init__(config_of(make_app(service), lifespan=False))
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


def serve(service: Service, bound: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM; SIGHUP looks for a new version of the index."""
    with logged():
        Listener(service).run(sockets=[bound])
