"""A server that answers as vLLM 0.32.0 does, around a tiny reader, on a real socket.

`tests/engines/recorded_vllm.jsonl` has what the real one answered; a test compares the shapes.
"""

import contextlib
import json
import select
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from flashback.engines.local import LocalEngine
from flashback.errors import SettingsError
from flashback.patterns.prompt import Ids, Layout, Prompt, View
from flashback.readers.reader import Reader
from flashback.sampling import Sampler
from flashback.settings import SamplingSettings

Record = dict[str, Any]
MODEL = "tiny"
_HEAD = {"id": "cmpl-0", "object": "text_completion", "created": 0, "model": MODEL}
_PRINT = "vllm-0.32.0-fake"


class HangUp(Exception):
    """Raised by a hook: the connection ends there."""


class LoadFailure(Exception):
    """The connector does not have what a request needs."""


class FakeVllm:
    """What it does, and what it was asked."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.url = ""
        self.requests: list[Record] = []
        """Bodies of completions, in order."""
        self.keys: list[str | None] = []
        """What each request had as its Authorization."""
        self.block = 4
        """Tokens of a cached block; 0: nothing is cached."""
        self.tells_cached = True
        self.gives_ids = True
        self.mangle: Callable[[list[int]], list[int]] = lambda ids: ids
        """What it makes of a prompt's ids."""
        self.replies: list[tuple[int, bytes, dict[str, str]]] = []
        """Given to the next completions instead of an answer."""
        self.forced: bytes = b""
        """Written over and over, in place of what the model says."""
        self.at_token: Callable[[int, socket.socket], object] = lambda *_: None
        """Called before each streamed token, with its number and the connection."""
        self.broken = threading.Event()
        """Set once a stream ended before its answer was whole."""
        self._engine = LocalEngine(reader.model, reader.window)
        self._lock = threading.Lock()
        self._blocks: dict[tuple[object, ...], list[Ids]] = {}
        """Of every cached prefix: the passage in view of each token of its last block."""
        self.passages = 0
        """Blocks that FlashBack's connector keeps of passages; 0: there is no connector."""
        self.kept: dict[tuple[str, Ids], int] = {}
        """Passages behind their sink, by salt, and their blocks."""

    def tokens(self, body: Record, prompt: Sequence[int]) -> tuple[list[int], bool]:
        """What the model writes, and whether it ended with a stop token."""
        if self.forced:
            ids = self.reader.encode(self.forced.decode())
            most = body["max_tokens"]
            return [ids[(len(prompt) + at) % len(ids)] for at in range(most)], False
        return self._chosen(body, prompt, Prompt.plain(prompt))

    def _chosen(
        self, body: Record, history: Sequence[int], prompt: Prompt
    ) -> tuple[list[int], bool]:
        settings = SamplingSettings(
            temperature=body.get("temperature", 1.0),
            seed=body.get("seed") or 0,
            repetition_penalty=body.get("repetition_penalty", 1.0),
        )
        sampler = Sampler(settings, history, map(int, body.get("logit_bias", {})))
        written: list[int] = []
        with self._engine.complete(prompt, body["max_tokens"], sampler) as found:
            for token in found:
                written.append(token)
                if token in body.get("stop_token_ids", ()):
                    return written, True
        return written, False

    def complete(self, body: Record) -> tuple[list[int], list[int], bool, int]:
        """The prompt as taken, what is written, whether it was stopped, the tokens cached.

        Raises:
            LoadFailure: the connector does not have what is needed.
        """
        prompt = self.mangle(body["prompt"])
        with self._lock:
            asked = (body.get("kv_transfer_params") or {}).get("flashback", {})
            if not self.passages or not asked:
                return self._plain(body, prompt)
            if "show" in asked:
                return self._shown(body, prompt, asked)
            found = self._plain(body, prompt)
            self._keep_passage(tuple(prompt[: asked["keep"]]), asked["salt"])
            return found

    def _plain(self, body: Record, prompt: list[int]) -> tuple[list[int], list[int], bool, int]:
        salt = body.get("cache_salt")
        cached = len(self._cached(prompt, salt))
        written, stopped = self.tokens(body, prompt)
        ids = [*prompt, *written[:-1]]
        self._keep(ids, salt, [()] * len(ids))
        return prompt, written, stopped, cached

    def _shown(
        self, body: Record, prompt: list[int], asked: Record
    ) -> tuple[list[int], list[int], bool, int]:
        """As vLLM with the connector: whatever its blocks hold is what the model sees."""
        salt, front = body["cache_salt"], tuple(asked["show"])
        for at in range(self.block, len(prompt) + 1, self.block):
            if at > asked["valid"]:
                self._blocks.pop((salt, *prompt[:at]), None)
        seen = self._cached(prompt, salt)
        if len(seen) < asked["needed"] or (asked["salt"], front) not in self.kept:
            raise LoadFailure
        bos = self.reader.bos if front[: len(self.reader.bos)] == self.reader.bos else ()
        layout = Layout(len(bos), len(front) - len(bos), bos)
        passage = front[len(bos) :]
        seen = [*seen, *[passage] * (len(prompt) - len(seen))]
        text = (*bos, *prompt[len(front) :])
        views = [View(len(bos) + at, view) for at, view in enumerate(seen[len(front) :])]
        cached = max(len(self._cached(prompt, salt)), len(front))
        written, stopped = self._chosen(body, text, Prompt.with_views(text, views, layout))
        self._keep([*prompt, *written[:-1]], salt, [*seen, *[passage] * len(written)])
        return prompt, written, stopped, cached

    def _keep_passage(self, ids: Ids, salt: str) -> None:
        self.kept.pop((salt, ids), None)
        self.kept[salt, ids] = len(ids) // self.block
        while sum(self.kept.values()) > self.passages:
            del self.kept[next(iter(self.kept))]

    def forget(self, *, texts: bool = True, passages: bool = True) -> None:
        """Lose what is cached, as a server does that needs the room or comes back."""
        with self._lock:
            if texts:
                self._blocks.clear()
            if passages:
                self.kept.clear()

    def lose_behind(self, tokens: int) -> None:
        """Lose the cached blocks that are further from the front."""
        with self._lock:
            self._blocks = {at: seen for at, seen in self._blocks.items() if len(at) <= tokens}

    def _cached(self, ids: Sequence[int], salt: str | None) -> list[Ids]:
        """What each cached token saw."""
        found: list[Ids] = []
        for at in range(self.block, len(ids), self.block) if self.block else ():
            if (salt, *ids[:at]) not in self._blocks:
                break
            found += self._blocks[salt, *ids[:at]]
        return found

    def _keep(self, ids: Sequence[int], salt: str | None, seen: Sequence[Ids]) -> None:
        step = self.block or len(ids) + 1
        for at in range(step, len(ids) + 1, step):
            self._blocks.setdefault((salt, *ids[:at]), list(seen[at - step : at]))

    def refusal(self, body: Record) -> tuple[int, Record] | None:
        """What vLLM says to a request that it does not take."""
        prompt, window = body["prompt"], self.reader.window
        if body["model"] != MODEL:
            return 404, _error(f"The model `{body['model']}` does not exist.", 404)
        if max(prompt) >= self.reader.vocabulary_size:
            return 400, _error(f"Token id {max(prompt)} is out of vocabulary", 400)
        if len(prompt) + body["max_tokens"] > window:
            return 400, _error(f"max_tokens cannot be greater than max_model_len={window}", 400)
        return None

    def usage(self, prompt: int, written: int, cached: int, *, whole: bool) -> Record:
        """As it stands in an answer."""
        found: Record = {
            "prompt_tokens": prompt,
            "total_tokens": prompt + written,
            "completion_tokens": written,
        }
        if self.tells_cached:
            more = {"created_cache_tokens": None, "multimodal_tokens": None} if whole else {}
            found["prompt_tokens_details"] = {"cached_tokens": cached} | more
        return found | ({"completion_tokens_details": None} if whole else {})


def _error(message: str, status: int) -> Record:
    kind = "NotFoundError" if status == 404 else "BadRequestError"
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeVllm

    def do_GET(self) -> None:
        self._note()
        if self.path != "/v1/models":
            content = json.dumps(_error("there is no model list here", 404)).encode()
            return self._answer(404, content)
        entry = {
            "id": MODEL,
            "object": "model",
            "created": 0,
            "owned_by": "vllm",
            "root": MODEL,
            "parent": None,
            "max_model_len": self.fake.reader.window,
            "permission": [],
        }
        return self._answer(200, json.dumps({"object": "list", "data": [entry]}).encode())

    def do_POST(self) -> None:
        fake = self.fake
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._note()
        fake.requests.append(body)
        if fake.replies:
            status, content, headers = fake.replies.pop(0)
            return self._answer(status, content, headers)
        if (refused := fake.refusal(body)) is not None:
            return self._answer(refused[0], json.dumps(refused[1]).encode())
        try:
            found = fake.complete(body)
        except SettingsError as error:
            return self._answer(400, json.dumps(_error(str(error), 400)).encode())
        except LoadFailure:
            return self._answer(500, json.dumps(_error("Internal server error", 500)).encode())
        if not body.get("stream"):
            return self._answer(200, json.dumps(self._whole(body, *found)).encode())
        with contextlib.suppress(HangUp, OSError):
            self._stream(body, *found)
            return None
        fake.broken.set()
        self.close_connection = True
        return None

    def _note(self) -> None:
        self.fake.keys.append(self.headers["Authorization"])

    def _whole(
        self, body: Record, prompt: list[int], written: list[int], stopped: bool, cached: int
    ) -> Record:
        wants = body.get("return_token_ids") and self.fake.gives_ids
        before = self.fake.reader.show(prompt) if body.get("echo") else ""
        choice = {
            "index": 0,
            "text": before + self.fake.reader.show(written),
            "logprobs": None,
            **self._ended(stopped, written),
            "token_ids": written if wants else None,
            "prompt_logprobs": None,
            "prompt_token_ids": prompt if wants else None,
            "routed_experts": None,
        }
        usage = self.fake.usage(len(prompt), len(written), cached, whole=True)
        told = None
        if self.fake.passages and "flashback" in (body.get("kv_transfer_params") or {}):
            told = {"flashback": {"block": self.fake.block, "passages": self.fake.passages}}
        rest = {"kv_transfer_params": told, "ec_transfer_params": None, "metrics": None}
        own = {"choices": [choice], "service_tier": None, "system_fingerprint": _PRINT}
        return {**_HEAD, **own, "usage": usage, **rest}

    def _ended(self, stopped: bool, written: Sequence[int]) -> Record:
        reason = written[-1] if stopped else None
        return {"finish_reason": "stop" if stopped else "length", "stop_reason": reason}

    def _stream(
        self, body: Record, prompt: list[int], written: list[int], stopped: bool, cached: int
    ) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        wants = body.get("return_token_ids") and self.fake.gives_ids
        for number, token in enumerate(written):
            self.fake.at_token(number, self.connection)
            last = number == len(written) - 1
            ended = self._ended(stopped, written) if last else None
            text = {"index": 0, "text": self.fake.reader.show([token]), "logprobs": None}
            choice = {
                **(text | (ended or {"finish_reason": None, "stop_reason": None})),
                "prompt_token_ids": prompt if wants and not number else None,
                "token_ids": [token] if wants else None,
            }
            self._send(json.dumps(_HEAD | {"choices": [choice]}))
        usage = self.fake.usage(len(prompt), len(written), cached, whole=False)
        own = {"choices": [], "usage": usage, "system_fingerprint": _PRINT}
        self._send(json.dumps(_HEAD | own))
        self._send("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def _send(self, data: str) -> None:
        event = f"data: {data}\n\n".encode()
        self.wfile.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")

    def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def until_left(connection: socket.socket) -> None:
    """Wait until the client closes the connection."""
    while True:
        select.select([connection], [], [])
        if not connection.recv(1, socket.MSG_PEEK):
            raise HangUp


@contextlib.contextmanager
def fake_vllm(reader: Reader, port: int = 0) -> Iterator[FakeVllm]:
    """Answer until the block ends."""
    fake = FakeVllm(reader)
    handler = type("Handler", (_Handler,), {"fake": fake})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def saved_tokenizer(reader: Reader, folder: Path) -> str:
    """A folder with nothing but a reader's tokenizer."""
    reader.tokenizer.save_pretrained(folder)
    return str(folder)
