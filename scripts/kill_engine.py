"""Kill the server behind `flashback serve` at random moments while clients write, and compare.

    python scripts/kill_engine.py FOLDER --kills 30 --clients 16 --python VENV/bin/python

FOLDER has the model, which vLLM serves. Each client writes the same text again and again. A text
must be the one that was written before anything was killed, or the beginning of it with the event
`engine_error`, or be refused with 503. After each restart every client must get a whole text again
from the same `flashback serve`. Prints a line of JSON.

vLLM takes a minute to start. `--stand-in` kills a server in its place that starts at once and
writes tokens by their place in the text; FOLDER then needs nothing but a tokenizer.
"""

import argparse
import json
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2

sys.path.insert(0, str(Path(__file__).parent.parent / "peers_tests"))
from vllm_server import command, free_port, kill, running, started, until_up

PROMPTS = ("Snow is", "The tides follow", "A socket is", "The capital of France is", "In 1874")


@dataclass
class Clients:
    """What clients got, so far."""

    url: str
    model: str
    tokens: int
    outcomes: Counter[str] = field(default_factory=Counter)
    whole: dict[int, int] = field(default_factory=dict)
    """Whole texts by client."""
    wrong: list[str] = field(default_factory=list)
    expected: dict[int, str] = field(default_factory=dict)
    ended: threading.Event = field(default_factory=threading.Event)

    def ask(self, client: int) -> tuple[str, str]:
        """A text and how it ended: `whole`, `cut`, `refused`, or what else was said."""
        prompt = f"{PROMPTS[client % len(PROMPTS)]} {client}"
        own = {"pattern": "none", "ignore_eos": True}
        body = {"model": self.model, "prompt": prompt, "max_tokens": self.tokens, "stream": True}
        body |= {"temperature": 0, "flashback": own}
        text, how = "", "no end"
        with httpx2.stream("POST", f"{self.url}/v1/completions", json=body, timeout=900) as answer:
            if answer.status_code != 200:
                code = json.loads(answer.read())["error"]["code"]
                return "", "refused" if (answer.status_code, code) == _REFUSED else f"{code}"
            for event in httpx2.EventSource(answer):
                if event.data == "[DONE]":
                    return text, "whole" if how == "no end" else how
                record: Any = json.loads(event.data)
                if "error" in record:
                    code = record["error"]["code"]
                    return text, "refused" if code == "engine_error" else f"{code}"
                text += "".join(choice["text"] for choice in record["choices"])
                if (record.get("flashback") or {}).get("event") == "engine_error":
                    how = "cut"
        return text, how

    def run(self, client: int) -> None:
        """Write again and again."""
        while not self.ended.is_set():
            try:
                text, how = self.ask(client)
            except httpx2.HTTPError as error:
                text, how = "", f"{type(error).__name__}"
            self.outcomes[how] += 1
            expected = self.expected[client]
            good = text == expected if how == "whole" else expected.startswith(text.rstrip("�"))
            if not good or how not in ("whole", "cut", "refused"):
                self.wrong.append(f"{how}: {text!r}, expected {expected!r}")
            if how == "whole":
                self.whole[client] = self.whole.get(client, 0) + 1
            if how == "refused":
                time.sleep(0.5)


_REFUSED = (503, "engine_error")


class StandIn(BaseHTTPRequestHandler):
    """As much of vLLM's API as a text needs; a token each 20 ms."""

    protocol_version = "HTTP/1.0"  # the end of the connection is the end of the answer

    def do_GET(self) -> None:
        """The model."""
        self._send({"data": [{"id": "served", "max_model_len": 4096}]})

    def do_POST(self) -> None:
        """A completion, streamed or not."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["prompt"]
        ids = [32 + (len(prompt) + at) % 31 for at in range(body["max_tokens"])]
        details = {"prompt_tokens_details": {"cached_tokens": len(prompt) - 1}}
        given = {"prompt_token_ids": prompt, "token_ids": ids, "text": ""}
        if not body.get("stream"):
            return self._send({"choices": [given], "usage": details})
        self._head("text/event-stream")
        for at, token in enumerate(ids):
            time.sleep(0.02)
            ended = "length" if at == len(ids) - 1 else None
            self._event({"choices": [{"token_ids": [token], "finish_reason": ended}]})
        self._event({"choices": [], "usage": details})
        self.wfile.write(b"data: [DONE]\n\n")
        return None

    def _head(self, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()

    def _send(self, record: Any) -> None:
        self._head("application/json")
        self.wfile.write(json.dumps(record).encode())

    def _event(self, record: Any) -> None:
        self.wfile.write(f"data: {json.dumps(record)}\n\n".encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


def stand_in(port: int) -> None:
    """Serve until killed."""
    ThreadingHTTPServer.request_queue_size = 128
    ThreadingHTTPServer(("127.0.0.1", port), StandIn).serve_forever()


def serve(model: str, base_url: str, tokenizer: str, port: int) -> list[str]:
    """The command of the server in front."""
    flashback = [sys.executable, "-m", "flashback", "serve", "--port", str(port)]
    place = ["--engine", "openai", "--base-url", base_url, "--tokenizer", tokenizer]
    place += ["--token-limit", "900"]  # a busy machine is no failure
    return [*flashback, *place, "--model", model, "--pattern", "none"]


def kills(given: argparse.Namespace, clients: Clients, start: list[str], base: str) -> list[float]:
    """Kill and restart; the seconds from a restarted server to a whole text of every client."""
    rng, recoveries = random.Random(given.seed), []
    log = Path(given.log)
    process = started(start, log)
    until_up(base, process)
    try:
        for number in range(given.kills):
            time.sleep(rng.uniform(0, given.seconds))
            kill(process)
            time.sleep(rng.uniform(0, given.seconds / 4))
            process = started(start, log)
            until_up(base, process)
            began, before = time.monotonic(), dict(clients.whole)
            while any(clients.whole.get(one, 0) <= before.get(one, 0) for one in clients.expected):
                time.sleep(0.1)
            recoveries.append(time.monotonic() - began)
            told = f"kill {number + 1}: {dict(clients.outcomes)}, wrong {len(clients.wrong)}"
            print(told, file=sys.stderr, flush=True)
    finally:
        clients.ended.set()
        kill(process)
    return recoveries


def main() -> None:
    """Run, and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="served", help="its name")
    parser.add_argument("--python", default=sys.executable, help="of the environment with vLLM")
    parser.add_argument("--stand-in", action="store_true", help="no vLLM")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--seconds", type=float, default=6.0, help="between kills, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", default=Path(tempfile.gettempdir(), "kill_engine.log"))
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # servers end with it
    behind, front = free_port(), free_port()
    start = command(given.python, given.folder, given.model, behind)
    if given.stand_in:
        start = [sys.executable, __file__, "--serve", str(behind)]
    base = f"http://127.0.0.1:{behind}/v1"
    with running(start, base, Path(given.log)) as first:
        address = f"http://127.0.0.1:{front}"
        ours = serve(given.model, base, str(given.folder), front)
        with running(ours, f"{address}/v1", Path(given.log)):
            clients = Clients(address, given.model, given.tokens)
            for one in range(given.clients):
                clients.expected[one], how = clients.ask(one)
                assert how == "whole", how
            threads = [
                threading.Thread(target=clients.run, args=(one,), daemon=True)
                for one in clients.expected
            ]
            for thread in threads:
                thread.start()
            kill(first)
            recoveries = kills(given, clients, start, base)
            for thread in threads:
                thread.join()
    figures = {
        "kills": given.kills,
        "clients": given.clients,
        "outcomes": dict(clients.outcomes),
        "wrong": clients.wrong[:5],
        "recovery_seconds": [round(min(recoveries), 1), round(max(recoveries), 1)],
    }
    print(json.dumps(figures))
    sys.exit(bool(clients.wrong))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        stand_in(int(sys.argv[2]))
    main()
