"""A reader with its adapter as a plain checkpoint, for software that knows nothing of FlashBack."""

import os
import shutil
from pathlib import Path

from safetensors import SafetensorError

from flashback.errors import AdapterError
from flashback.files import fresh_folder, sync_files, sync_folder
from flashback.readers.reader import Reader


def export(reader: Reader, out: str | Path) -> None:
    """Write a reader's merged weights, marking rows included, and its tokenizer.

    The folder appears at once, whole.

    Raises:
        AdapterError: something is there already.
        OSError: it cannot be written.
    """
    out = Path(out)
    check_export(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = fresh_folder(out.parent, f".{out.name}.")
    try:
        _save(reader, unfinished)
        sync_files(unfinished)
        os.replace(unfinished, out)
        sync_folder(out.parent)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _save(reader: Reader, folder: Path) -> None:
    try:
        reader.model.save_pretrained(folder)
        reader.tokenizer.save_pretrained(folder)
    except SafetensorError as error:  # a full disk
        raise OSError(f"{folder}: {error}") from error
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)  # safetensors lets only the owner read


def check_export(out: Path) -> None:
    """Refuse to write over anything.

    Raises:
        AdapterError: the folder is there and not empty, or is a file.
    """
    if out.is_dir() and any(out.iterdir()):
        raise AdapterError(f"export {out}: the folder is not empty; choose another --out")
    if out.exists() and not out.is_dir():
        raise AdapterError(f"export {out}: a file is in the way; choose another --out")
