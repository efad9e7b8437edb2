"""Passes at fixed places in memory compute what recomputing does; recorded on CUDA."""

import copy
import gc
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any
from unittest.mock import patch

import pytest
import torch

import flashback.engines.passes as passes_module
from families import FAMILIES, SLIDING, tiny_model
from flashback.engines.cache.layers import full_layers
from flashback.engines.kernels import fixed_passes
from flashback.engines.kernels.fixed_passes import (
    Compute,
    FixedPass,
    FixedPasses,
    NewTokens,
    Recorder,
    Run,
)
from flashback.engines.kernels.states import States
from flashback.engines.local import LocalEngine
from flashback.engines.self_check import has_fixed_batches
from flashback.patterns.prompt import PlacedPassage, Prompt
from flashback.patterns.registry import PATTERNS
from flashback.sampling import Sampler
from flashback.settings import RetrievalSettings, SamplingSettings, Settings, StoppingSettings
from flashback.writing.generator import Generator
from on_device import CUDA, check_a_long_text
from recompute import TOLERANCE
from recorded import PassagesByQuery, write_recorded
from tiny_readers import tiny_reader

FIXED = [family for family in FAMILIES if family not in (*SLIDING, "bloom")]
"""The others have no fixed passes: windows, and biases made from another kind of mask."""


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("family", FIXED)
def test_a_long_text_equals_recomputing_everything(
    family: str, pattern: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fixed_passes, "_COLUMNS", 16)  # several passes for each text
    passes: list[tuple[int, int]] = []
    plain = FixedPass.__call__

    def counted(
        one: FixedPass, run: Run, buffers: Sequence[States], rows: Sequence[NewTokens]
    ) -> torch.Tensor:
        passes.append((one.tokens, one.columns))
        return plain(one, run, buffers, rows)

    monkeypatch.setattr(FixedPass, "__call__", counted)
    check_a_long_text(family, pattern, device, fixed_passes=True)
    decoded = [columns for tokens, columns in passes if tokens == 1]
    assert len(decoded) > 100
    assert len(set(decoded)) > 1
    boundaries = len(passes) - len(decoded)
    assert boundaries > 5 or pattern in ("none", "slot")


class PretendedRecorder(Recorder):
    """Behaves as CUDA does: results are anything until the first replay, then written over."""

    def __init__(self) -> None:
        self.replays = 0

    def record(self, compute: Compute, inputs: torch.Tensor) -> tuple[Callable[[], None], Any]:
        output = compute(inputs)
        for part in tensors(output):
            part.fill_(torch.nan)

        def replay() -> None:
            self.replays += 1
            for part, new in zip(tensors(output), tensors(compute(inputs)), strict=True):
                part.copy_(new)

        return replay, output


def tensors(output: Any) -> Iterator[torch.Tensor]:
    """Logits, or the keys and values of every layer."""
    if isinstance(output, torch.Tensor):
        yield output
    else:
        for part in output:
            yield from tensors(part)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_what_is_replayed_equals_recomputing_everything(
    family: str, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on CUDA, but for the device."""

    recorder = PretendedRecorder()

    def recorded(device: torch.device, _: object) -> FixedPasses:
        return FixedPasses(device, recorder)

    monkeypatch.setattr(passes_module, "FixedPasses", recorded)
    check_a_long_text(family, pattern, "cpu", fixed_passes=True)
    assert recorder.replays > 60


def greedy(engine: LocalEngine, prompt: list[int], count: int) -> list[int]:
    sampler = Sampler(SamplingSettings(), prompt, ())
    with engine.complete(Prompt.plain(prompt), count, sampler) as completion:
        return list(completion)


def test_texts_by_turns_do_not_disturb_each_other() -> None:
    """Every cache has a graph of its own, and a forked one another."""
    fixed = LocalEngine(tiny_model("llama"), 128, idle_sequences=3, fixed_passes=True)
    plain = LocalEngine(tiny_model("llama"), 128, fixed_passes=False)
    assert fixed.passes.fixed is not None
    assert plain.passes.fixed is None
    prompts = [[5, 6, 7, 8, 9, 10, 11, 12, 13, last] for last in (20, 21, 22)]
    expected = [greedy(plain, prompt, 12) for prompt in prompts]
    open_ones = [
        iter(fixed.complete(Prompt.plain(prompt), 12, Sampler(SamplingSettings(), prompt, ())))
        for prompt in prompts
    ]
    taken = [[next(one) for one in open_ones] for _ in range(12)]
    assert [list(tokens) for tokens in zip(*taken, strict=True)] == expected


def test_an_engine_whose_model_cannot_runs_plain_passes() -> None:
    with patch.object(fixed_passes.FixedPasses, "step", side_effect=RuntimeError("not captured")):
        engine = LocalEngine(tiny_model("llama"), 128, fixed_passes=True)
    assert engine.passes.fixed is None
    assert len(greedy(engine, [5, 6, 7], 4)) == 4
    for family in (*SLIDING, "bloom"):
        assert LocalEngine(tiny_model(family), 128, fixed_passes=True).passes.fixed is None


def test_a_copy_of_a_cache_is_written_to_alone() -> None:
    engine = LocalEngine(tiny_model("gpt2"), 128, fixed_passes=True)
    plain = LocalEngine(tiny_model("gpt2"), 128, fixed_passes=False)
    text = greedy(engine, [5, 6, 7], 6)
    (held,) = engine.leases.idle
    copied = copy.deepcopy(held)
    before = [buffer.clone() for layer in full_layers(held.cache) for buffer in layer.buffers]
    with engine.passes.running():
        for token in (20, 30, 40):
            engine.passes.extend(copied, [token])
    after = [buffer for layer in full_layers(held.cache) for buffer in layer.buffers]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    again, expected = (greedy(one, [5, 6, 7, *text], 6) for one in (engine, plain))
    assert again == expected


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_lookahead_writes_what_it_writes_without_fixed_passes(device: str) -> None:
    """Every text looks ahead in a new thread."""
    made_up = Settings(
        RetrievalSettings("slot", stride=8, query_tokens=12, passage_tokens=16, lookahead=3),
        stopping=StoppingSettings(48, ignore_eos=True),
    )
    model = tiny_model("llama")
    model.to(torch.device(device))  # type: ignore[arg-type]
    texts = []
    for reader, fixed in ((tiny_reader(model=model), True), (tiny_reader(), False)):
        engine = LocalEngine(reader.model, reader.window, fixed_passes=fixed, cache_bytes=0)
        writer = Generator(reader, engine, PassagesByQuery())
        texts.append([writer.generate([0, *range(10, 40)], made_up).tokens for _ in range(3)])
    assert texts[0] == texts[1]


def test_a_thread_records_only_what_it_ran_before() -> None:
    """Libraries prepare themselves for each thread, which cannot be recorded."""
    prepared: set[threading.Thread] = set()
    recorded_by: list[threading.Thread] = []

    class Strict(PretendedRecorder):
        def record(self, compute: Compute, inputs: torch.Tensor) -> tuple[Callable[[], None], Any]:
            assert threading.current_thread() in prepared
            recorded_by.append(threading.current_thread())
            return super().record(compute, inputs)

    engine = LocalEngine(tiny_model("llama"), 190, fixed_passes=False)
    fixed = FixedPasses(torch.device("cpu"), Strict())
    passage = tuple(range(20, 60))

    def prefill() -> None:
        with engine.passes.running():
            fixed.prefill(engine.passes.prefill_alone, passage, range(8, 48))
        prepared.add(threading.current_thread())

    prefill()
    for _ in range(2):
        with ThreadPoolExecutor(1) as threads:
            threads.submit(prefill).result()
    assert not recorded_by
    prefill()
    assert recorded_by == [threading.current_thread()]


def test_few_lengths_of_passages_are_kept() -> None:
    engine = LocalEngine(tiny_model("llama"), 190, fixed_passes=True)
    assert engine.passes.fixed is not None
    with engine.passes.running():
        for length in (5, 20, 40, 60, 80, 20):
            engine.passes.prefill_passage(PlacedPassage(tuple(range(length)), 100))
    assert list(engine.passes.fixed._prefills) == [48, 64, 80, 32]
    engine.forget()
    assert not engine.passes.fixed._prefills


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize(
    ("family", "pattern"),
    [
        *((family, "append") for family in FIXED),
        *product(("llama", "opt"), ("none", "prepend", "slot")),
    ],
)
def test_a_batch_equals_recomputing_everything(
    family: str, pattern: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More texts than rows, which end and jump at different times."""
    monkeypatch.setattr(fixed_passes, "_COLUMNS", 16)
    model = tiny_model(family)
    model.to(torch.device(device))  # type: ignore[arg-type]
    engine = LocalEngine(model, window=150, fixed_passes=True)
    assert engine.passes.fixed is not None
    reader = tiny_reader(family, model=model)
    writer = Generator(reader, engine, PassagesByQuery())
    made_up = Settings(
        RetrievalSettings(pattern=pattern, stride=8, passage_tokens=16, query_tokens=8),
        stopping=StoppingSettings(max_new_tokens=48, ignore_eos=True),
    )
    prompts = [[0, *range(at, at + n)] for at, n in ((10, 40), (60, 3), (65, 76), (2, 66))]
    texts, seen = write_recorded(writer, prompts, made_up, 3)
    plain = Generator(
        tiny_reader(family), LocalEngine(tiny_model(family), window=150), PassagesByQuery()
    )
    expected, wanted = write_recorded(plain, prompts, made_up, 1)
    assert sum(len(text.jumps) for text in texts) >= 1
    assert [text.tokens for text in texts] == [text.tokens for text in expected]
    for logits, alone in zip(seen, wanted, strict=True):
        found = torch.stack(logits).cpu()
        torch.testing.assert_close(found, torch.stack(alone), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("fixed", [False, True])
def test_an_engine_is_freed_with_its_caches(fixed: bool) -> None:
    """At once: on a GPU the next one needs the memory."""
    engine = LocalEngine(tiny_model("llama"), 128, fixed_passes=fixed)
    greedy(engine, [5, 6, 7], 6)
    (held,) = engine.leases.idle
    parts: tuple[object, ...] = (engine, held.cache, engine.passages)
    gone = [weakref.ref(part) for part in parts]
    gc.disable()
    try:
        del engine, held, parts
        assert [one() for one in gone] == [None] * 3
    finally:
        gc.enable()


def test_batches_do_without_where_fixed_passes_of_several_rows_are_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = FixedPass.__call__

    def wrong(
        one: FixedPass, run: Run, buffers: Sequence[States], rows: Sequence[NewTokens]
    ) -> torch.Tensor:
        return plain(one, run, buffers, rows) + (len(rows) > 1)

    monkeypatch.setattr(FixedPass, "__call__", wrong)
    reader = tiny_reader("llama")
    engine = LocalEngine(reader.model, reader.window, fixed_passes=True)
    assert engine.passes.fixed is not None
    assert not has_fixed_batches(engine.passes, reader.window)
    writer = Generator(reader, engine, None)
    retrieval = RetrievalSettings("none", passage_tokens=16)
    made_up = Settings(retrieval, stopping=StoppingSettings(12))
    prompts = [[0, 5, 6, 7], [0, 8, 9]]
    alone = [writer.generate(prompt, made_up).tokens for prompt in prompts]
    assert [text.tokens for text in writer.generate_batch(prompts, made_up)] == alone
