"""Reader, engine and index put together: the short way in."""

from pathlib import Path

from flashback.engines.local import LocalEngine
from flashback.generation import Generator
from flashback.reader import MINI, load_reader
from flashback.retrieval.bm25 import BM25Index


def load(
    model: str = MINI,
    index: str | Path | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    window: int | None = None,
    trust_remote_code: bool = False,
) -> Generator:
    """Load a reader and open an index, ready to write.

    Args:
        model: a hub name, a folder, or `flashback-mini`, which ships with the package.
        index: an index folder made by `flashback index`; None is enough for the pattern `none`.
        device, dtype, window, trust_remote_code: see `load_reader`.

    Raises:
        FlashBackError: the model or the index is missing or unusable.
    """
    retriever = None if index is None else BM25Index.open(index)
    reader = load_reader(
        model, device=device, dtype=dtype, window=window, trust_remote_code=trust_remote_code
    )
    return Generator(reader, LocalEngine(reader.model, reader.window), retriever)
