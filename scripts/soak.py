"""Many clients at a server for minutes: checks for starvation, leaks and wrong answers.

    python scripts/soak.py                         # 32 clients, 5 minutes, flashback-mini
    python scripts/soak.py --index IDX --clients 8 --seconds 20 --json

Starts `flashback serve` in a process of its own. First every kind of request is sent alone, which
gives the answers to compare with; then all clients send kinds at random, streamed or not. Of five
requests one is dropped midway, and now and then a client sends garbage. Exits with 1 if a
claim of docs/server.md does not hold.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

TOPICS = (
    *("The json module", "A socket", "Sorting a list in place", "The garbage collector"),
    *(
        "Threads and locks",
        "To open a file for reading",
        "A regular expression",
        "The email package",
    ),
)
PATTERNS = ("none", "append", "prepend", "slot")
LENGTHS = (16, 40, 96)
GARBAGE = (
    b"",
    b"{",
    b"[]",
    b"\xff\xfe",
    b'{"model": "flashback-mini", "prompt": {"a": 1}}',
    b'{"model": "flashback-mini", "prompt": "a", "max_tokens": -1}',
    b'{"model": "flashback-mini", "prompt": "a", "tools": []}',
    b'{"model": "no such", "prompt": "a"}',
)
FAIREST = 5.0
"""Slowest time to a first stride by the median, at most."""
GROWTH = 1.05
"""Resident memory at the end by that after the warm-up, at most."""
WARM_UP = 0.25
"""The share of the time before memory is compared."""


@dataclass(frozen=True)
class Kind:
    """A request that can be sent again: greedy, so its answer is always the same."""

    model: str
    prompt: str
    pattern: str
    tokens: int

    def body(self, stream: bool) -> dict[str, Any]:
        return {
            "model": self.model,
            "prompt": self.prompt,
            "max_tokens": self.tokens,
            "temperature": 0,
            "stream": stream,
            "flashback": {"pattern": self.pattern, "ignore_eos": True},
        }


@dataclass
class Count:
    """What the clients saw."""

    completed: int = 0
    dropped: int = 0
    garbage: int = 0
    different: int = 0
    statuses: dict[int, int] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    """Streams that ended without an end, and connections that failed."""
    first_stride: list[float] = field(default_factory=list)
    """Seconds from a request to its first text."""

    def status(self, code: int) -> None:
        self.statuses[code] = self.statuses.get(code, 0) + 1


def kinds(model: str) -> list[Kind]:
    """All of them: the lengths are spread over prompts and patterns."""
    pairs = itertools.product(TOPICS, PATTERNS)
    return [
        Kind(model, topic, pattern, LENGTHS[number % len(LENGTHS)])
        for number, (topic, pattern) in enumerate(pairs)
    ]


@contextlib.contextmanager
def server(arguments: Sequence[str]) -> Iterator[tuple[str, int]]:
    """A server in another process: its address and its process id."""
    command = [sys.executable, "-m", "flashback", "serve", *arguments, "--port", "0"]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as file:
            running = subprocess.Popen(command, stdout=file, stderr=file)
        try:
            yield address(running, log), running.pid
            running.send_signal(signal.SIGTERM)
            running.wait(60)
        finally:
            running.kill()
            running.wait()


def address(running: "subprocess.Popen[bytes]", log: Path) -> str:
    """Wait until the server says where it is."""
    while not (found := re.search(r"http://\S+", log.read_text())):
        if running.poll() is not None:
            raise SystemExit(f"the server did not start: {log.read_text()}")
        time.sleep(0.1)
    return found[0]


async def pieces(answer: httpx2.Response) -> AsyncIterator[str]:
    """The texts of a stream.

    Raises:
        ValueError: it ended with an error, or without an end.
    """
    async for line in answer.aiter_lines():
        if not line.startswith("data: "):
            continue
        data = line.removeprefix("data: ")
        if data == "[DONE]":
            return
        chunk = json.loads(data)
        if "error" in chunk:
            raise ValueError(chunk["error"]["message"])
        if text := chunk["choices"][0]["text"] if chunk["choices"] else "":
            yield text
    raise ValueError("a stream ended without [DONE]")


async def whole(http: httpx2.AsyncClient, kind: Kind) -> str:
    """The answer to a request that is not streamed."""
    answer = await http.post("/v1/completions", json=kind.body(stream=False))
    answer.raise_for_status()
    text: str = answer.json()["choices"][0]["text"]
    return text


class Client:
    """Sends requests, one after another, until the time is over."""

    def __init__(
        self, http: httpx2.AsyncClient, count: Count, alone: dict[Kind, str], seed: int
    ) -> None:
        self._http = http
        self._count = count
        self._alone = alone
        self._random = random.Random(seed)

    async def run(self, ends: float, requests: int | None) -> None:
        """Send, look at the answers and count.

        Args:
            requests: stop after so many; None: stop at the time `ends`.
        """
        for _ in itertools.count() if requests is None else range(requests):
            if time.monotonic() > ends:
                return
            draw = self._random.random()
            kind = self._random.choice(list(self._alone))
            try:
                if draw < 0.05:
                    await self._send_garbage()
                elif draw < 0.25:
                    await self._leave_midway(kind)
                elif draw < 0.7:
                    await self._stream(kind)
                else:
                    await self._ask(kind)
            except (httpx2.HTTPError, ValueError) as error:
                self._count.broken.append(f"{type(error).__name__}: {error}")

    async def _send_garbage(self) -> None:
        headers = {"Content-Type": "application/json"}
        body = self._random.choice(GARBAGE)
        answer = await self._http.post("/v1/completions", content=body, headers=headers)
        self._count.status(answer.status_code)
        self._count.garbage += 1
        if answer.status_code == 200:
            self._count.broken.append(f"garbage was taken: {body!r}")

    async def _leave_midway(self, kind: Kind) -> None:
        """Streamed: close it in the middle. Not streamed: give up waiting."""
        if self._random.random() < 0.5:
            with contextlib.suppress(httpx2.ReadTimeout):
                waiting = self._random.uniform(0.05, 2)
                body = kind.body(stream=False)
                timeout = httpx2.Timeout(300, read=waiting)
                await self._http.post("/v1/completions", json=body, timeout=timeout)
        else:
            read = self._random.randrange(1, kind.tokens)
            async with self._opened(kind) as answer:
                async for _ in pieces(answer):
                    read -= 1
                    if not read:
                        break
        self._count.dropped += 1

    async def _stream(self, kind: Kind) -> None:
        started = time.monotonic()
        text = ""
        async with self._opened(kind) as answer:
            async for piece in pieces(answer):
                if not text:
                    self._count.first_stride.append(time.monotonic() - started)
                text += piece
        self._compare(kind, text)

    async def _ask(self, kind: Kind) -> None:
        answer = await self._http.post("/v1/completions", json=kind.body(stream=False))
        self._count.status(answer.status_code)
        if answer.status_code == 200:
            self._compare(kind, answer.json()["choices"][0]["text"])

    @contextlib.asynccontextmanager
    async def _opened(self, kind: Kind) -> AsyncIterator[httpx2.Response]:
        body = kind.body(stream=True)
        async with self._http.stream("POST", "/v1/completions", json=body) as answer:
            self._count.status(answer.status_code)
            answer.raise_for_status()
            yield answer

    def _compare(self, kind: Kind, text: str) -> None:
        self._count.completed += 1
        self._count.different += text != self._alone[kind]


def resident(pid: int) -> float:
    """Resident memory of a process, MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


async def watch(pid: int, memory: list[float]) -> None:
    """Read the server's memory, now and once a second."""
    while True:
        memory.append(resident(pid))
        await asyncio.sleep(1)


async def soak(
    url: str, pid: int, clients: int, seconds: float, requests: int | None = None
) -> dict[str, Any]:
    """Send requests, and report what the clients saw.

    Args:
        pid: of the server's process, whose memory is watched.
        seconds: the time after which no client sends another request.
        requests: how many each client sends; None: as many as there is time for.
    """
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=url, timeout=300, limits=limits) as http:
        model = (await http.get("/v1/models")).json()["data"][0]["id"]
        alone = {kind: await whole(http, kind) for kind in kinds(model)}
        print(f"{len(alone)} kinds of requests answered alone", file=sys.stderr)
        count, memory = Count(), list[float]()
        watching = asyncio.create_task(watch(pid, memory))
        ends = time.monotonic() + seconds
        own = [Client(http, count, alone, seed) for seed in range(clients)]
        await asyncio.gather(*(client.run(ends, requests) for client in own))
        watching.cancel()
        metrics = (await http.get("/metrics")).text
    return report(count, memory, metrics) | {"clients": clients, "seconds": seconds}


def report(count: Count, memory: list[float], metrics: str) -> dict[str, Any]:
    """Everything that was seen, as a record."""
    warm = memory[int(len(memory) * WARM_UP) :]
    part = max(len(warm) // 6, 1)
    before, after = statistics.median(warm[:part]), statistics.median(warm[-part:])
    median = statistics.median(count.first_stride or [0.0])
    slowest = max(count.first_stride, default=0.0)
    return {
        "completed": count.completed,
        "different": count.different,
        "dropped": count.dropped,
        "garbage": count.garbage,
        "statuses": {str(code): number for code, number in sorted(count.statuses.items())},
        "broken": count.broken[:10],
        "first_stride_seconds": {"median": median, "slowest": slowest},
        "slowest/median": slowest / median if median else 0.0,
        "resident_megabytes": {"warm": before, "end": after, "peak": max(memory)},
        "memory_growth": after / before,
        "metrics": dict(re.findall(r"^(flashback_\w+_total\S*) (\S+)$", metrics, re.MULTILINE)),
    }


def failures(found: dict[str, Any]) -> list[str]:
    """The claims of docs/server.md that do not hold."""
    claims = {
        "answers differ from the same requests alone": found["different"],
        "requests failed": len(found["broken"]),
        "answers of status 5xx": sum(code >= "500" for code in found["statuses"]),
        "someone starved": found["slowest/median"] > FAIREST,
        "memory grew": found["memory_growth"] > GROWTH,
        "nothing was completed": not found["completed"],
        "nothing was streamed": not found["first_stride_seconds"]["median"],
    }
    return [claim for claim, broken in claims.items() if broken]


def positive(text: str) -> int:
    """A whole number above 0.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number above 0")
    return int(text)


def main() -> int:
    """Run the soak test; return 1 if a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--index", help="index folder (default: one of this Python's documentation)"
    )
    parser.add_argument("--clients", type=positive, default=32)
    parser.add_argument("--seconds", type=positive, default=300)
    parser.add_argument("--memory", default="256", help="MiB of caches the server keeps")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        index = asked.index or str(folder / "IDX")
        if not asked.index:
            command = [
                sys.executable,
                "-m",
                "flashback",
                "index",
                "python-docs:base",
                "--out",
                index,
            ]
            subprocess.run(command, check=True)
        options = ["--index", index, "--dtype", "float32", "--memory", asked.memory]
        with server(options) as (url, pid):
            found = asyncio.run(soak(url, pid, asked.clients, asked.seconds))
    finally:
        shutil.rmtree(folder)
    wrong = failures(found)
    if asked.json:
        print(json.dumps(found | {"failures": wrong}, indent=2))
    else:
        for name, value in found.items():
            print(f"{name}: {value}")
        print(f"FAILED: {', '.join(wrong)}" if wrong else "all as it should be")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
