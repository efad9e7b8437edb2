"""Tiny seeded models of many families, made from configurations: no downloads, milliseconds."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM as Auto
from transformers import (
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    MptConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedModel,
    Qwen3Config,
)

VOCABULARY = 300
POSITIONS = 192
SLIDING_WINDOW = 24
"""Shorter than the contexts of the tests."""

_ROTARY: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_GROUPED = _ROTARY | {"num_key_value_heads": 2}

_CONFIGS: dict[str, Callable[[], Any]] = {
    "opt": lambda: OPTConfig(
        **{k: v for k, v in _ROTARY.items() if k != "intermediate_size"},
        ffn_dim=48,
        word_embed_proj_dim=32,
    ),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=POSITIONS,
        bos_token_id=0,
        eos_token_id=1,
    ),
    "llama": lambda: LlamaConfig(**_GROUPED),
    "qwen3": lambda: Qwen3Config(**_GROUPED, head_dim=8),
    "mistral": lambda: MistralConfig(**_GROUPED, sliding_window=SLIDING_WINDOW),
    "gemma2": lambda: Gemma2Config(**_GROUPED, head_dim=8, sliding_window=SLIDING_WINDOW),
    "gemma3": lambda: Gemma3TextConfig(
        **_GROUPED | {"num_hidden_layers": 3},
        head_dim=8,
        sliding_window=SLIDING_WINDOW,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    ),
    "gpt_oss": lambda: GptOssConfig(
        **_GROUPED,
        head_dim=8,
        sliding_window=SLIDING_WINDOW,
        layer_types=["sliding_attention", "full_attention"],
        num_local_experts=4,
        num_experts_per_tok=2,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10_000.0,
            "factor": 4.0,
            "original_max_position_embeddings": POSITIONS // 4,
        },
    ),
    "gpt_neox": lambda: GPTNeoXConfig(**_ROTARY),
    "falcon": lambda: FalconConfig(
        **{k: v for k, v in _ROTARY.items() if k != "intermediate_size"}
    ),
    "phi": lambda: PhiConfig(**_ROTARY),
    "bloom": lambda: BloomConfig(
        vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1
    ),
}

_BY_COLUMN: dict[str, Callable[[], Any]] = {
    "gpt_neo": lambda: GPTNeoConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        max_position_embeddings=POSITIONS,
        attention_types=[[["global", "local"], 1]],
        window_size=SLIDING_WINDOW,
        bos_token_id=0,
        eos_token_id=1,
    ),
    "mpt": lambda: MptConfig(
        vocab_size=VOCABULARY, d_model=32, n_layers=2, n_heads=4, max_seq_len=POSITIONS
    ),
}

ENGINE_FAMILIES = tuple(_CONFIGS)
"""The engine computes them exactly."""
FAMILIES = tuple(name for name in ENGINE_FAMILIES if name != "gpt_oss")
"""Of these, training and the count of operations are checked, too: no mixtures of experts."""
BY_COLUMN = tuple(_BY_COLUMN)
"""They measure a window or a distance in columns of the cache, hidden ones among them."""
SLIDING = ("mistral", "gemma2", "gemma3", "gpt_oss")
SLOTTED = tuple(name for name in ENGINE_FAMILIES if name != "mistral")
"""They can have a slot: not every layer sees a sliding window only."""
JOINED = tuple(name for name in FAMILIES if name not in (*SLIDING, "bloom", "falcon"))
"""A slot's passage shares a pass with the tokens behind it.

Bloom takes no positions; Falcon computes attention itself.
"""


def tiny_config(family: str) -> Any:
    """The configuration of a tiny model of a family."""
    return (_CONFIGS | _BY_COLUMN)[family]()


def tiny_model(family: str, seed: int = 0, **changes: object) -> PreTrainedModel:
    """A random model whose logits differ clearly between tokens and positions.

    Args:
        changes: of its configuration.
    """
    torch.manual_seed(seed)
    config = tiny_config(family)
    config = type(config)(**config.to_dict() | changes)
    model: PreTrainedModel = Auto.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:  # the usual initialisation is too flat to tell mistakes
                parameter.mul_(4)
    model.eval()
    return model
