"""Reader, adapter, engine and index put together: the short way in."""

from pathlib import Path

from flashback.adapter import fingerprint, put_on, read_card
from flashback.engines.local import LocalEngine
from flashback.engines.passage_store import PassageStore
from flashback.generation import Generator
from flashback.reader import MINI, Reader, load_reader, shipped
from flashback.retrieval.bm25 import BM25Index
from flashback.settings import Pattern

AUTO = "auto"
"""The adapter that ships for the reader, if there is one."""


def adapter_folder(
    model: str, adapter: str | Path | None, pattern: Pattern | None = None
) -> Path | None:
    """Which adapter folder is meant.

    Args:
        adapter: a folder, None, or `auto`.
        pattern: if given, `auto` is an adapter for this pattern or none at all.
    """
    if adapter is None or str(adapter) != AUTO:
        return None if adapter is None else Path(adapter)
    folder = shipped(f"{MINI}-adapter")
    if model != MINI or not folder.is_dir():
        return None
    return folder if pattern in (None, read_card(folder).pattern) else None


def load_adapted(
    model: str = MINI,
    adapter: str | Path | None = AUTO,
    *,
    pattern: Pattern | None = None,
    device: str = "auto",
    dtype: str = "auto",
    window: int | None = None,
    trust_remote_code: bool = False,
) -> Reader:
    """Load a reader with an adapter merged into it. See `load` and `adapter_folder`.

    Raises:
        FlashBackError: the model or the adapter is missing or unusable, or they are not a pair.
    """
    folder = adapter_folder(model, adapter, pattern)
    if folder is not None:
        read_card(folder)  # before a model is loaded, or even downloaded
    reader = load_reader(
        model, device=device, dtype=dtype, window=window, trust_remote_code=trust_remote_code
    )
    return reader if folder is None else put_on(reader, folder)


def load(
    model: str = MINI,
    index: str | Path | None = None,
    *,
    adapter: str | Path | None = AUTO,
    pattern: Pattern | None = None,
    passages_from: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    window: int | None = None,
    trust_remote_code: bool = False,
) -> Generator:
    """Load a reader and open an index, ready to write.

    Args:
        model: a hub name, a folder, or `flashback-mini`, which ships with the package.
        index: an index folder made by `flashback index`; None is enough for the pattern `none`.
        adapter: a folder made by `flashback train`; `auto`: what ships for the model, if anything;
            None: the model as it is.
        pattern: what will be written with; an adapter for another pattern is then not taken by
            `auto`.
        passages_from: a folder made by `flashback precompute`, for the pattern `slot`.
        device, dtype, window, trust_remote_code: see `load_reader`.

    Raises:
        FlashBackError: the model, the adapter, the index or the passages are missing or unusable.
    """
    store = None if passages_from is None else PassageStore.open(passages_from)
    retriever = None if index is None else BM25Index.open(index)
    reader = load_adapted(
        model,
        adapter,
        pattern=pattern,
        device=device,
        dtype=dtype,
        window=window,
        trust_remote_code=trust_remote_code,
    )
    if store is not None:
        store.check_reader(fingerprint(reader.model), reader.placement.dtype_name)
    engine = LocalEngine(reader.model, reader.window, passage_store=store)
    return Generator(reader, engine, retriever)
