"""A completion as an OpenAI-compatible server is asked for it: everything said, nothing left to it.

A server fills what is not said from its model's generation configuration, so every setting is sent.
Ends of texts and stop texts are the writing's affair; the server is told the ids that end a text
only so that it computes nothing behind them.
"""

import json
from collections.abc import Sequence

import numpy as np

from flashback.engines.openai_wire import Record
from flashback.sampling import Sampler

_NEVER = -100.0
"""The least bias that OpenAI's API takes."""


def body_of(
    model: str, ids: Sequence[int], max_tokens: int, sampler: Sampler, salt: str = ""
) -> Record:
    """The request for a streamed completion of token ids."""
    settings = sampler.settings
    body: Record = {
        "model": model,
        "prompt": list(ids),
        "max_tokens": max_tokens,
        "temperature": 0.0 if settings.greedy else settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k or -1,
        "min_p": settings.min_p,
        "repetition_penalty": settings.repetition_penalty,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "ignore_eos": True,
        "stop_token_ids": sorted(sampler.ends),
        "return_token_ids": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if not settings.greedy:
        body["seed"] = seed_of(settings.seed, len(sampler.history))
    if sampler.forbidden:
        body["logit_bias"] = {str(token): _NEVER for token in sampler.forbidden}
    if sampler.constraint is not None:
        schema = {"name": "schema", "schema": json.loads(sampler.constraint.schema)}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    if salt:
        body["cache_salt"] = salt
    return body


def seed_of(seed: int, position: int) -> int:
    """The seed of one stride, of 31 bits as every server takes them: no two strides share one."""
    bits = np.random.Philox(key=seed, counter=[0, 0, 0, position])
    return int(bits.random_raw()) >> 33
