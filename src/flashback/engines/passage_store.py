"""Keys and values of many passages on disk, computed once: a passage in a slot then costs a read.

    STORE/
    ├── flashback-passages.json       what they belong to, and the files
    └── passages-00000.safetensors …  for each passage two tensors (layers, heads, tokens, D), keys
                                      and values, named by its ids' checksum; their own checksum in
                                      the metadata

The folder appears whole, at the end. Files are mapped, not read: only what is asked for is. What is
read is compared with its checksum, so that a flipped bit never reaches a reader.
"""

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from flashback.engines.cache.layers import States
from flashback.errors import PassageStoreError, SettingsError
from flashback.files import fresh_folder, sync_files, sync_folder, write_atomically
from flashback.patterns.prompt import Ids

MANIFEST = "flashback-passages.json"
FORMAT = 2
_PARTS = (".keys", ".values")
_SHARD_BYTES = 1 << 28


@dataclass(frozen=True)
class Owner:
    """What stored passages are good for."""

    reader: str
    """`computation_of` the model that encoded them, its adapter included."""
    dtype: str
    room: int
    """R: the positions before which they end."""


def name_of(passage: Ids) -> str:
    """The name of a passage's tensor."""
    return hashlib.sha256(repr(passage).encode()).hexdigest()[:32]


def write_store(
    folder: Path,
    owner: Owner,
    passages: Sequence[Ids],
    encode: Callable[[Ids], list[States]],
    on_passage: Callable[[], None] = lambda: None,
) -> None:
    """Encode passages, with their frames, and write them to a new folder.

    Raises:
        PassageStoreError: something is in the way, or it cannot be written; nothing is left.
    """
    check_free(folder)
    try:
        made = fresh_folder(folder.absolute().parent, f".{folder.name}.")
        try:
            files = _write_shards(made, passages, encode, on_passage)
            record = {"format": FORMAT, "owner": asdict(owner), "files": files}
            write_atomically(made / MANIFEST, json.dumps(record, indent=2) + "\n")
            sync_files(made)
            os.rename(made, folder)
            sync_folder(folder.absolute().parent)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PassageStoreError(f"passages {folder} cannot be written: {reason}") from error


def check_free(folder: Path) -> None:
    """Refuse to write where something is.

    Raises:
        PassageStoreError: a file or a folder.
    """
    if folder.exists():
        raise PassageStoreError(f"passages {folder}: exists already; choose another --out")
    if not folder.absolute().parent.is_dir():
        raise PassageStoreError(f"passages {folder}: no such folder as {folder.parent}")


def _write_shards(
    folder: Path,
    passages: Sequence[Ids],
    encode: Callable[[Ids], list[States]],
    on_passage: Callable[[], None],
) -> dict[str, int]:
    """Every file's name and bytes."""
    files: dict[str, int] = {}
    shard: dict[str, Tensor] = {}
    checksums: dict[str, str] = {}

    def finish() -> None:
        path = folder / f"passages-{len(files):05d}.safetensors"
        save_file(shard, path, checksums)
        path.chmod(0o644)
        files[path.name] = path.stat().st_size
        shard.clear()
        checksums.clear()

    held = 0
    for passage in dict.fromkeys(passages):
        name, parts = name_of(passage), _packed(encode(passage))
        shard |= {f"{name}{part}": tensor for part, tensor in zip(_PARTS, parts, strict=True)}
        checksums[name] = str(_checksum(parts))
        held += sum(tensor.nbytes for tensor in parts)
        on_passage()
        if held >= _SHARD_BYTES:
            finish()
            held = 0
    if shard:
        finish()
    return files


def _packed(states: Sequence[States]) -> States:
    """Keys and values, (layers, heads, tokens, D) each, on the CPU; D need not be the same."""
    keys, values = (torch.cat(part).cpu().contiguous() for part in zip(*states, strict=True))
    return keys, values


def _checksum(parts: States) -> int:
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part.view(torch.uint8).numpy().data, checksum)
    return checksum


class PassageStore:
    """Opened; passages are read one by one."""

    def __init__(self, folder: Path, owner: Owner, files: Sequence[Any]) -> None:
        self.folder = folder
        self.owner = owner
        self._files = {name: file for file in files for name in file.metadata() or {}}

    @classmethod
    def open(cls, folder: str | Path) -> "PassageStore":
        """Map the files of a folder.

        Raises:
            PassageStoreError: missing, foreign, damaged or of another format.
        """
        folder = Path(folder)
        try:
            record = json.loads((folder / MANIFEST).read_text("utf-8"))
            if record["format"] != FORMAT:
                raise PassageStoreError(
                    f"passages {folder}: format {record['format']}, but this version reads "
                    f"{FORMAT}; make them again with `flashback precompute`"
                )
            owner, sizes = Owner(**record["owner"]), dict(record["files"])
            return cls(folder, owner, [_mapped(folder, name, size) for name, size in sizes.items()])
        except FileNotFoundError:
            raise PassageStoreError(
                f"passages {folder}: no {MANIFEST} in it; make it with `flashback precompute`"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise PassageStoreError(
                f"passages {folder}: damaged ({error}); make them again with `flashback precompute`"
            ) from error

    def __len__(self) -> int:
        return len(self._files)

    def check_reader(self, reader: str, dtype: str) -> None:
        """Refuse passages of another reader.

        Raises:
            PassageStoreError: saying what differs.
        """
        found = self.owner
        if found.reader != reader:
            raise PassageStoreError(
                f"passages {self.folder} were encoded by another model, or with another adapter; "
                "make them for this one with `flashback precompute`"
            )
        if found.dtype != dtype:
            raise PassageStoreError(
                f"passages {self.folder} are {found.dtype}, but the reader is {dtype}; use --dtype "
                f"{found.dtype}, or make them anew with `flashback precompute`"
            )

    def check_room(self, room: int) -> None:
        """Refuse a slot that ends elsewhere.

        Raises:
            SettingsError: naming both lengths.
        """
        if room != self.owner.room:
            raise SettingsError(
                f"passages {self.folder} are for a slot of {self.owner.room} positions, but this "
                f"one has {room}; use the --passage-tokens and frame they were made with, and "
                "--passages 1"
            )

    def find(self, passage: Ids, device: torch.device) -> list[States] | None:
        """A passage's keys and values, layer by layer, (1, heads, tokens, D) each, or None.

        Raises:
            PassageStoreError: they have changed since they were written.
        """
        name = name_of(passage)
        if (file := self._files.get(name)) is None:
            return None
        keys, values = (file.get_tensor(f"{name}{part}") for part in _PARTS)
        if str(_checksum((keys, values))) != file.metadata()[name]:
            raise PassageStoreError(
                f"passages {self.folder}: a checksum differs, the file is damaged; make them again "
                "with `flashback precompute`"
            )
        each = zip(keys.to(device).split(1), values.to(device).split(1), strict=True)
        return [(one, other) for one, other in each]


def _mapped(folder: Path, name: str, size: int) -> Any:
    """A file of the store; a manifest is input, so its names must not lead out of the folder."""
    path = folder / name
    if Path(name).name != name:
        raise ValueError(f"{name!r} is no file of it")
    if not path.is_file() or path.stat().st_size != size:
        raise ValueError(f"{name} is missing or has another size")
    return safe_open(path, framework="pt")


def check_space(folder: Path, needed: int) -> None:
    """Refuse to begin what will not fit.

    Raises:
        PassageStoreError: fewer than `needed` bytes are free.
    """
    free = shutil.disk_usage(folder.absolute().parent).free
    if needed > free:
        raise PassageStoreError(
            f"passages {folder}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free; "
            "choose another disk, a smaller index, or lower --passage-tokens"
        )
