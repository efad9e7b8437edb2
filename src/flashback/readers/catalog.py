"""The readers that are on this machine: shipped, installed as packages, and in the hub's cache.

Their configurations are read, no weights, and never the network.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from flashback.engines.support import check_supported, support_of
from flashback.errors import FlashBackError
from flashback.patterns.registry import PATTERNS
from flashback.readers.installed import InstalledReader, installed_readers
from flashback.readers.load import MINI, Source, config_of, has_weights, locate, window_of
from flashback.readers.shipped import shipped


@dataclass(frozen=True)
class KnownReader:
    """A reader on this machine, as far as it is known without its weights."""

    name: str
    """What `--model` takes."""
    origin: str
    """Where it is from."""
    bytes: int
    """On disk."""
    architecture: str | None = None
    window: int | None = None
    patterns: tuple[str, ...] = ()
    """Those that it can have."""
    problem: str | None = None
    """Why it cannot be loaded, in one line."""


def known_readers() -> list[KnownReader]:
    """All readers on this machine; one that is damaged says so."""
    found = [_described(MINI, f"ships with {MINI.partition('-')[0]}", _size(shipped(MINI)))]
    found += [_installed(one) for one in installed_readers()]
    return found + list(_cached())


def _installed(reader: InstalledReader) -> KnownReader:
    origin = f"package {reader.package} {reader.version}"
    return _described(reader.name, origin, _size(reader.path))


def _described(name: str, origin: str, size: int, folder: Path | None = None) -> KnownReader:
    """What its configuration says.

    Args:
        folder: where its files are; None: where `--model` finds them.
    """
    try:
        source = locate(name) if folder is None else Source(name, str(folder))
        config = config_of(source)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        check_supported(model)
        slots = support_of(model).reserved_positions
        return KnownReader(
            *(name, origin, size, str(config.model_type), window_of(config, None)[0]),
            tuple(key for key, one in PATTERNS.items() if slots or not one.isolated),
        )
    except FlashBackError as error:
        return KnownReader(name, origin, size, problem=error.for_command_line)
    except Exception as error:  # whatever is wrong with a model of someone else's
        found = " ".join(str(error).split())[:200]
        return KnownReader(name, origin, size, problem=f"{found} ({type(error).__name__})")


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(one.stat().st_size for one in files if one.is_file())


def _cached() -> Iterator[KnownReader]:
    """The decoder-only models in the hub's cache, of their newest revision with weights."""
    try:
        from huggingface_hub import scan_cache_dir

        repositories = sorted(scan_cache_dir().repos, key=lambda one: one.repo_id)
    except Exception:  # no package, no cache, or none that can be read
        return
    for one in repositories:
        revisions = sorted(one.revisions, key=lambda revision: -revision.last_modified)
        folders = [revision.snapshot_path for revision in revisions]
        folder = next((path for path in folders if _has_model(path)), None)
        if one.repo_type == "model" and folder is not None and _decodes(folder):
            yield _described(one.repo_id, "hub cache", one.size_on_disk, folder)


def _has_model(folder: Path) -> bool:
    return folder.is_dir() and has_weights(folder) and (folder / "config.json").is_file()


def _decodes(folder: Path) -> bool:
    """Whether its configuration names a decoder-only model, or cannot be read."""
    try:
        config: Any = config_of(Source(folder.name, str(folder)))
    except FlashBackError:
        return True  # which is said
    classes = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()}
    named = config.architectures
    decodes = bool(classes & {*named}) if named else config.model_type in _DECODERS
    return decodes and not config.is_encoder_decoder


_DECODERS = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
