"""Encoder `wordllama`: the mean of a vector for each token, all inside a package of 16 MB.

Nothing is downloaded. The package's two files are read by the libraries that wrote them, as its own
code looks elsewhere for one of them and changes the program's logging.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashback.errors import ReaderError

NAME = "wordllama"
_TOKENIZER = "tokenizers/l2_supercat_tokenizer_config.json"
_VECTORS = "weights/l2_supercat_256.safetensors"


class StaticEncoder:
    """An `Encoder` that knows words and no order of them: D = 256, about 5,000 passages/s."""

    name = NAME

    def __init__(self) -> None:
        """Read the package's files.

        Raises:
            ReaderError: the package is not installed, or of a version without them.
        """
        self._tokenizer, self._vectors = _load(_folder())

    @property
    def dimension(self) -> int:
        """D."""
        return int(self._vectors.shape[1])

    def encode(self, texts: Sequence[str], *, query: bool = False) -> NDArray[np.float32]:
        """Mean vectors (N, D); queries are read as passages are."""
        found = np.zeros((len(texts), self.dimension), np.float32)
        encodings = self._tokenizer.encode_batch_fast([*texts], add_special_tokens=False)
        for row, encoding in zip(found, encodings, strict=True):
            if encoding.ids:
                row[:] = self._vectors[encoding.ids].mean(0, dtype=np.float32)
        return found


def _folder() -> Path:
    spec = find_spec("wordllama")
    if spec is None or spec.origin is None:
        raise ReaderError(
            "encoder wordllama: its package is not installed; install FlashBack with the extra "
            "dense: pip install '.[dense]' in a clone of the project"
        )
    return Path(spec.origin).parent


def _load(folder: Path) -> tuple[Any, NDArray[np.float16]]:
    """The tokenizer, and a vector for each of its tokens (V, D)."""
    from safetensors import safe_open
    from tokenizers import Tokenizer

    if not all((folder / name).is_file() for name in (_TOKENIZER, _VECTORS)):
        raise ReaderError(
            f"encoder wordllama: no {_TOKENIZER} and {_VECTORS} in {folder}; expected those of "
            "version 0.4; install the extra dense again"
        )
    tokenizer = Tokenizer.from_file(str(folder / _TOKENIZER))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    with safe_open(str(folder / _VECTORS), framework="np") as file:
        return tokenizer, file.get_tensor("embedding.weight")
