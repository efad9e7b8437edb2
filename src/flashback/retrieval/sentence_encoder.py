"""Encoders of sentence-transformers, by hub name or folder."""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from flashback.errors import ReaderError

T = TypeVar("T")


class SentenceEncoder:
    """An `Encoder` that runs a model of sentence-transformers, with its prompts if it has any."""

    def __init__(self, name: str, device: str = "auto") -> None:
        """Load a model.

        Args:
            name: a folder, or a name on the Hugging Face hub; code in it is not run.
            device: auto, or one of PyTorch's.

        Raises:
            ReaderError: sentence-transformers is not installed, or the model is unusable.
        """
        self.name = full_name(name)
        self._model = loaded("encoder", name, partial(_open, device=device))
        self._lock = threading.Lock()

    @property
    def dimension(self) -> int:
        """D."""
        return int(self._model.get_embedding_dimension())

    def encode(self, texts: Sequence[str], *, query: bool = False) -> NDArray[np.float32]:
        """Vectors (N, D)."""
        with self._lock:  # its tokenizer is none for several threads
            read = self._model.encode_query if query else self._model.encode_document
            found = read([*texts], show_progress_bar=False, convert_to_numpy=True)
        return np.asarray(found, np.float32).reshape(len(texts), -1)


def full_name(name: str) -> str:
    """A name that means the same in every working folder."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def loaded(kind: str, name: str, load: Callable[[str], T]) -> T:
    """A model of sentence-transformers.

    Args:
        kind: what it is, for messages.
        name: a folder or a hub name.
        load: imports the library, and loads the model.

    Raises:
        ReaderError: the library is not installed, or the model is missing or unusable.
    """
    try:
        return load(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "sentence_transformers":
            raise
        raise ReaderError(
            f"{kind} {name}: needs sentence-transformers; "
            "pip install '.[sentence-transformers]' in a clone of the project"
        ) from None
    except Exception as error:  # the hub's, transformers' and safetensors' errors have no base
        reason = " ".join(str(error).split())[:300]
        raise ReaderError(
            f"{kind} {name}: cannot be loaded ({reason}); expected a folder or hub name of a model "
            "of sentence-transformers"
        ) from error


def _open(name: str, device: str) -> Any:
    from sentence_transformers import SentenceTransformer

    chosen = None if device == "auto" else device
    return SentenceTransformer(name, trust_remote_code=False, device=chosen)
