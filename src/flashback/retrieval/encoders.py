"""Encoders: texts to vectors. A new one is a file and a line here.

Symbols: N texts, D dimensions.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flashback.declared import Registry
from flashback.errors import ReaderError
from flashback.retrieval import onnx_encoder, sentence_encoder, static_encoder

Vectors = NDArray[np.float32]

_SAME = 0.99
"""The least cosine of two vectors of one text by one encoder, on any machine."""


class Encoder(Protocol):
    """Gives texts of similar meaning vectors of a small angle. Safe to share between threads."""

    @property
    def name(self) -> str:
        """What `load_encoder` loads it by again; kept in an index."""
        ...

    @property
    def dimension(self) -> int:
        """D."""
        ...

    def encode(self, texts: Sequence[str], *, query: bool = False) -> Vectors:
        """Vectors (N, D) of any length; that of a text without a known token is zero.

        Args:
            query: the texts are queries, which some encoders read in another way than passages.
        """
        ...


ENCODERS: Registry[Callable[[], Encoder]] = Registry("encoder")
"""By name. Any other name is a folder or file of ONNX, or a model of sentence-transformers."""

ENCODERS.register(static_encoder.NAME, static_encoder.StaticEncoder)


def load_encoder(name: str, device: str = "auto") -> Encoder:
    """An encoder by its name.

    Args:
        name: one of `ENCODERS`; `onnx:` and a folder or file; or a model of sentence-transformers,
            a folder or a hub name.
        device: where it runs; auto: on a GPU if there is one. Those of `ENCODERS` run on the CPU.

    Raises:
        ReaderError: its package is not installed, or it is missing or unusable.
    """
    if name in ENCODERS:
        return ENCODERS[name]()
    if name.startswith(onnx_encoder.PREFIX):
        return onnx_encoder.OnnxEncoder(name.removeprefix(onnx_encoder.PREFIX), device)
    return sentence_encoder.SentenceEncoder(name, device)


def encode(encoder: Encoder, texts: Sequence[str], *, query: bool = False) -> Vectors:
    """Unit vectors (N, D), or zeros, of texts by an encoder that may be anybody's.

    Raises:
        ReaderError: it gives something else.
    """
    found = np.asarray(encoder.encode(texts, query=query), np.float32)
    expected = len(texts), encoder.dimension
    if found.shape != expected or not np.isfinite(found).all():
        raise ReaderError(
            f"encoder {encoder.name}: gave an array of shape {found.shape}; expected finite "
            f"numbers of shape {expected}"
        )
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    return (found / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def same_vector(encoder: Encoder, text: str, vector: Sequence[float] | Vectors) -> bool:
    """Whether a stored vector (D,) of a passage is what the encoder gives it.

    Raises:
        ReaderError: the encoder gives something else than vectors.
    """
    stored = np.asarray(vector, np.float32).ravel()
    (now,) = encode(encoder, [text])
    return float(stored @ now) >= _SAME * float(np.linalg.norm(stored))
