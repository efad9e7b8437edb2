"""The text side of a model in a GGUF file, for an engine that reads the weights itself."""

from pathlib import Path

from flashback.declared import AUTO
from flashback.errors import ReaderError, SettingsError
from flashback.readers.gguf import GgufFile
from flashback.readers.load import load_tokenizer, locate
from flashback.readers.text_reader import TextReader
from flashback.readers.weight_settings import Weights

_WINDOW = 8192
"""The most positions that nobody asked for: llama.cpp takes the memory for all of them at once."""


def check_llama(adapter: str | Path | None, weights: Weights, dtype: str) -> None:
    """Refuse what llama.cpp does not have, before anything is loaded.

    Raises:
        SettingsError: an adapter, weights to be laid out, or another dtype than float32.
    """
    if adapter is not None and str(adapter) != AUTO:
        raise SettingsError(
            f"--adapter={str(adapter)!r}: llama.cpp runs a GGUF file as it is; merge the adapter "
            "(`flashback export`) and convert the result to GGUF"
        )
    if weights is not Weights.FULL:
        raise SettingsError(
            f"--weights='{weights}': llama.cpp's weights are as in the file; leave it out"
        )
    if dtype not in ("auto", "float32"):
        raise SettingsError(
            f"--dtype={dtype!r}: with llama.cpp it is that of keys and values; expected float32, "
            "or auto for float16 unless the file has float32 weights"
        )


def load_gguf_reader(name: str, window: int | None = None) -> tuple[TextReader, GgufFile]:
    """A reader without its model, and the file that has it.

    Args:
        name: a GGUF file, a folder with one, or an installed model.
        window: use so many positions; None: the model's, up to a limit.

    Raises:
        ReaderError: it is missing, damaged, or no GGUF file.
        SettingsError: the model has fewer positions.
    """
    file = locate(name).gguf
    if file is None:
        raise ReaderError(
            f"model {name} is no GGUF file, which --engine='llama.cpp' needs; give one, or use "
            "--engine='local'"
        )
    size, reason = int(file.word("context_length") or _WINDOW), "the model's positions"
    if window is not None:
        if not 1 <= window <= size:
            raise SettingsError(f"--window={window}: expected 1 to {size} ({reason})")
        size, reason = window, "as asked"
    elif size > _WINDOW:
        size, reason = _WINDOW, f"of the model's {size}; more with --window"
    reader = TextReader(
        name=name,
        tokenizer=load_tokenizer(name),
        window=size,
        window_reason=reason,
        ends=frozenset(file.ends),
        place="llama.cpp",
    )
    return reader, file
