"""A front in this process for tests, before servers whose cables can be cut."""

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2

from flashback.server.front import Front, FrontListener
from flashback.server.front_settings import FrontSettings
from flashback.server.server_settings import ServerSettings
from flashback.server.sockets import bind
from servers import MINUTES, until

_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: a socket that is closed says so at once, as a killed process's does."""


class Cable:
    """Connects a port of this machine with a server, until it is cut."""

    def __init__(self, target: str) -> None:
        """Listen, and pass everything on to a server's address."""
        host, _, port = target.removeprefix("http://").rpartition(":")
        self._target = host, int(port)
        self._lock = threading.Lock()
        self._ends: list[socket.socket] = []
        self._whole = True
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def mend(self) -> None:
        """Let new connections through again."""
        with self._lock:
            self._whole = True

    def cut(self) -> None:
        """Break all connections, and reset new ones at once."""
        with self._lock:
            self._whole = False
            ends, self._ends = self._ends, []
        for end in ends:
            _reset(end)

    def close(self) -> None:
        """Cut it, and wait until nothing passes any more."""
        self.cut()
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                self._connect(near)

    def _connect(self, near: socket.socket) -> None:
        try:
            far = socket.create_connection(self._target)
        except OSError:
            _reset(near)
            return
        with self._lock:
            if self._whole:
                self._ends += [near, far]
                for pair in ((near, far), (far, near)):
                    self._threads.append(threading.Thread(target=self._pass, args=pair))
                    self._threads[-1].start()
                return
        _reset(near)
        _reset(far)

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while part := source.recv(1 << 16):
                sink.sendall(part)
            sink.shutdown(socket.SHUT_WR)


def _reset(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


@dataclass(frozen=True)
class Fronted:
    """A front that listens."""

    front: Front
    url: str
    listener: FrontListener

    def http(self, **options: Any) -> httpx2.Client:
        """A plain client."""
        return httpx2.Client(base_url=self.url, timeout=MINUTES, verify=False, **options)

    def up(self) -> list[str]:
        """The URLs of the replicas that take requests."""
        return sorted(one.url for one in list(self.front.replicas.all.values()) if one.up)

    def stop(self) -> None:
        """What SIGTERM does."""
        self.listener.should_exit = True


@contextlib.contextmanager
def fronting(*urls: str, **settings: Any) -> Iterator[Fronted]:
    """A front before servers, until the block ends."""
    own = {"check_every": 0.02, "check_limit": MINUTES} | settings
    names = set(ServerSettings.__dataclass_fields__)
    shared = {"grace": 0.2} | {name: own.pop(name) for name in names & set(own)}
    chosen = ServerSettings(port=0, **shared)
    bound = bind(chosen)
    front = Front(FrontSettings(tuple(urls), **own), chosen)
    listener = FrontListener(front)
    listener.config.timeout_graceful_shutdown = int(MINUTES)
    thread = threading.Thread(target=listener.run, kwargs={"sockets": [bound]})
    thread.start()
    host, port = bound.getsockname()[:2]
    fronted = Fronted(front, f"http://{host}:{port}", listener)
    try:
        until(lambda: listener.started)
        yield fronted
    finally:
        fronted.stop()
        thread.join()
        bound.close()


@contextlib.contextmanager
def cables(*urls: str) -> Iterator[list[Cable]]:
    """A cable to each server."""
    made = [Cable(url) for url in urls]
    try:
        yield made
    finally:
        for one in made:
            one.close()
