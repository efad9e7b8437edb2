"""The promise on real readers: what is cached, batched or streamed equals plain transformers.

`make readers` downloads them; these tests are no part of `make test`. The reference is the model as
transformers loads it from the file on its own.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GgufConfig, PreTrainedModel

from command_line import NOTES, index_notes
from flashback.engines.support import support_of
from flashback.patterns.prompt import Prompt
from flashback.patterns.registry import PATTERNS
from flashback.readers.load import load_reader
from flashback.readers.reader import Reader
from flashback.retrieval.kinds import open_index
from flashback.retrieval.protocol import Retriever
from flashback.settings import RetrievalSettings, Settings, StoppingSettings
from flashback.writing.generator import Generation, Generator
from flashback.writing.stream import TextPiece
from on_device import RecordingEngine
from recompute import TOLERANCE, block_mask_logits, recomputed_logits
from recorded import generate_and_record

FOLDER = Path(os.environ.get("FLASHBACK_READERS", Path(__file__).parent.parent / ".readers"))
WINDOW = 1200
LONG = " ".join([*NOTES.values()] * 9)
"""Longer than Gemma's sliding window of 512 tokens."""
PROMPTS = ("The tides follow", "A socket is", LONG, "Snow in winter")


@dataclass(frozen=True)
class Real:
    """A reader, its engine, and the same model as transformers loads it."""

    reader: Reader
    engine: RecordingEngine
    reference: PreTrainedModel


@pytest.fixture(scope="module", params=["smollm2-135m-instruct", "gemma-3-270m"])
def real(request: pytest.FixtureRequest) -> Real:
    """One after the other: each is in memory twice."""
    name = f"{request.param}.gguf"
    if not (FOLDER / name).is_file():
        pytest.skip(f"no {FOLDER / name}: run `make readers`")
    reader = load_reader(str(FOLDER / name), device="cpu", dtype="float32", window=WINDOW)
    reference = AutoModelForCausalLM.from_pretrained(
        FOLDER,
        gguf_file=name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    return Real(reader, RecordingEngine(reader.model, WINDOW), reference.eval())


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    return open_index(index_notes(tmp_path_factory.mktemp("notes")))


def settings(pattern: str, tokens: int = 24) -> Settings:
    retrieval = RetrievalSettings(pattern=pattern, stride=8, passage_tokens=32, query_tokens=12)
    return Settings(retrieval, stopping=StoppingSettings(tokens, ignore_eos=True))


def skip_unless(real: Real, pattern: str) -> None:
    if not real.reader.can_have(PATTERNS[pattern]):
        assert not support_of(real.reference).full_attention_only
        pytest.skip("layers with a sliding window")


def recomputed(model: PreTrainedModel, prompt: Prompt, tokens: Sequence[int]) -> Tensor:
    """The logits (n, V) that give a stride's tokens, with nothing cached."""
    if prompt.layout.reserved:
        return block_mask_logits(model, prompt, tokens)
    return recomputed_logits(model, [*prompt.arranged, *tokens[:-1]], len(tokens))


@torch.inference_mode()
def test_logits_are_those_of_transformers(real: Real, record_property: Any) -> None:
    ids = torch.tensor([real.reader.encode_prompt(LONG)])
    assert 512 < ids.shape[1] < WINDOW
    difference = (real.reader.model(ids).logits - real.reference(ids).logits).abs().max()
    print(f"\n{real.reader.name}: loaded, largest difference {float(difference):.1e}")
    assert difference <= TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("prompt", ["The tides follow", LONG], ids=["short", "long"])
@pytest.mark.parametrize("pattern", [*PATTERNS])
def test_cached_equals_recomputed(
    real: Real, retriever: Retriever, pattern: str, prompt: str
) -> None:
    skip_unless(real, pattern)
    engine = real.engine
    engine.prompts = ()
    writer = Generator(real.reader, engine, retriever)
    written, seen = generate_and_record(
        writer, real.reader.encode_prompt(prompt), settings(pattern)
    )
    found, error = iter(seen), 0.0
    prompts: tuple[Prompt, ...] = engine.prompts
    for arranged, stride in zip(prompts, written.strides, strict=True):
        rows = recomputed(real.reference, arranged, stride.tokens)
        for row, token in zip(rows, stride.tokens, strict=True):
            error = max(error, float((row - next(found)).abs().max()))
            assert row.max() - row[token] <= TOLERANCE
    assert next(found, None) is None
    print(f"\n{real.reader.name} {pattern}: largest difference {error:.1e}")
    assert error <= TOLERANCE
    if PATTERNS[pattern].retrieves:
        assert any(stride.passages for stride in written.strides)


@pytest.mark.parametrize("pattern", [*PATTERNS])
def test_a_batch_equals_one_by_one(real: Real, retriever: Retriever, pattern: str) -> None:
    skip_unless(real, pattern)
    writer = Generator(real.reader, real.engine, retriever)
    together = writer.generate_batch(PROMPTS, settings(pattern), batch_size=3)
    alone = [writer.generate(prompt, settings(pattern)) for prompt in PROMPTS]
    assert [text.tokens for text in together] == [text.tokens for text in alone]


@pytest.mark.parametrize("pattern", [*PATTERNS])
def test_a_stream_is_the_whole_text(real: Real, retriever: Retriever, pattern: str) -> None:
    skip_unless(real, pattern)
    writer = Generator(real.reader, real.engine, retriever)
    writing = writer.stream(PROMPTS[0], settings(pattern))
    pieces = [event.text for event in writing if isinstance(event, TextPiece)]
    whole: Generation = writer.generate(PROMPTS[0], settings(pattern))
    assert "".join(pieces) == writing.result.text == whole.text
    assert whole.text.strip()


def test_special_tokens(real: Real) -> None:
    """As the two files have them, and the ends of turns that they do not name."""
    reader = real.reader
    ids = {"smollm2-135m-instruct": ((), {2, 0}), "gemma-3-270m": ((2,), {1, 106})}
    bos, eos = ids[Path(reader.name).stem]
    assert reader.bos == bos
    assert reader.eos == eos
    assert (reader.tokenizer.chat_template is None) == ("gemma" in reader.name)
