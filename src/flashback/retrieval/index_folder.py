"""An index on disk: one folder, whole or absent.

    IDX/
    ├── flashback-index.json      the manifest: the data folder's name, its files' checksums
    ├── flashback-data-XXXXXXXX/  the search library's own files
    └── flashback-part/           vectors of an interrupted build, see `vector_parts`

A new version is written into a new data folder; replacing the manifest switches over to it in one
step. A changed version begins as links to the files of the one before, which never change; what is
written new is all it costs. Whatever the manifest does not name is debris of an interrupted build
and is cleared by the next one.
"""

import contextlib
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from flashback.errors import IndexFolderError
from flashback.files import (
    folder_locked,
    fresh_folder,
    remove_folder,
    sync_files,
    write_atomically,
)

MANIFEST = "flashback-index.json"
FORMAT = 3
PART = "flashback-part"
"""What a build leaves for the next one if it is interrupted; gone once a version is published."""
_DATA_PREFIX = "flashback-data-"
T = TypeVar("T")


@dataclass(frozen=True)
class StoredFile:
    """A file of the data folder, as it was when the index was finished."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Content:
    """Contents of an index and how it was made."""

    kind: str
    """The retriever that reads it."""
    counts: dict[str, int]
    settings: dict[str, Any]
    versions: dict[str, str]
    tokens_of: str = "none"
    """The reader whose tokens were counted when passages were cut; none: they were estimated."""
    detected: dict[str, Any] | None = None
    """Languages that were found in a sample, see `Detected`; None: the language was given."""


@dataclass(frozen=True)
class Manifest:
    """The manifest of an index folder."""

    content: Content
    data: str
    """The name of the data folder."""
    files: dict[str, StoredFile]
    format: int = FORMAT

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())

    @property
    def digest(self) -> str:
        """A short hash of the data folder's content."""
        sums = "\n".join(sorted(file.sha256 for file in self.files.values()))
        return hashlib.sha256(sums.encode()).hexdigest()[:16]


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of an index folder, and that its files have their sizes.

    Raises:
        IndexFolderError: missing, foreign, damaged, of another format, or incomplete.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise IndexFolderError(f"index {folder}: no such folder; make it with `flashback index`")
    if not path.is_file():
        raise IndexFolderError(
            f"index {folder}: no {MANIFEST} in it; this is no FlashBack index, or its building "
            "was interrupted; make it with `flashback index`"
        )
    try:
        record = json.loads(path.read_text("utf-8"))
        if record["format"] != FORMAT:
            raise IndexFolderError(
                f"index {folder}: format {record['format']}, but this version reads format "
                f"{FORMAT}; build it again with `flashback index`"
            )
        files = {name: StoredFile(**file) for name, file in record.pop("files").items()}
        manifest = Manifest(Content(**record.pop("content")), files=files, **record)
        manifest.content.counts.items()  # an object, or AttributeError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise IndexFolderError(
            f"index {folder}: {MANIFEST} is damaged ({error}); build the index again"
        ) from error
    _check_names(folder, manifest)
    _check_sizes(folder, manifest)
    return manifest


def _check_names(folder: Path, manifest: Manifest) -> None:
    """A manifest is input: its names must not lead out of the folder."""
    for name in (manifest.data, *manifest.files):
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
            raise IndexFolderError(f"index {folder}: {MANIFEST} names {name!r}, which is no file")


def _check_sizes(folder: Path, manifest: Manifest) -> None:
    if not manifest.files:
        raise IndexFolderError(f"index {folder}: {MANIFEST} names no files; build the index again")
    for name, stored in manifest.files.items():
        size = _size(folder / manifest.data / name)
        if size != stored.bytes:
            found = "is missing" if size is None else f"has {size} bytes"
            raise IndexFolderError(
                f"index {folder}: {manifest.data}/{name} {found}, expected {stored.bytes}; the "
                "index is damaged, build it again"
            )


def _size(path: Path) -> int | None:
    """The bytes of a file; None if there is none, also if it goes while it is looked at."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def verify(folder: str | Path, known: Manifest | None = None) -> Manifest:
    """Read every byte of an index and compare checksums.

    Args:
        known: a version that was verified; files that it shares are not read again.

    Raises:
        IndexFolderError: naming the first file that is not as it was written.
    """
    folder = Path(folder)
    return steadily(folder, lambda: _verify(folder, {} if known is None else known.files))


def _verify(folder: Path, known: Mapping[str, StoredFile]) -> Manifest:
    manifest = read_manifest(folder)
    for name, stored in manifest.files.items():
        if known.get(name) == stored:
            continue
        try:
            found = _sha256(folder / manifest.data / name)
        except OSError as error:
            raise IndexFolderError(
                f"index {folder}: {manifest.data}/{name} cannot be read: {error.strerror or error}"
            ) from error
        if found != stored.sha256:
            raise IndexFolderError(
                f"index {folder}: {manifest.data}/{name} has changed since it was written (its "
                "checksum differs); build the index again"
            )
    return manifest


def steadily(folder: Path, action: Callable[[], T]) -> T:
    """The result of what reads an index; it is tried again if a new version came meanwhile."""
    while True:
        before = _manifest_bytes(folder)
        try:
            return action()
        except IndexFolderError:
            if _manifest_bytes(folder) == before:
                raise


def _manifest_bytes(folder: Path) -> bytes | None:
    try:
        return (folder / MANIFEST).read_bytes()
    except OSError:
        return None


@contextlib.contextmanager
def new_version(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """A fresh data folder to write into; `publish` makes it the index.

    Leaving the block without having published removes it.

    Raises:
        IndexFolderError: the folder holds an index and `overwrite` is false, or something else.
    """
    check_target(folder, overwrite=overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    with _held(folder):
        yield fresh_folder(folder, _DATA_PREFIX)


@contextlib.contextmanager
def next_version(
    folder: Path, keeps: Callable[[str], bool] = lambda _: True
) -> Iterator[tuple[Manifest, Path]]:
    """The version that is there, and a fresh data folder with its files; see `new_version`.

    The files are links: what writes into the folder must replace files, never write into them.

    Args:
        keeps: whether the new version begins with a file of this name.

    Raises:
        IndexFolderError: there is no whole index, or another process is changing it.
    """
    read_manifest(folder)
    with _held(folder):
        manifest = read_manifest(folder)
        data = fresh_folder(folder, _DATA_PREFIX)
        for name in filter(keeps, manifest.files):
            _link(folder / manifest.data / name, data / name)
        yield manifest, data


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # not every file system has links
        shutil.copyfile(source, target)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """One process at a time; debris is cleared in the end."""
    with folder_locked(folder) as ours:
        if not ours:
            raise IndexFolderError(
                f"index {folder}: another process is building or changing it; wait for it"
            )
        try:
            yield
        finally:
            _clear_debris(folder)


def check_target(folder: Path, *, overwrite: bool) -> None:
    """Refuse to write an index where something else is.

    Raises:
        IndexFolderError: see `new_version`.
    """
    if folder.is_dir():
        if (folder / MANIFEST).exists():
            if not overwrite:
                raise IndexFolderError(
                    f"index {folder}: exists already; use --overwrite=True to replace it"
                )
        elif not all(_is_ours(path.name) for path in folder.iterdir()):
            raise IndexFolderError(
                f"index {folder}: the folder is not empty and no FlashBack index; choose another"
            )
    elif folder.exists():
        raise IndexFolderError(f"index {folder}: a file is in the way; choose another name")


def publish(folder: Path, data: Path, content: Content, before: Manifest | None = None) -> Manifest:
    """Seal a finished data folder: make it durable, then switch the manifest over to it.

    Args:
        before: the version that is there; checksums of files that are links to its are known.
    """
    known = {} if before is None else before.files
    old = data if before is None else folder / before.data
    files: dict[str, StoredFile] = {}
    for path in sorted(data.iterdir()):
        if path.name in known and path.samefile(old / path.name):
            files[path.name] = known[path.name]
            continue
        path.chmod(0o644)  # an index may be shared; the search library keeps some to itself
        files[path.name] = StoredFile(path.stat().st_size, _sha256(path))
    sync_files(data)
    manifest = Manifest(content, data.name, files)
    write_atomically(folder / MANIFEST, json.dumps(asdict(manifest), indent=2) + "\n")
    remove_folder(folder / PART)
    return manifest


def _is_ours(name: str) -> bool:
    """Whether a build, finished or not, leaves a file or folder of this name."""
    return name in (MANIFEST, PART) or name.startswith((_DATA_PREFIX, f".{MANIFEST}."))


def _clear_debris(folder: Path) -> None:
    """Remove what no manifest names: old versions, unfinished ones; a folder left empty, too.

    What an interrupted build left for the next one stays.

    The manifest is read from disk again: an interruption may come just after it changed.
    """
    kept = {MANIFEST, PART}
    if (folder / MANIFEST).exists():
        try:
            kept.add(json.loads((folder / MANIFEST).read_text("utf-8"))["data"])
        except (OSError, ValueError, KeyError, TypeError):
            return  # damaged: its data folder cannot be told from debris
    for path in folder.iterdir():
        if not _is_ours(path.name) or path.name in kept:
            continue
        if path.is_dir():
            remove_folder(path)
        else:
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty
        folder.rmdir()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
