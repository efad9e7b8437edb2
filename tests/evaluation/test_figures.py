"""A figure is written whole or not at all, and what stands in its way is said at once."""

from pathlib import Path

import pytest

from flashback.errors import SettingsError
from flashback.evaluation.figures import check_plot, save_figure

matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed")
from matplotlib.figure import Figure  # noqa: E402 - behind the check that it is there


def test_a_figures_format_is_its_suffix(tmp_path: Path) -> None:
    for suffix, beginning in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")):
        save_figure(Figure(), tmp_path / f"figure{suffix}")
        assert (tmp_path / f"figure{suffix}").read_bytes().startswith(beginning)


def test_a_full_disk_leaves_the_old_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "figure.png"
    path.write_bytes(b"the old one")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left") as error:
        save_figure(Figure(), path)
    assert error.value.filename == str(path)
    assert path.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("figure", "expected a name ending in one of"),
        ("figure.xyz", "expected a name ending in one of"),
        ("nowhere/figure.png", "no such folder"),
        ("folder.png", "exists and is not a file"),
    ],
)
def test_what_stands_in_the_way_is_said(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(SettingsError, match=message):
        check_plot(tmp_path / name)
