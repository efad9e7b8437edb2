"""Figures written so that a full disk leaves the old one."""

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from flashback.errors import SettingsError
from flashback.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def check_plot(path: Path) -> None:
    """Refuse a path to which no figure can be written.

    Raises:
        SettingsError: matplotlib is not installed or does not know the suffix, or see
            `check_writable`.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SettingsError(
            "--plot needs matplotlib; pip install '.[bench]' in a clone of the project"
        ) from None
    known = Figure().canvas.get_supported_filetypes()
    if path.suffix[1:] not in known:
        raise SettingsError(
            f"--plot={str(path)!r}: expected a name ending in one of {', '.join(known)}"
        )
    check_writable("--plot", path)


def check_writable(flag: str, path: Path) -> None:
    """Refuse a path to which no file can be written.

    Args:
        flag: the option that names it.

    Raises:
        SettingsError: its folder is missing or not writable, or the path is a folder or a device.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise SettingsError(f"{flag}={str(path)!r}: no such folder as {path.parent}")
    if path.exists() and not path.is_file():  # a device would be replaced
        raise SettingsError(
            f"{flag}={str(path)!r}: exists and is not a file; expected a file's name"
        )
    if not os.access(folder, os.W_OK):
        raise SettingsError(f"{flag}={str(path)!r}: {path.parent} is not writable")


def save_figure(figure: "Figure", path: Path, dpi: int = 100) -> None:
    """Write a figure; its format is the path's suffix.

    Raises:
        OSError: it cannot be written; `path` is then as it was.
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix[1:], dpi=dpi)
    write_atomically(path, drawn.getvalue())
