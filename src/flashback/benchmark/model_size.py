"""The sizes of a model by its name, read off its configuration: no weights are loaded."""

from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM

from flashback.benchmark import shapes
from flashback.benchmark.bench_settings import SHAPES
from flashback.benchmark.flops import Shape
from flashback.errors import ReaderError
from flashback.readers.load import config_of, locate


@dataclass(frozen=True)
class ModelSize:
    """A model, as far as speed and memory depend on it."""

    name: str
    shape: Shape
    weight_bytes: int
    positions: int
    """Of its window; 0: unknown."""

    @property
    def bytes_per_token(self) -> int:
        """Keys and values of a token in all layers."""
        shape = self.shape
        return 2 * shape.cache_width * shape.layers * shape.bytes_per_value


def model_size(name: str, dtype: str) -> ModelSize:
    """The sizes of a known shape, or of a model as `load_reader` takes it.

    Raises:
        ReaderError: its configuration cannot be read, or is no decoder-only language model's.
    """
    config = shapes.config_of(name) if name in SHAPES else config_of(locate(name))
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
        shape = Shape.of(model)
    except (ValueError, AttributeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ReaderError(
            f"model {name}: no decoder-only language model that can be counted ({reason})"
        ) from error
    weights = sum(one.numel() * one.element_size() for one in model.parameters())
    text = config.get_text_config()
    return ModelSize(name, shape, weights, getattr(text, "max_position_embeddings", None) or 0)
