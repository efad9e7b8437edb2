"""Replicas die at random moments while clients write: no text may be lost, repeated or different.

    python scripts/kill_replicas.py                    # 3 replicas, 16 clients, 30 kills
    python scripts/kill_replicas.py --kills 5 --least 2 --json

Starts `flashback serve` three times with flashback-mini, and a front before them. Every request is
sent alone first, which gives the texts to compare with. Then clients send requests at random,
streamed or not, while replicas are killed (SIGKILL), one whenever LEAST are up, and started again.
Allowed are: the text; of a stream the beginning of the text, and then the error `replica_lost`;
instead of an answer the errors `no_replica` and `queue_full`. Exits with 1 if anything else is
seen.
"""

import argparse
import asyncio
import contextlib
import json
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from soak import LENGTHS, TOPICS, positive

_LIMIT = 1800
"""Seconds for whatever is waited for."""


@dataclass(frozen=True)
class Asked:
    """A request, and its answer."""

    prompt: str
    tokens: int

    def body(self, *, stream: bool) -> dict[str, Any]:
        return {
            "model": "flashback-mini",
            "prompt": self.prompt,
            "max_tokens": self.tokens,
            "temperature": 0,
            "stream": stream,
            "flashback": {"ignore_eos": True},
        }


@dataclass
class Seen:
    """What the clients saw."""

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    """What may not be."""
    seconds: list[float] = field(default_factory=list)
    """Of whole answers."""


def free_port() -> int:
    """One below those that systems give to connections, which could take it in between."""
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


class Process:
    """A server in a process of its own, at a port that stays the same."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [sys.executable, "-m", "flashback", "serve", *arguments]
        self._command += ["--port", str(self.port)]
        self._log = folder / f"{self.port}.log"
        self.start()

    def start(self) -> None:
        with self._log.open("a") as log:
            self.running = subprocess.Popen(self._command, stdout=log, stderr=log)

    def kill(self) -> None:
        self.running.kill()
        self.running.wait()


@contextlib.contextmanager
def site(replicas: int) -> Iterator[tuple[list[Process], Process]]:
    """Replicas and a front before them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        own = ["--dtype", "float32", "--memory", "64", "--pattern", "none"]
        servers = [Process(folder, *own) for _ in range(replicas)]
        urls = [word for one in servers for word in ("--replica", one.url)]
        front = Process(folder, *urls, "--check-every", "0.2")
        try:
            yield servers, front
        finally:
            for one in [*servers, front]:
                one.kill()


async def up(http: httpx2.AsyncClient) -> set[str]:
    """The replicas that take requests."""
    with contextlib.suppress(httpx2.HTTPError):
        state = (await http.get("/health")).json()
        return {one["url"] for one in state["replicas"] if one["up"]}
    return set()


async def until_up(http: httpx2.AsyncClient, least: int) -> set[str]:
    """Wait for as many replicas.

    Raises:
        SystemExit: they do not come.
    """
    ends = time.monotonic() + _LIMIT
    while len(found := await up(http)) < least:
        if time.monotonic() > ends:
            state = (await http.get("/health")).text
            raise SystemExit(f"{len(found)} replicas are up, expected {least}: {state}")
        await asyncio.sleep(0.1)
    return found


async def whole(http: httpx2.AsyncClient, asked: Asked) -> tuple[str, str]:
    """The text of an answer, and `done` or the code of an error."""
    answer = await http.post("/v1/completions", json=asked.body(stream=False))
    if answer.status_code == 200:
        return answer.json()["choices"][0]["text"], "done"
    return "", answer.json()["error"]["code"] or str(answer.status_code)


async def streamed(http: httpx2.AsyncClient, asked: Asked) -> tuple[str, str]:
    """The text of a stream, and `done` or the code of the error that it ended with."""
    text = ""
    body = asked.body(stream=True)
    async with http.stream("POST", "/v1/completions", json=body) as answer:
        if answer.status_code != 200:
            return "", json.loads(await answer.aread())["error"]["code"]
        async for line in answer.aiter_lines():
            data = line.removeprefix("data: ")
            if data == "[DONE]":
                return text, "done"
            if data == line:
                continue
            chunk = json.loads(data)
            if "error" in chunk:
                return text, chunk["error"]["code"]
            text += "".join(choice["text"] for choice in chunk["choices"])
    return text, "a stream without an end"


async def client(
    http: httpx2.AsyncClient, alone: dict[Asked, str], seen: Seen, seed: int, over: asyncio.Event
) -> None:
    """Send requests until it is over."""
    draw = random.Random(seed)
    while not over.is_set():
        asked, stream = draw.choice(list(alone)), draw.random() < 0.6
        began = time.monotonic()
        try:
            text, end = await (streamed if stream else whole)(http, asked)
        except httpx2.HTTPError as error:
            text, end = "", f"{type(error).__name__}: {error}"
        judge(alone[asked], text, end, seen)
        if end == "done":
            seen.seconds.append(time.monotonic() - began)
        else:
            await asyncio.sleep(0.2)


def judge(expected: str, text: str, end: str, seen: Seen) -> None:
    """Count an outcome, and note what may not be."""
    seen.outcomes[end] += 1
    if end == "done":
        fine = text == expected
    elif end == "replica_lost":
        fine = bool(text) and expected.startswith(text)
    else:
        fine = not text and end in ("no_replica", "queue_full")
    if not fine:
        seen.wrong.append(f"{end}: {text!r} of {expected!r}")


async def kill(
    http: httpx2.AsyncClient,
    servers: Sequence[Process],
    kills: int,
    least: int,
    draw: random.Random,
) -> None:
    """Kill replicas one after another, each at a random moment, and start them again.

    Args:
        least: how many are up before one is killed.
    """
    for number in range(kills):
        alive = await until_up(http, least)
        await asyncio.sleep(draw.uniform(0.2, 4))
        one = draw.choice([one for one in servers if one.url in alive])
        one.kill()
        one.start()
        print(f"kill {number + 1} of {kills}", file=sys.stderr)
    await until_up(http, len(servers))


async def run(kills: int, clients: int, replicas: int, least: int, seed: int) -> dict[str, Any]:
    """Kill, and report what the clients saw."""
    limits = httpx2.Limits(max_connections=None)
    with site(replicas) as (servers, front):
        options: dict[str, Any] = {"timeout": _LIMIT, "limits": limits, "verify": False}
        async with httpx2.AsyncClient(base_url=front.url, **options) as http:
            await until_up(http, replicas)
            kinds = [Asked(topic, tokens) for topic in TOPICS for tokens in LENGTHS]
            alone = {asked: (await whole(http, asked))[0] for asked in kinds}
            seen, over = Seen(), asyncio.Event()
            own = [client(http, alone, seen, number, over) for number in range(clients)]
            writing = asyncio.gather(*own)
            await kill(http, servers, kills, min(least, replicas), random.Random(seed))
            over.set()
            await writing
            after = [await whole(http, asked) == (alone[asked], "done") for asked in kinds]
            metrics = (await http.get("/metrics")).text
    seconds = sorted(seen.seconds)
    return {
        "kills": kills,
        "outcomes": dict(seen.outcomes),
        "wrong": seen.wrong[:10],
        "recovered": all(after),
        "median_seconds": seconds[len(seconds) // 2] if seconds else 0.0,
        "slowest_seconds": seconds[-1] if seconds else 0.0,
        "failures": [line for line in metrics.splitlines() if "front_failures_total{" in line],
    }


def main() -> int:
    """Run it; return 1 if something was seen that may not be."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    numbers = (("kills", 30), ("clients", 16), ("replicas", 3), ("least", 3), ("seed", 1))
    for name, default in numbers:
        parser.add_argument(f"--{name}", type=positive, default=default)
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    asked = parser.parse_args()
    found = asyncio.run(run(asked.kills, asked.clients, asked.replicas, asked.least, asked.seed))
    if asked.json:
        print(json.dumps(found, indent=2))
    else:
        for name, value in found.items():
            print(f"{name}: {value}")
    return bool(found["wrong"]) or not found["recovered"] or not found["outcomes"].get("done")


if __name__ == "__main__":
    sys.exit(main())
