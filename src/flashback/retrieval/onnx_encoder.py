"""Encoders in the format ONNX, run by onnxruntime: `onnx:FOLDER`, `onnx:FOLDER/NAME.onnx`.

A folder is laid out as sentence-transformers has it, with the model as model.onnx or
onnx/model.onnx, and tokenizer.json. Its own `backend="onnx"` needs optimum, which knows no current
transformers. PyTorch is not needed.

Symbols: N texts, T tokens of the longest, D dimensions.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashback.errors import ReaderError

PREFIX = "onnx:"
_FILES = "model.onnx", "onnx/model.onnx"
_TOKENIZER = "tokenizer.json"
_TOGETHER = 32
"""Texts in a pass."""
_LONGEST = 512
"""Tokens of a text, where the folder says nothing."""
_MODULES = {"Transformer", "Pooling", "Normalize"}
"""What is known of sentence-transformers' modules; all vectors are made of unit length later."""
_POOLED = "sentence_embedding"
"""The output of a model that pools by itself."""
_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


class OnnxEncoder:
    """An `Encoder` that runs a model file. Safe to share between threads."""

    def __init__(self, path: str, device: str = "auto") -> None:
        """Load a model.

        Args:
            path: a folder, or a model file in it or in its folder onnx/.
            device: auto, cpu or cuda; see `load_encoder`.

        Raises:
            ReaderError: onnxruntime is not installed, or something is missing or unusable.
        """
        self.name = PREFIX + str(Path(path).resolve())
        folder, file = self._found(Path(path))
        try:
            self._tokenizer = _tokenizer(folder)
            self._prompts = _record(folder / "config_sentence_transformers.json").get("prompts", {})
            self._mean = _pools_by_mean(folder)
            self._session = _session(file, device)
            self.dimension = int(self._run(["a"]).shape[1])
        except ModuleNotFoundError as error:
            raise ReaderError(
                f"encoder {self.name}: needs {error.name}; install FlashBack with the extra onnx: "
                "pip install '.[onnx]' in a clone of the project"
            ) from None
        except Exception as error:  # those of onnxruntime and tokenizers have no base
            reason = " ".join(str(error).split())[:300]
            raise ReaderError(
                f"encoder {self.name}: cannot be loaded ({reason}); expected a model of "
                "sentence-transformers, exported to ONNX"
            ) from error

    def encode(self, texts: Sequence[str], *, query: bool = False) -> NDArray[np.float32]:
        """Vectors (N, D)."""
        names = ("query",) if query else ("document", "passage", "corpus")
        prompt = next((self._prompts[name] for name in names if name in self._prompts), None) or ""
        order = sorted(range(len(texts)), key=lambda at: len(texts[at]))  # less padding
        found = np.zeros((len(texts), self.dimension), np.float32)
        for start in range(0, len(order), _TOGETHER):
            some = order[start : start + _TOGETHER]
            found[some] = self._run([prompt + texts[at] for at in some])
        return found

    def _run(self, texts: list[str]) -> NDArray[np.float32]:
        """Vectors (N, D) of a pass."""
        encodings = self._tokenizer.encode_batch(texts)
        columns = {
            "input_ids": [one.ids for one in encodings],
            "attention_mask": [one.attention_mask for one in encodings],
            "token_type_ids": [one.type_ids for one in encodings],
        }  # (N, T) each
        names = [given.name for given in self._session.get_inputs()]
        outputs = [given.name for given in self._session.get_outputs()]
        wanted = _POOLED if _POOLED in outputs else outputs[0]
        given = {name: np.array(columns[name], np.int64) for name in names}
        (states,) = self._session.run([wanted], given)
        if states.ndim == 2:
            return np.asarray(states, np.float32)
        if not self._mean:
            return np.asarray(states[:, 0], np.float32)
        mask = np.array(columns["attention_mask"], np.float32)[:, :, None]  # (N, T, 1)
        total = (states * mask).sum(1) / np.maximum(mask.sum(1), 1)
        return np.asarray(total, np.float32)

    def _found(self, path: Path) -> tuple[Path, Path]:
        """The folder with the tokenizer, and the model's file."""
        files = [path / name for name in _FILES] if path.is_dir() else [path]
        for file in filter(Path.is_file, files):
            for folder in (file.parent, file.parent.parent):
                if (folder / _TOKENIZER).is_file():
                    return folder, file
        raise ReaderError(
            f"encoder {self.name}: expected {_TOKENIZER} and {' or '.join(_FILES)} in a folder, or "
            "a file NAME.onnx beside that tokenizer"
        )


def _session(file: Path, device: str) -> Any:
    import onnxruntime

    there = onnxruntime.get_available_providers()
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device {device!r}: expected auto, cpu or cuda")
    if device == "cuda" and _CUDA not in there:
        raise ValueError(f"device 'cuda': found {', '.join(there)}; install onnxruntime-gpu")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # what goes wrong is raised
    # Threads that wait for more work would take the reader's cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers = [_CPU] if device == "cpu" or _CUDA not in there else [_CUDA, _CPU]
    return onnxruntime.InferenceSession(str(file), options, providers=providers)


def _tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / _TOKENIZER))
    about = _record(folder / "tokenizer_config.json")
    pad = about.get("pad_token") or "[PAD]"
    pad = str(pad["content"] if isinstance(pad, dict) else pad)
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(pad) or 0, pad_token=pad)
    own = _record(folder / "sentence_bert_config.json").get("max_seq_length")
    longest = own or min(int(about.get("model_max_length", _LONGEST)), _LONGEST)
    tokenizer.enable_truncation(int(longest))
    return tokenizer


def _pools_by_mean(folder: Path) -> bool:
    """Whether a text's vector is the mean of its tokens' states; else it is the first one's.

    Raises:
        ValueError: it is something else.
    """
    modules = _record(folder / "modules.json", list)
    kinds = {str(module["type"]).rpartition(".")[2] for module in modules}
    if kinds - _MODULES:
        raise ValueError(f"it has modules {', '.join(sorted(kinds - _MODULES))}, which are unknown")
    about = _record(folder / "1_Pooling" / "config.json")
    old = "pooling_mode_"  # a field for each mode, in older folders
    modes = [name.removeprefix(old) for name, on in about.items() if name.startswith(old) and on]
    mode = about.get("pooling_mode", " and ".join(modes) or "mean")
    if mode not in ("mean", "mean_tokens", "cls", "cls_token"):
        raise ValueError(f"pooling mode {mode!r}; expected 'mean' or 'cls'")
    if not about.get("include_prompt", True):
        raise ValueError("it pools without the prompt, which is unknown")
    return bool(mode.startswith("mean"))


def _record(file: Path, kind: Any = dict) -> Any:
    """What a file of JSON says, or nothing if there is none.

    Raises:
        ValueError: it says something else.
    """
    if not file.is_file():
        return kind()
    found = json.loads(file.read_text("utf-8"))
    if not isinstance(found, kind):
        raise ValueError(f"{file.name}: found {type(found).__name__}, expected {kind.__name__}")
    return found
