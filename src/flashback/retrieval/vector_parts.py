"""Vectors of a dense build, kept while it runs: an interrupted one goes on where it was.

    IDX/flashback-part/
    ├── 0d…71.npy    the vectors of 1,024 passages, float16 (N, D)
    └── ...

A file is named by the hash of what its vectors are of: the encoder's name, its dimension and the
texts. So a build takes just those that are its own, whatever of its corpus, settings or encoder
changed meanwhile. The folder is gone once an index is whole.
"""

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flashback.files import remove_folder, write_atomically
from flashback.retrieval.encoders import Encoder, encode, same_vector

HalfVectors = NDArray[np.float16]

_TOGETHER = 256
"""Texts that are encoded together."""
_PART = 4 * _TOGETHER
"""Texts whose vectors are a file: what an interruption costs at most."""


class VectorParts:
    """The vectors of one build's texts, from its folder or from the encoder."""

    def __init__(self, folder: Path, encoder: Encoder) -> None:
        """Use a folder, which need not be there."""
        self._folder = folder
        self._encoder = encoder

    def ready(self, texts: Iterable[str]) -> int:
        """How many of the texts have vectors already; those of another encoder are removed.

        Raises:
            ReaderError: the encoder gives something else than vectors.
        """
        if not self._folder.is_dir():
            return 0
        kept = [
            (part[0], found) for part in _parts(texts) if (found := self._kept(part)) is not None
        ]
        if kept and not self._is_ours(*kept[0]):
            remove_folder(self._folder)  # a name may be given to another encoder
            return 0
        return sum(len(found) for _, found in kept)

    def vectors(
        self, texts: Iterable[str], advance: Callable[[int], None]
    ) -> Iterator[HalfVectors]:
        """The vectors (N, D) of all texts in their order, part by part, each kept once it is made.

        They are unit vectors, or zeros.

        Args:
            advance: called with how many more texts have their vectors.

        Raises:
            ReaderError: the encoder gives something else than vectors.
            OSError: the disk is full.
        """
        for part in _parts(texts):
            if (found := self._kept(part)) is not None:
                advance(len(part))
            yield self._made(part, advance) if found is None else found

    def _made(self, part: Sequence[str], advance: Callable[[int], None]) -> HalfVectors:
        batches = []
        for at in range(0, len(part), _TOGETHER):
            batches.append(encode(self._encoder, part[at : at + _TOGETHER]))
            advance(len(batches[-1]))
        made = np.concatenate(batches).astype(np.float16)
        content = io.BytesIO()
        np.save(content, made, allow_pickle=False)
        self._folder.mkdir(exist_ok=True)
        write_atomically(self._file(part), content.getvalue())
        return made

    def _kept(self, part: Sequence[str]) -> HalfVectors | None:
        """The vectors of a part that an earlier build made; None: there are none, or damaged."""
        try:
            found = np.load(self._file(part), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        good = found.dtype == np.float16 and found.shape == (len(part), self._encoder.dimension)
        return found if good and np.isfinite(found).all() else None

    def _is_ours(self, text: str, vectors: HalfVectors) -> bool:
        return same_vector(self._encoder, text, vectors[0].astype(np.float32))

    def _file(self, part: Sequence[str]) -> Path:
        sums = hashlib.blake2b(f"{self._encoder.name}\0{self._encoder.dimension}".encode())
        for text in part:
            sums.update(hashlib.blake2b(text.encode("utf-8", "surrogatepass")).digest())
        return self._folder / f"{sums.hexdigest()[:32]}.npy"


def _parts(texts: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(texts)
    while part := list(islice(rest, _PART)):
        yield part
