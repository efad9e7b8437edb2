"""A reader with an adapter merged into it, by their names."""

from pathlib import Path

from flashback.declared import AUTO
from flashback.readers.adapter import put_on
from flashback.readers.card import read_card
from flashback.readers.load import MINI, load_reader
from flashback.readers.reader import Reader
from flashback.readers.shipped import adapter_path, shipped

ADAPTED = (MINI, "smollm2")
"""The readers that an adapter ships for."""


def adapter_folder(
    model: str, adapter: str | Path | None, pattern: str | None = None
) -> Path | None:
    """The adapter folder for a model; None: no adapter.

    Args:
        model: the name of the model.
        adapter: a folder, the name of one that ships, None, or `auto`: the one that ships for the
            model, if there is one.
        pattern: if given, `auto` is an adapter for this pattern or none at all.

    Raises:
        AdapterError: the adapter that ships is damaged.
    """
    if adapter is None or str(adapter) != AUTO:
        return None if adapter is None else adapter_path(adapter)
    folder = shipped(f"{model}-adapter") if model in ADAPTED else None
    if folder is None or not folder.is_dir():
        return None
    return folder if pattern in (None, read_card(folder).pattern) else None


def load_adapted(
    model: str = MINI,
    adapter: str | Path | None = AUTO,
    *,
    pattern: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    window: int | None = None,
    trust_remote_code: bool = False,
) -> Reader:
    """Load a reader with an adapter merged into it. See `load` and `adapter_folder`.

    Without a pattern, `auto` is an adapter for `flashback-mini` alone.

    Raises:
        FlashBackError: the model or the adapter is missing or unusable, or they are not a pair.
    """
    folder = adapter_folder(model, adapter, pattern or (None if model == MINI else AUTO))
    if folder is not None:
        read_card(folder)  # before a model is loaded, or even downloaded
    reader = load_reader(
        model, device=device, dtype=dtype, window=window, trust_remote_code=trust_remote_code
    )
    return reader if folder is None else put_on(reader, folder)
