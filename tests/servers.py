"""A server in this process for tests: a tiny reader, a made-up retriever, a real socket."""

import contextlib
import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2
import openai
import torch

from flashback.engines.local import LocalEngine
from flashback.engines.protocol import Capabilities, Completion, Engine, Usage
from flashback.patterns.pattern import Boundary
from flashback.patterns.prompt import Ids, Prompt
from flashback.patterns.registry import PATTERNS
from flashback.readers.reader import Reader
from flashback.readers.text_reader import TextReader
from flashback.retrieval.protocol import Hit, Retriever
from flashback.sampling import Sampler
from flashback.server.scheduler import Load
from flashback.server.server_settings import MIB, ServerSettings
from flashback.server.service import Service, make_service
from flashback.server.serving import Listener
from flashback.server.sockets import bind
from flashback.settings import RetrievalSettings, SearchOptions
from flashback.writing.generator import Generator
from recompute import recomputed_logits
from tiny_readers import tiny_reader

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
DEFAULTS = RetrievalSettings("append", stride=4, query_tokens=8, passage_tokens=24)
"""Small enough for a tiny reader's window."""
MINUTES = 240.0
"""Seconds: what takes moments never takes so long, on whatever machine."""


class QueryRetriever:
    """Passages that depend on the query alone, so that the order of searches does not matter."""

    def __init__(self) -> None:
        self.queries: list[str] = []
        self.before: list[Callable[[], object]] = []
        """Called before each search: to fail, or to take time."""

    def search(self, queries: Sequence[str], options: SearchOptions) -> list[list[Hit]]:
        self.queries += queries
        for call in self.before:
            call()
        return [self._answer(query, options) for query in queries]

    def _answer(self, query: str, options: SearchOptions) -> list[Hit]:
        draw = random.Random(query)
        number = draw.randrange(20)
        text = "".join(draw.choice("abcdefgh ") for _ in range(draw.randint(1, 40)))
        hits = [Hit(f"d{number}#{k}", f"d{number}", f"t{number}", text, 2.0 - k) for k in range(3)]
        return [hit for hit in hits if hit.title not in options.forbid_titles][: options.k]


class Clock:
    """A clock that stands still unless it is advanced."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


Hook = Callable[[int], None]
"""Called at every token, with the most tokens of its completion."""


class HookedEngine(LocalEngine):
    """A local engine that calls hooks at every token."""

    def __init__(self, reader: Reader, memory: int, *hooks: Hook) -> None:
        """Take a reader.

        Args:
            memory: bytes of caches.
        """
        self.hooks: list[Hook] = []
        super().__init__(reader.model, reader.window, idle_sequences=None, cache_bytes=memory)
        self.hooks += hooks

    def complete(self, prompt: Prompt, max_tokens: int, sampler: Sampler) -> Completion:
        completion = super().complete(prompt, max_tokens, sampler)
        return Completion(self._hooked(completion, max_tokens), completion.usage)

    def _hooked(self, completion: Completion, max_tokens: int) -> Iterator[int]:
        with completion:
            for token in completion:
                for hook in self.hooks:
                    hook(max_tokens)
                yield token


class ForcedEngine:
    """An engine without a model and without caches: it writes one byte, or EOS, at every token."""

    def __init__(self, reader: Reader, byte: str, *hooks: Hook) -> None:
        self.capabilities = Capabilities(window=reader.window, slot=False)
        self.hooks = list(hooks)
        self._logits = torch.full((reader.vocabulary_size,), -10.0)
        self._logits[1 if byte == "EOS" else reader.encode(byte)[0]] = 10.0

    def complete(self, prompt: Prompt, max_tokens: int, sampler: Sampler) -> Completion:
        return Completion(self._tokens(max_tokens, sampler), Usage())

    def _tokens(self, max_tokens: int, sampler: Sampler) -> Iterator[int]:
        for _ in range(max_tokens):
            for hook in self.hooks:
                hook(max_tokens)
            yield sampler.choose(self._logits)


@dataclass(frozen=True)
class Served:
    """A server that listens."""

    service: Service
    url: str
    listener: Listener
    thread: threading.Thread

    @property
    def reader(self) -> Reader:
        reader = self.service.scoring_reader
        assert reader is not None
        return reader

    @property
    def load(self) -> Load:
        return self.service.scheduler.load

    def client(self, api_key: str = "none") -> openai.OpenAI:
        """The official client, without retries."""
        url = f"{self.url}/v1"
        return openai.OpenAI(base_url=url, api_key=api_key, max_retries=0, timeout=MINUTES)

    def http(self, **options: Any) -> httpx2.Client:
        """A plain client; it loads no certificates, which would take longer than most tests."""
        return httpx2.Client(base_url=self.url, timeout=MINUTES, verify=False, **options)

    def complete(self, prompt: Any = "The tides", **fields: Any) -> Any:
        """A greedy completion as a record; 200 is expected."""
        body = {"model": self.service.model, "prompt": prompt, "temperature": 0} | fields
        with self.http() as http:
            answer = http.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    @contextlib.contextmanager
    def asked(self, prompt: str = "a", **fields: Any) -> Iterator[None]:
        """A client that asks for a completion, and leaves without it when the block ends."""
        body = json.dumps({"model": self.service.model, "prompt": prompt} | fields)
        address = self.url.removeprefix("http://")
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port))) as connection:
            head = f"POST /v1/completions HTTP/1.1\r\nHost: {address}\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall((head + body).encode())
            yield

    def stop(self) -> None:
        """What SIGTERM does."""
        self.listener.should_exit = True


def chat_reader(**options: Any) -> Reader:
    """A tiny reader with a chat template."""
    reader = tiny_reader(**options)
    reader.tokenizer.chat_template = TEMPLATE
    return reader


@contextlib.contextmanager
def serving(
    reader: TextReader | None = None,
    retriever: Retriever | None = None,
    defaults: RetrievalSettings = DEFAULTS,
    engine: Engine | None = None,
    clock: Callable[[], float] = time.monotonic,
    **settings: Any,
) -> Iterator[Served]:
    """Serve until the block ends; nothing is cut off by a time limit unless one is given."""
    limits = {"grace": 0.2, "time_limit": 1e5, "retrieval_limit": 1e5}
    chosen = ServerSettings(port=0, **limits | settings)
    reader = reader or chat_reader()
    if engine is None:
        assert isinstance(reader, Reader)
        engine = HookedEngine(reader, chosen.memory * MIB)
    generator = Generator(reader, engine, retriever or QueryRetriever())
    service = make_service(generator, chosen, defaults, clock)
    bound = bind(chosen)
    listener = Listener(service)
    listener.config.timeout_graceful_shutdown = int(MINUTES)
    thread = threading.Thread(target=listener.run, kwargs={"sockets": [bound]})
    thread.start()
    host, port = bound.getsockname()[:2]
    served = Served(service, f"http://{host}:{port}", listener, thread)
    try:
        until(lambda: listener.started)
        yield served
    finally:
        served.stop()
        thread.join()
        bound.close()


def recomputed_scores(reader: Reader, ids: Ids, pattern: str, first_boundary: int) -> list[float]:
    """Log-probabilities of all ids but the first, as the server should score them.

    The reference: every stride's prompt arranged anew and run on its own, without a cache.
    """
    frame = reader.frame(DEFAULTS.frame, pattern)
    starts = [1, *range(first_boundary, len(ids), DEFAULTS.stride)]
    scores: list[float] = []
    for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
        retrieves = PATTERNS[pattern].retrieves and start >= first_boundary
        passage = _found_for(reader, ids[:start]) if retrieves else ()
        prompt = PATTERNS[pattern].arrange(Boundary(ids[:start], passage, frame, 1)).arranged
        rows = recomputed_logits(reader.model, [*prompt, *ids[start : end - 1]], end - start)
        chosen = rows.log_softmax(-1).gather(1, torch.tensor(ids[start:end])[:, None])
        scores += chosen[:, 0].tolist()
    return scores


def _found_for(reader: Reader, context: Ids) -> Ids:
    query = reader.decode(context[-DEFAULTS.query_tokens :])
    (hits,) = QueryRetriever().search([query], DEFAULTS.search_options)
    return tuple(reader.encode(hits[0].text)[: DEFAULTS.passage_tokens])


def until(condition: Any, seconds: float = MINUTES) -> None:
    """Wait for something to become true."""
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it did not become true"
        time.sleep(0.01)
