"""Figures written so that a full disk leaves the old one."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from flashback.errors import SettingsError
from flashback.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def check_plot(path: Path) -> None:
    """Whether a figure can be written there.

    Raises:
        SettingsError: matplotlib is not installed or does not know the suffix, there is no such
            folder, or something is there that is no file.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SettingsError(
            "--plot needs matplotlib; pip install '.[bench]' in a clone of the project"
        ) from None
    known = Figure().canvas.get_supported_filetypes()
    if path.suffix[1:] not in known:
        raise SettingsError(f"--plot {path}: expected a name ending in one of {', '.join(known)}")
    if not path.absolute().parent.is_dir():
        raise SettingsError(f"--plot {path}: no such folder as {path.parent}")
    if path.exists() and not path.is_file():
        raise SettingsError(f"--plot {path}: is no file, but there; expected a file's name")


def save_figure(figure: "Figure", path: Path, dpi: int = 100) -> None:
    """Write a figure; its format is the path's suffix.

    Raises:
        OSError: it cannot be written; `path` is then as it was.
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix[1:], dpi=dpi)
    write_atomically(path, drawn.getvalue())
