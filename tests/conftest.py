"""Fixtures shared by all tests; every test runs without network and away from the user's files."""

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Before anything imports a hub client.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

pytest.register_assert_rewrite("retrieval.contract")

# A suite in the background of a shell ignores Ctrl-C, and so would the programs that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


_LONGEST = (
    *("test_training", "test_packing", "test_parity", "test_batch", "test_learning"),
    *("test_cli_evaluate", "test_fixed_passes", "test_cli", "test_server_load", "test_index_crash"),
    *("test_one_row", "test_slot", "test_cli_questions"),
)
"""Files of ten seconds and more, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, so that no worker is left alone with one at the end."""
    order = {name: at for at, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path_factory.getbasetemp() / "home"
    home.mkdir(exist_ok=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / ".cache"))


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> Iterator[None]:
    """Tiny models are slower on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def _frozen_imports() -> None:
    """What is imported by now stays: collections, which Trainer asks for, need not look at it.

    Half a million objects of transformers took 0.4 s of each training.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny Llama with a byte-level tokenizer: a local model as a hub would give it."""
    from families import tiny_model
    from tiny_readers import byte_tokenizer

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny_model("llama").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a chat template and a window for pasted passages."""
    from families import tiny_model
    from servers import TEMPLATE
    from tiny_readers import byte_tokenizer

    folder = tmp_path_factory.mktemp("models") / "tiny-chat"
    tiny_model("llama", max_position_embeddings=640).save_pretrained(folder)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def small_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks measure the machine in milliseconds, where what it reaches is not tested."""
    monkeypatch.setattr("flashback.benchmark.ceilings._STREAM_BYTES", 1 << 16)
    monkeypatch.setattr("flashback.benchmark.ceilings._MATRICES", (64, 128))


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of the small corpus of `command_line`."""
    from command_line import index_notes

    return index_notes(tmp_path_factory.mktemp("indexed"))


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """The small corpus of `command_line`, as files."""
    from command_line import write_notes

    return write_notes(tmp_path / "notes")
