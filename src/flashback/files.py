"""Writing files and folders so that a crash leaves the old or the new, never half."""

import contextlib
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

if sys.platform != "win32":
    import fcntl


def write_atomically(path: Path, content: str | bytes, mode: int = 0o644) -> None:
    """Replace `path` by a file with this text or these bytes, durably.

    Args:
        mode: of the new file; by default all may read it.

    Raises:
        OSError: the disk is full or the folder not writable; `path` is then as it was.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with naming(path), open(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    sync_folder(path.parent)


def rewrite(path: Path, content: str) -> None:
    """Replace what a user's own file says; a new file is its user's alone to read.

    It keeps the mode that it has, and a link to it stays one.

    Raises:
        OSError: see `write_atomically`.
    """
    target = Path(os.path.realpath(path))
    try:
        mode = stat.S_IMODE(target.stat().st_mode)
    except FileNotFoundError:
        mode = 0o600
    write_atomically(target, content, mode)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of writing, which know no name, say which file they are about."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def fresh_folder(parent: Path, prefix: str) -> Path:
    """A new folder inside `parent` with a unique name, readable by all."""
    folder = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
    os.chmod(folder, 0o755)
    return folder


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is gone behind the block, even if a library's thread still wrote into it."""
    folder = Path(tempfile.mkdtemp(prefix="flashback-"))
    try:
        yield folder
    finally:
        remove_folder(folder)


def remove_folder(folder: Path) -> None:
    """Remove a folder as well as can be, even if a library's thread still writes into it."""
    for _ in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            break
        time.sleep(0.01)  # a file came between emptying the folder and removing it


@contextlib.contextmanager
def folder_locked(folder: Path) -> Iterator[bool]:
    """Hold a folder for this process; whether that was possible (always, where unsupported)."""
    if sys.platform == "win32":
        yield True
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        yield False
    else:
        yield True
    finally:
        os.close(handle)  # and with it the lock


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable (a no-op where the system cannot)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sync_files(folder: Path) -> None:
    """Make the files directly in a folder, and their names, durable."""
    for path in folder.iterdir():
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)
