"""A server in this process for tests: a tiny reader, a made-up retriever, a real socket."""

import contextlib
import random
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2
import openai
import torch

from flashback.engines.local import LocalEngine
from flashback.patterns.pattern import Boundary
from flashback.patterns.prompt import Ids
from flashback.patterns.registry import PATTERNS
from flashback.readers.reader import Reader
from flashback.retrieval.protocol import Hit, Retriever
from flashback.server.server_settings import MIB, ServerSettings
from flashback.server.service import Service, make_service
from flashback.server.serving import Listener, bind
from flashback.settings import RetrievalSettings, SearchOptions
from flashback.writing.generator import Generator
from readers import tiny_reader
from recompute import recomputed_logits

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
DEFAULTS = RetrievalSettings("append", stride=4, query_tokens=8, passage_tokens=24)
"""Small enough for a tiny reader's window."""


class QueryRetriever:
    """Passages that depend on the query alone, so that the order of searches does not matter."""

    def __init__(self) -> None:
        self.queries: list[str] = []
        self.before: list[Any] = []
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


@dataclass(frozen=True)
class Served:
    """A server that listens."""

    service: Service
    engine: LocalEngine
    url: str
    listener: Listener
    thread: threading.Thread

    def client(self, api_key: str = "none") -> openai.OpenAI:
        """The official client, without its patience."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=api_key, max_retries=0)

    def http(self, **options: Any) -> httpx2.Client:
        """A plain client."""
        return httpx2.Client(base_url=self.url, timeout=60, **options)

    def complete(self, prompt: Any = "The tides", **fields: Any) -> Any:
        """A greedy completion as a record; 200 is expected."""
        body = {"model": self.service.model, "prompt": prompt, "temperature": 0} | fields
        with self.http() as http:
            answer = http.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def stop(self) -> None:
        """What SIGTERM does."""
        self.listener.should_exit = True


def chat_reader(**options: Any) -> Reader:
    """A tiny reader with a chat template."""
    reader = tiny_reader(**options)
    reader.tokenizer.chat_template = TEMPLATE
    return reader


def engine_of(reader: Reader, memory: int) -> LocalEngine:
    """An engine with a budget in bytes, divided as `flashback serve` does."""
    passages = memory // 4
    return LocalEngine(
        reader.model, reader.window, idle_bytes=memory - passages, passage_bytes=passages
    )


@contextlib.contextmanager
def serving(
    reader: Reader | None = None,
    retriever: Retriever | None = None,
    defaults: RetrievalSettings = DEFAULTS,
    **settings: Any,
) -> Iterator[Served]:
    """Serve until the block ends."""
    chosen = ServerSettings(port=0, **{"grace": 0.2} | settings)
    reader = reader or chat_reader()
    engine = engine_of(reader, chosen.memory * MIB)
    generator = Generator(reader, engine, retriever or QueryRetriever())
    service = make_service(generator, chosen, defaults)
    bound = bind(chosen)
    listener = Listener(service)
    thread = threading.Thread(target=listener.run, kwargs={"sockets": [bound]})
    thread.start()
    host, port = bound.getsockname()[:2]
    served = Served(service, engine, f"http://{host}:{port}", listener, thread)
    try:
        while not listener.started:
            time.sleep(0.01)
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


def until(condition: Any, seconds: float = 20) -> None:
    """Wait for something to become true."""
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it did not become true"
        time.sleep(0.01)
