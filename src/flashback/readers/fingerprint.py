"""Hashes that tell models apart by their weights."""

import hashlib
import json

import torch
from transformers import PreTrainedModel

from flashback.engines.kernels.linear import named_weights
from flashback.readers.card import Base
from flashback.readers.reader import Reader

_SAMPLED = 64
"""Values of each weight that go into a model's fingerprint."""


@torch.no_grad()
def fingerprint(model: PreTrainedModel) -> str:
    """A hash of a model's weights, the same in every dtype; takes milliseconds.

    SHA-256 of its kind and of every weight's name, shape and 64 evenly spaced values as bfloat16:
    it tells models apart, also a model from its further training, and finds no single flipped bit.
    """
    digest = hashlib.sha256(str(model.config.model_type).encode())
    for name, weight in sorted(named_weights(model)):
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        flat = weight.detach().flatten()
        # In float32, the last of more than 2^24 rounds to the one behind it.
        last = flat.numel() - 1
        at = torch.linspace(0, last, min(_SAMPLED, flat.numel())).long().clamp_(max=last)
        sample = flat[at.to(flat.device)].to("cpu", torch.bfloat16)
        digest.update(sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def computation_of(model: PreTrainedModel) -> str:
    """`fingerprint`, and a hash of the settings that change outputs: rotations, norms, windows."""
    settings = {
        name: value
        for name, value in model.config.to_dict().items()
        if not name.startswith("_") and name not in _WITHOUT_EFFECT
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    return f"{fingerprint(model)}-{digest.hexdigest()[:16]}"


_WITHOUT_EFFECT = ("architectures", "dtype", "torch_dtype", "transformers_version", "use_cache")
"""Members of a configuration that may differ between loads of one model."""


def base_of(reader: Reader) -> Base:
    """The identity of a reader without an adapter."""
    return Base(reader.name, str(reader.model.config.model_type), fingerprint(reader.model))
