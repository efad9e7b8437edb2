"""The promise on a GPU: what CUDA writes with a cache is what the CPU computes without one."""

from typing import Any

import pytest
import torch
from torch import Tensor

import flashback.writing.generator as generation_module
from families import FAMILIES, SLIDING, tiny_model
from flashback.engines.local import LocalEngine
from flashback.engines.protocol import Completion
from flashback.patterns.prompt import Ids, Prompt
from flashback.patterns.registry import PATTERNS
from flashback.sampling import Sampler
from flashback.settings import RetrievalSettings, Settings, StoppingSettings
from flashback.writing.generator import Generator
from readers import MadeUpRetriever, tiny_reader
from recompute import TOLERANCE, RecordingSampler, block_mask_logits, recomputed_logits

CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    ],
)


class RecordingEngine(LocalEngine):
    """An engine that keeps the prompts it was given."""

    prompts: tuple[Prompt, ...] = ()

    def complete(self, prompt: Prompt, max_tokens: int, sampler: Sampler) -> Completion:
        self.prompts += (prompt,)
        return super().complete(prompt, max_tokens, sampler)


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_long_text_equals_the_cpus_recomputation(
    family: str, pattern: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With jumps, passages that repeat, and some that are not found."""
    if pattern == "slot" and family in SLIDING:
        pytest.skip("sliding windows have no slot")
    if device == "cpu" and family != "llama":
        pytest.skip("test_parity.py and test_slot.py check the CPU")
    check_a_long_text(family, pattern, device, monkeypatch)


def check_a_long_text(
    family: str,
    pattern: str,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
    fixed_passes: bool | None = None,
) -> None:
    """Write with jumps, and compare all logits with the CPU's recomputed ones."""
    samplers: list[RecordingSampler] = []

    def recording(*arguments: Any) -> RecordingSampler:
        samplers.append(RecordingSampler(*arguments))
        return samplers[-1]

    monkeypatch.setattr(generation_module, "Sampler", recording)
    model = tiny_model(family)
    model.to(torch.device(device))  # type: ignore[arg-type]
    engine = RecordingEngine(model, window=150, fixed_passes=fixed_passes)
    retrieval = RetrievalSettings(pattern=pattern, stride=8, passage_tokens=16, query_tokens=8)
    settings = Settings(retrieval, stopping=StoppingSettings(120, ignore_eos=True))
    reader = tiny_reader(family, model=model)
    written = Generator(reader, engine, MadeUpRetriever(1)).generate(list(range(70)), settings)
    assert written.jumps
    seen = iter(samplers[0].seen)
    for prompt, stride in zip(engine.prompts, written.strides, strict=True):
        for row in reference(family, prompt, stride.tokens):
            torch.testing.assert_close(next(seen).cpu(), row, atol=TOLERANCE, rtol=0)


def reference(family: str, prompt: Prompt, tokens: Ids) -> Tensor:
    """Logits (n, V) of a stride's tokens, from the same weights on the CPU."""
    model = tiny_model(family)
    if prompt.reserved:
        return block_mask_logits(model, prompt, tokens)
    return recomputed_logits(model, [*prompt.arranged, *tokens[:-1]], len(tokens))
