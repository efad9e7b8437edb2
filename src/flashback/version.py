"""The version of the package, and of what it runs on."""

import platform
import sys

__version__ = "0.1.0"


def versions() -> dict[str, str]:
    """What decides a result besides the settings."""
    from importlib.metadata import version  # it takes a while, also for --help

    packages = ["torch", "transformers", "tokenizers", "tantivy", "numpy"]
    if "numba" in sys.modules:  # imported where it is to multiply
        packages.append("numba")
    return {
        "flashback": __version__,
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }
