"""Long texts on a device, compared with the CPU's recomputation."""

from functools import cache

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from families import tiny_model
from flashback.engines.local import LocalEngine
from flashback.engines.protocol import Completion
from flashback.patterns.prompt import Ids, Prompt
from flashback.sampling import Sampler
from flashback.settings import RetrievalSettings, Settings, StoppingSettings
from flashback.writing.generator import Generator
from recompute import TOLERANCE, block_mask_logits, recomputed_logits
from recorded import recording_samplers
from tiny_readers import MadeUpRetriever, tiny_reader

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


def check_a_long_text(
    family: str,
    pattern: str,
    device: str,
    fixed_passes: bool | None = None,
) -> None:
    """Write with jumps, and compare all logits with the CPU's recomputed ones."""
    model = tiny_model(family)
    model.to(torch.device(device))  # type: ignore[arg-type]
    engine = RecordingEngine(model, window=150, fixed_passes=fixed_passes)
    retrieval = RetrievalSettings(pattern=pattern, stride=8, passage_tokens=16, query_tokens=8)
    settings = Settings(retrieval, stopping=StoppingSettings(120, ignore_eos=True))
    reader = tiny_reader(family, model=model)
    writer = Generator(reader, engine, MadeUpRetriever(1))
    with recording_samplers() as samplers:
        written = writer.generate(list(range(70)), settings)
    assert written.jumps
    seen = iter(samplers[0].seen)
    for prompt, stride in zip(engine.prompts, written.strides, strict=True):
        for row in reference(family, prompt, stride.tokens):
            torch.testing.assert_close(next(seen).cpu(), row, atol=TOLERANCE, rtol=0)


@cache
def plain_model(family: str) -> PreTrainedModel:
    """The same weights on the CPU."""
    return tiny_model(family)


def reference(family: str, prompt: Prompt, tokens: Ids) -> Tensor:
    """Logits (n, V) of a stride's tokens, from the same weights on the CPU."""
    model = plain_model(family)
    if prompt.layout.reserved:
        return block_mask_logits(model, prompt, tokens)
    return recomputed_logits(model, [*prompt.arranged, *tokens[:-1]], len(tokens))
