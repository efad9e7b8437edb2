"""A conversation sent turn by turn to an engine: how many tokens must be prefilled.

The answers are the file's own, whatever a reader would have written. Behind a turn the engine holds
what it would hold if it had written them: the answer's tokens with that turn's passages in view.

Where every layer sees all positions, what an engine reuses depends on tokens alone, not on the
model. So it runs a tiny model there, which counts the same and takes no time.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM

from flashback.engines.local import LocalEngine
from flashback.engines.protocol import CachingEngine, Engine, Usage
from flashback.patterns.prompt import Ids, Prompt
from flashback.readers.reader import Reader
from flashback.readers.text_reader import TextReader
from flashback.sampling import Sampler
from flashback.settings import SamplingSettings


@dataclass(frozen=True)
class Turn:
    """A prompt with its passages, and what was answered."""

    prompt: Prompt
    answer: Ids

    @property
    def answered(self) -> Prompt:
        """The prompt and its answer, which saw the same passage."""
        prompt = self.prompt
        return Prompt.with_views(prompt.ids + self.answer, prompt.views, prompt.layout)


@dataclass(frozen=True)
class Replay:
    """The cost of all turns together."""

    turns: int
    prefilled: int
    """Tokens computed before the first new one of each turn."""
    prompt_tokens: int
    """Of the last turn, passages included."""

    @property
    def record(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def replay(turns: Sequence[Turn], engine: Engine) -> Replay:
    """Send all turns of a conversation, the first one to empty caches."""
    if isinstance(engine, CachingEngine):
        engine.forget()
    prefilled = 0
    for number, turn in enumerate(turns, start=1):
        prefilled += _sent(turn.prompt, engine).prefilled
        if number < len(turns) and turn.answer:
            _sent(turn.answered, engine)  # as if it had been written there
    return Replay(len(turns), prefilled, len(turns[-1].prompt.arranged))


def counting_engine(reader: TextReader) -> LocalEngine | None:
    """An engine that reuses and prefills as many tokens as the reader's; None: it would not."""
    if not isinstance(reader, Reader) or not reader.support.full_attention_only:
        return None
    shape = LlamaConfig(
        vocab_size=reader.vocabulary_size,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,  # a passage is computed without the last one
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=reader.window,
    )
    model = LlamaForCausalLM(shape).eval()
    return LocalEngine(model, reader.window, self_check=False, fixed_passes=False)


def _sent(prompt: Prompt, engine: Engine) -> Usage:
    sampler = Sampler(SamplingSettings(), prompt.ids)
    with engine.complete(prompt, 1, sampler) as completion:
        for _ in completion:
            pass
    return completion.usage
