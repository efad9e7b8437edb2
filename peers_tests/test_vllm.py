"""The engine `openai` in front of a real vLLM with a real reader: `make peers-vllm`.

FLASHBACK_VLLM is the Python that has vLLM, FLASHBACK_READERS the folder of `make readers`.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from engine_parity import InTurn, compare, in_blocks, material, settings
from flashback.engines.openai import OpenAIEngine
from flashback.engines.openai_probe import probe
from flashback.engines.openai_settings import RemoteSettings
from flashback.engines.openai_wire import Wire
from flashback.errors import EngineError
from flashback.loading import load
from flashback.patterns.prompt import Prompt
from flashback.readers.elsewhere import sample_of
from flashback.readers.load import load_reader
from flashback.readers.reader import Reader
from flashback.sampling import Sampler
from flashback.settings import RetrievalSettings, SamplingSettings, Settings, StoppingSettings
from flashback.training.export import export
from flashback.writing.generator import Generator, StrideStart, TextPiece
from record_vllm import bodies
from servers import until
from tiny_readers import byte_tokenizer
from vllm_server import command, free_port, running, with_slot

ROOT = Path(__file__).parent.parent
PYTHON = os.environ.get("FLASHBACK_VLLM", str(ROOT / "build" / "vllm" / "bin" / "python"))
READERS = Path(os.environ.get("FLASHBACK_READERS", ROOT / ".readers"))
NAME, CONTEXT = "smollm2", 640
PASSAGE_BYTES = 16 << 20
"""Two passages: the connector drops one at nearly every stride."""


@dataclass(frozen=True)
class Peer:
    """The server, and the same model here."""

    url: str
    folder: Path
    reader: Reader
    passages: list[str]
    prompts: list[list[int]]

    @property
    def settings(self) -> RemoteSettings:
        return RemoteSettings(self.url, str(self.folder), token_limit=600.0)

    def writer(self) -> Generator:
        """Through the server."""
        return load(NAME, engine="openai", remote=self.settings, retriever=InTurn(self.passages))


@pytest.fixture(scope="session")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    file = READERS / "smollm2-135m-instruct.gguf"
    if not file.is_file() or not Path(PYTHON).exists():
        pytest.skip(f"no {file}, or no {PYTHON}: run `make readers` and `make peers-vllm`")
    folder = tmp_path_factory.mktemp("peer")
    export(load_reader(str(file), device="cpu", dtype="float32"), folder / NAME)
    reader = load_reader(str(folder / NAME), device="cpu", dtype="float32")
    prompts, passages = material(reader, CONTEXT, prompts=2, passages=8)
    port = free_port()
    url = f"http://127.0.0.1:{port}/v1"
    start = [*command(PYTHON, folder / NAME, NAME, port), *with_slot(folder, PASSAGE_BYTES)]
    with running(start, url, folder / "server.log", folder):
        yield Peer(url, folder / NAME, reader, passages, prompts)


def plain(tokens: int, **more: Any) -> Settings:
    stopping = StoppingSettings(tokens, ignore_eos=True)
    return replace(Settings(RetrievalSettings("none"), stopping=stopping), **more)


def test_the_probe_finds_a_server_that_can_everything(peer: Peer) -> None:
    found = probe(Wire(peer.settings), NAME, sample_of(NAME, peer.reader.tokenizer))
    assert (found.window, found.block, found.notes) == (4096, 32, ())
    assert found.slot_block == 32
    assert found.slot_passages > 0


@pytest.mark.parametrize("pattern", ["none", "append", "prepend", "slot"])
def test_greedy_texts_are_those_of_our_own_engine(peer: Peer, pattern: str) -> None:
    retriever = InTurn(peer.passages)
    theirs = peer.writer()
    theirs.retriever = retriever
    ours = Generator(peer.reader, in_blocks(peer.reader, 32), retriever)
    found = compare(peer.reader, ours, theirs, peer.prompts, settings(pattern, 3), 1)
    assert [one.gap for one in found if one.gap is not None and one.gap >= 1e-4] == []
    cached = [share for one in found for share in one.cached]
    least = 0.8 if pattern == "slot" else 0.85
    assert max(cached) < 0.1 if pattern == "prepend" else min(cached) >= least


def test_a_passage_that_the_server_dropped_is_computed_again(peer: Peer) -> None:
    first, other = peer.writer(), peer.writer()
    slot = settings("slot", 2)
    expected = first.generate(peer.prompts[0], slot)
    other.generate(peer.prompts[1], settings("slot", 4))  # its passages take the room
    first.retriever = InTurn(peer.passages)
    again = first.generate(peer.prompts[0], slot)
    assert again.tokens == expected.tokens


def test_the_end_of_a_turn_ends_the_request_with_its_counts(peer: Peer) -> None:
    messages = [{"role": "user", "content": "Say hello."}]
    found = peer.writer().chat(messages, pattern="none", max_new_tokens=64)
    assert found.finish_reason == "eos"
    for one in found.strides:
        assert one.usage.reused + one.usage.prefilled == len(one.arranged)


def test_seeds_are_reproducible_and_penalties_and_bans_hold(peer: Peer) -> None:
    writer = peer.writer()
    drawn = plain(24, sampling=SamplingSettings(temperature=1.0, seed=5))
    first, again = (writer.generate("Snow is", drawn).tokens for _ in range(2))
    assert first == again
    greedy = writer.generate("Snow is", plain(8)).tokens
    penalised = plain(8, sampling=SamplingSettings(repetition_penalty=5.0))
    written = writer.generate("Snow is", penalised).tokens
    assert len(set(written)) == len(written)
    sampler = Sampler(SamplingSettings(), (504,), forbidden=[greedy[0]])
    prompt = Prompt.plain(writer.reader.encode_prompt("Snow is"))
    assert greedy[0] not in list(writer.engine.complete(prompt, 8, sampler))


def test_a_salt_keeps_caches_apart(peer: Peer) -> None:
    writer = peer.writer()
    cached = [
        writer.generate(peer.prompts[0], plain(1, cache_salt=salt)).strides[0].usage.cached
        for salt in ("a", "b", "a")
    ]
    assert cached[:2] == [0, 0]
    assert cached[2] > 0.9 * CONTEXT


def test_who_leaves_ends_the_servers_request(peer: Peer) -> None:
    retrieval = RetrievalSettings("none", stride=1000)
    writing = peer.writer().stream("Snow is", replace(plain(1000), retrieval=retrieval))
    events = iter(writing)
    assert isinstance(next(events), StrideStart)
    assert isinstance(next(events), TextPiece)
    writing.close()
    until(lambda: _running(peer) == 0)


def _running(peer: Peer) -> float:
    text = httpx2.get(f"{peer.url.removesuffix('/v1')}/metrics", timeout=60).text
    return sum(map(float, re.findall(r"^vllm:num_requests_running\S* (\S+)$", text, re.MULTILINE)))


def test_many_texts_at_once_are_each_what_they_are_alone(peer: Peer) -> None:
    writer = peer.writer()
    prompts = ["Snow is", "The capital of France is", "A socket is", "In 1874"]
    together = writer.generate_batch(prompts, plain(16), batch_size=4)
    assert [one.tokens for one in together] == [
        writer.generate(prompt, plain(16)).tokens for prompt in prompts
    ]


def test_another_tokenizer_and_another_model_are_refused(peer: Peer, tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    other = replace(peer.settings, tokenizer=str(tmp_path))
    with pytest.raises(EngineError, match="has other tokens than the tokenizer"):
        load(NAME, engine="openai", remote=other)
    with pytest.raises(EngineError, match=f"expected model with one of: {NAME}"):
        load("nonsuch", engine="openai", remote=peer.settings)


def test_a_context_beyond_the_window_is_one_line(peer: Peer) -> None:
    engine = OpenAIEngine(Wire(peer.settings), NAME, window=1 << 20)
    writer = Generator(peer.writer().reader, engine, None)
    with pytest.raises(EngineError, match=r"4096.*\(status 400\)"):
        writer.generate([504] * 5000, plain(4))


def test_the_recording_is_what_this_server_answers(peer: Peer) -> None:
    lines = (ROOT / "tests" / "engines" / "recorded_vllm.jsonl").read_text("utf-8").splitlines()
    recorded = {one["name"]: one for one in map(json.loads, lines)}
    for name, body in bodies(NAME):
        answer = httpx2.post(f"{peer.url}/completions", json=body, timeout=600)
        assert answer.status_code == recorded[name]["status"]
        if name in ("streamed", "ended", "echoed", "ids back"):
            assert _without_names(answer.text) == _without_names(recorded[name]["answer"])


def _without_names(answer: str) -> str:
    """Without ids, times and what was cached."""
    varying = r'"(id|created|cached_tokens|system_fingerprint)":("[^"]*"|\d+|null)'
    return re.sub(varying, r'"\1":0', answer)
