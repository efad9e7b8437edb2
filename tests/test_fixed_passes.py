"""Passes at fixed places in memory compute what recomputing does; recorded on CUDA."""

import copy
import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest.mock import patch

import pytest
import torch

import flashback.engines.local as local_module
from families import FAMILIES, SLIDING, tiny_model
from flashback.arrangement import Prompt
from flashback.engines import fixed_passes
from flashback.engines.cache import States
from flashback.engines.fixed_passes import (
    Compute,
    FixedPass,
    FixedPasses,
    NewTokens,
    Recorder,
    Run,
)
from flashback.engines.local import LocalEngine
from flashback.generation import Generator
from flashback.sampling import Sampler
from flashback.settings import (
    PATTERNS,
    Pattern,
    RetrievalSettings,
    SamplingSettings,
    Settings,
    StoppingSettings,
)
from readers import tiny_reader
from recompute import TOLERANCE
from test_batch import QueryRetriever, write_recorded
from test_cuda import CUDA, check_a_long_text

FULL = [family for family in FAMILIES if family not in SLIDING]
FIXED = [family for family in FULL if family not in ("falcon", "bloom")]
"""Whose passes take a mask of every position; the others decode as before."""


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("family", FULL)
def test_a_long_text_equals_recomputing_everything(
    family: str, pattern: Pattern, device: str, monkeypatch: pytest.MonkeyPatch
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
    check_a_long_text(family, pattern, device, monkeypatch, fixed_passes=True)
    if family in FIXED:
        decoded = [columns for tokens, columns in passes if tokens == 1]
        assert len(decoded) > 100
        assert len(set(decoded)) > 1
        boundaries = len(passes) - len(decoded)
        assert boundaries > 5 or pattern in (Pattern.NONE, Pattern.SLOT)


class PretendedRecorder(Recorder):
    """Behaves as CUDA does: results are anything until the first replay, then written over."""

    replays = 0

    def record(self, compute: Compute, inputs: torch.Tensor) -> tuple[Callable[[], None], Any]:
        output = compute(inputs)
        for part in tensors(output):
            part.fill_(torch.nan)

        def replay() -> None:
            PretendedRecorder.replays += 1
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
    family: str, pattern: Pattern, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on CUDA, but for the device."""

    def recorded(device: torch.device, _: object) -> FixedPasses:
        return FixedPasses(device, PretendedRecorder())

    monkeypatch.setattr(local_module, "FixedPasses", recorded)
    before = PretendedRecorder.replays
    check_a_long_text(family, pattern, "cpu", monkeypatch, fixed_passes=True)
    assert PretendedRecorder.replays > before + 60


def greedy(engine: LocalEngine, prompt: list[int], count: int) -> list[int]:
    sampler = Sampler(SamplingSettings(), prompt, ())
    with engine.complete(Prompt(tuple(prompt)), count, sampler) as completion:
        return list(completion)


def test_texts_by_turns_do_not_disturb_each_other() -> None:
    """Every cache has a graph of its own, and a forked one another."""
    fixed = LocalEngine(tiny_model("llama"), 128, idle_sequences=3, fixed_passes=True)
    plain = LocalEngine(tiny_model("llama"), 128, fixed_passes=False)
    assert fixed.fixed is not None
    assert plain.fixed is None
    prompts = [[5, 6, 7, 8, 9, 10, 11, 12, 13, last] for last in (20, 21, 22)]
    expected = [greedy(plain, prompt, 12) for prompt in prompts]
    open_ones = [
        iter(fixed.complete(Prompt(tuple(prompt)), 12, Sampler(SamplingSettings(), prompt, ())))
        for prompt in prompts
    ]
    taken = [[next(one) for one in open_ones] for _ in range(12)]
    assert [list(tokens) for tokens in zip(*taken, strict=True)] == expected


def test_an_engine_whose_reader_cannot_decodes_as_before() -> None:
    with patch.object(fixed_passes.FixedPasses, "step", side_effect=RuntimeError("not captured")):
        engine = LocalEngine(tiny_model("llama"), 128, fixed_passes=True)
    assert engine.fixed is None
    assert len(greedy(engine, [5, 6, 7], 4)) == 4
    for family in SLIDING:
        assert LocalEngine(tiny_model(family), 128, fixed_passes=True).fixed is None


def test_a_copy_of_a_cache_moves_its_graph_nowhere() -> None:
    engine = LocalEngine(tiny_model("gpt2"), 128, fixed_passes=True)
    assert engine.fixed is not None
    greedy(engine, [5, 6, 7], 6)
    (held,) = engine._idle
    copied = copy.deepcopy(held)
    assert held.cache in engine.fixed._passes
    assert copied.cache not in engine.fixed._passes


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("family", FIXED)
def test_a_batch_equals_recomputing_everything(
    family: str, pattern: Pattern, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More texts than rows, which end and jump at different times."""
    monkeypatch.setattr(fixed_passes, "_COLUMNS", 16)
    model = tiny_model(family)
    model.to(torch.device(device))  # type: ignore[arg-type]
    engine = LocalEngine(model, window=150, fixed_passes=True)
    assert engine.fixed is not None
    reader = tiny_reader(family, model=model)
    writer = Generator(reader, engine, QueryRetriever())
    made_up = Settings(
        RetrievalSettings(pattern=pattern, stride=8, passage_tokens=16, query_tokens=8),
        stopping=StoppingSettings(max_new_tokens=64, ignore_eos=True),
    )
    prompts = [[0, *range(at, at + n)] for at, n in ((10, 40), (60, 3), (65, 76), (2, 66))]
    texts, seen = write_recorded(writer, prompts, made_up, 3)
    plain = Generator(
        tiny_reader(family), LocalEngine(tiny_model(family), window=150), QueryRetriever()
    )
    expected, wanted = write_recorded(plain, prompts, made_up, 1)
    assert sum(len(text.jumps) for text in texts) >= 1
    assert [text.tokens for text in texts] == [text.tokens for text in expected]
    for logits, alone in zip(seen, wanted, strict=True):
        found = torch.stack(logits).cpu()
        torch.testing.assert_close(found, torch.stack(alone), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("fixed", [False, True])
def test_an_engine_is_freed_with_its_caches(fixed: bool) -> None:
    """At once: on a GPU the next one needs the room."""
    engine = LocalEngine(tiny_model("llama"), 128, fixed_passes=fixed)
    greedy(engine, [5, 6, 7], 6)
    (held,) = engine._idle
    parts: tuple[object, ...] = (engine, held.cache, engine.passages)
    gone = [weakref.ref(part) for part in parts]
    gc.disable()
    try:
        del engine, held, parts
        assert [one() for one in gone] == [None] * 3
    finally:
        gc.enable()
