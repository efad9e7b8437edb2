"""What ships with the package, by name: a reader, and adapters. Without PyTorch."""

from importlib.resources import files
from pathlib import Path


def shipped(name: str) -> Path:
    """The folder of a reader or adapter that ships with the package; it may not exist."""
    return _weights() / name


def shipped_adapters() -> list[str]:
    """The names of the adapters that ship."""
    return sorted(path.name for path in _weights().glob("*-adapter"))


def adapter_path(adapter: str | Path) -> Path:
    """The folder of an adapter: that which is given, or of that name one that ships."""
    given = Path(adapter)
    own = str(adapter) in shipped_adapters() and not given.exists()
    return shipped(str(adapter)) if own else given


def _weights() -> Path:
    return Path(str(files("flashback") / "readers" / "weights"))
