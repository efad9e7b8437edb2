"""llama.cpp in this process, by llama-cpp-python's low-level functions: a model and its memory.

Knows token ids, positions and cells. Knows nothing of prompts or passages.

A *cell* holds the keys and values of one token. All sequences share the cells of one memory: a
token sees the cells that are tagged with its sequence, at positions up to its own. Tagging and
untagging copies nothing; a cell without tags is free.
"""

import ctypes
import struct
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flashback.errors import FlashBackError, ReaderError, UnsupportedReader

_ERROR = 3
"""The level of llama.cpp's lines about errors."""
_MOST_BATCH, _PAD = 2048, 256
_errors: deque[str] = deque(maxlen=4)
_callbacks: list[Any] = []
"""Functions that llama.cpp may call: they live as long as the process."""


class NoCells(Exception):
    """The memory has not enough free cells; nothing has changed."""


def library() -> ModuleType:
    """llama-cpp-python, silent.

    Raises:
        FlashBackError: it is not installed, or its library cannot be loaded.
    """
    try:
        import llama_cpp
    except (ImportError, RuntimeError, OSError) as error:
        raise FlashBackError(
            f"--engine='llama.cpp' needs llama-cpp-python ({error}); install FlashBack with the "
            "extra llama: pip install '.[llama]' in a clone of the project"
        ) from None
    if not _callbacks:

        def note(level: int, text: bytes, _: object) -> None:
            if level == _ERROR:
                _errors.append(text.decode("utf-8", "replace").strip())

        _callbacks.append(llama_cpp.llama_log_callback(note))
        llama_cpp.llama_log_set(_callbacks[0], ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
    found: ModuleType = llama_cpp
    return found


def _reason() -> str:
    """What llama.cpp said last, without the name of its function."""
    found = next((line for line in reversed(_errors) if line), "no reason given")
    return found.partition(": ")[2] or found


@dataclass(frozen=True)
class Shape:
    """What decides the size and the speed of a memory."""

    cells: int
    sequences: int
    exact: bool
    """Keys and values in float32, not float16."""
    threads: int


class LlamaModel:
    """The weights in a GGUF file."""

    def __init__(self, path: str, name: str, *, gpu: bool) -> None:
        """Load it.

        Args:
            path: the file.
            name: as users name it.
            gpu: run on a GPU, if this build of llama.cpp has one.

        Raises:
            ReaderError: llama.cpp cannot read it.
            UnsupportedReader: it keeps a state that cannot be cut back to a prefix.
        """
        self.lib: Any = library()
        self.name = name
        settings = self.lib.llama_model_default_params()
        if not gpu:
            settings.n_gpu_layers = 0
        _errors.clear()
        self.handle = self.lib.llama_model_load_from_file(path.encode(), settings)
        if not self.handle:
            raise ReaderError(f"model {name}: llama.cpp cannot read it: {_reason()}")
        weakref.finalize(self, self.lib.llama_model_free, self.handle)
        self.on_gpu = gpu and bool(self.lib.llama_supports_gpu_offload())
        self.vocabulary = int(
            self.lib.llama_vocab_n_tokens(self.lib.llama_model_get_vocab(self.handle))
        )
        self.slides = int(self.lib.llama_model_n_swa(self.handle)) > 0
        """Whether some layers see only a window of the last tokens."""
        self._check()

    def _check(self) -> None:
        lib = self.lib
        if lib.llama_model_is_recurrent(self.handle) or lib.llama_model_is_hybrid(self.handle):
            raise UnsupportedReader(
                f"model {self.name} keeps a recurrent state, which cannot be cut back to a prefix; "
                "expected an attention-only model"
            )
        if lib.llama_model_has_encoder(self.handle) or lib.llama_model_is_diffusion(self.handle):
            raise UnsupportedReader(f"model {self.name} is no decoder-only language model")

    def cell_bytes(self, exact: bool) -> int:
        """Of the keys and values of one token, about."""
        lib = self.lib
        head = lib.llama_model_n_embd(self.handle) // lib.llama_model_n_head(self.handle)
        width = lib.llama_model_n_head_kv(self.handle) * head
        return int(2 * lib.llama_model_n_layer(self.handle) * width * (4 if exact else 2))


class LlamaContext:
    """The cells of a model, and the passes over them."""

    def __init__(self, model: LlamaModel, shape: Shape) -> None:
        """Make the cells.

        Raises:
            ReaderError: there is not enough memory for them.
        """
        self.model, self.lib = model, model.lib
        self.cells = -(-shape.cells // _PAD) * _PAD
        settings = self.lib.llama_context_default_params()
        settings.n_ctx, settings.n_batch = self.cells, min(self.cells, _MOST_BATCH)
        settings.n_seq_max, settings.kv_unified = shape.sequences, True
        settings.n_outputs_max = shape.sequences
        settings.n_threads = settings.n_threads_batch = shape.threads
        if shape.exact:
            settings.type_k = settings.type_v = self.lib.GGML_TYPE_F32
        if not model.on_gpu:
            settings.flash_attn_type = self.lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        _errors.clear()
        self.handle = self.lib.llama_init_from_model(model.handle, settings)
        if not self.handle:
            size = self.cells * model.cell_bytes(shape.exact) / (1 << 20)
            raise ReaderError(
                f"model {model.name}: llama.cpp cannot make {self.cells} cells of keys and values "
                f"({size:.0f} MiB): {_reason()}; use a smaller --window"
            )
        weakref.finalize(self, self.lib.llama_free, self.handle)
        self.memory = self.lib.llama_get_memory(self.handle)
        self._batch = _Batch(self.lib, int(settings.n_batch))

    def decode(
        self, sequence: int, ids: Sequence[int], first: int, *, logits: bool
    ) -> Tensor | None:
        """Compute the next tokens of a sequence; they must fit a pass.

        Args:
            sequence: its number.
            ids: at least one, at most `pass_tokens`.
            first: the position of the first.
            logits: whether those of the last one are wanted.

        Returns:
            The logits, (V,); valid until the next pass.

        Raises:
            NoCells: too few are free.
            ReaderError: the pass failed.
        """
        _errors.clear()
        code = self.lib.llama_decode(self.handle, self._batch.of(sequence, ids, first, logits))
        if code == 1:
            raise NoCells
        if code:
            raise ReaderError(
                f"model {self.model.name}: a pass of llama.cpp failed ({code}): {_reason()}"
            )
        if not logits:
            return None
        found = self.lib.llama_get_logits_ith(self.handle, -1)
        return torch.from_numpy(np.ctypeslib.as_array(found, shape=(self.model.vocabulary,)))

    @property
    def pass_tokens(self) -> int:
        """The most tokens of a pass."""
        return self._batch.size

    def tag(self, source: int, target: int, start: int, end: int) -> None:
        """Tag a sequence's cells at positions [start, end) with another sequence, too."""
        self.lib.llama_memory_seq_cp(self.memory, source, target, start, end)

    def untag(self, sequence: int, start: int = 0, end: int = -1) -> None:
        """Take a sequence's tag from its cells at positions [start, end); -1: all from start."""
        if not self.lib.llama_memory_seq_rm(self.memory, sequence, start, end):
            raise UnsupportedReader(
                f"model {self.model.name}: llama.cpp cannot cut its memory back to a prefix"
            )

    def clear(self) -> None:
        """Free all cells."""
        self.lib.llama_memory_clear(self.memory, False)

    def span(self, sequence: int) -> tuple[int, int]:
        """The first and the last position of a sequence; -1: it has no cells."""
        first = self.lib.llama_memory_seq_pos_min(self.memory, sequence)
        return int(first), int(self.lib.llama_memory_seq_pos_max(self.memory, sequence))

    @contextmanager
    def bridged(
        self, sequence: int, at: int, position: int, spare: tuple[int, int]
    ) -> Iterator[None]:
        """Let a sequence go on at a position farther than the one behind its last cell.

        llama.cpp wants positions without gaps: it looks at the last one. So the last cell is
        exchanged meanwhile for a copy that says to be at the position before; its keys stay rotated
        as they are.

        Args:
            sequence: its number.
            at: its last position.
            position: of the next token.
            spare: numbers of two sequences without cells.

        Raises:
            NoCells: none is free for the copy.
        """
        kept, moved = spare
        self.tag(sequence, kept, at, at + 1)
        try:
            self._copy_cell(kept, moved, at, position - 1)
            self.untag(sequence, at, at + 1)
            self.tag(moved, sequence, position - 1, position)
            try:
                yield
            finally:
                self.untag(sequence, position - 1, position)
                self.tag(kept, sequence, at, at + 1)
        finally:
            self.untag(kept)
            self.untag(moved)

    def _copy_cell(self, source: int, target: int, at: int, position: int) -> None:
        """Copy the only cell of a sequence into another one, at a position that it only says."""
        size = self.lib.llama_state_seq_get_size(self.handle, source)
        state = (ctypes.c_uint8 * size)()
        self.lib.llama_state_seq_get_data(self.handle, state, size, source)
        # One memory with one cell, at its position, with one tag.
        found = bytes(state[:64]).find(struct.pack("=IIiI", 1, 1, at, 1))
        if found >= 0:
            struct.pack_into("=i", state, found + 8, position)
            if not self.lib.llama_state_seq_set_data(self.handle, state, size, target):
                raise NoCells
        if self.span(target) != (position, position):
            raise UnsupportedReader(
                f"model {self.model.name}: this version of llama.cpp writes its states otherwise; "
                "use another pattern than slot"
            )


class _Batch:
    """The arguments of a pass over consecutive tokens of one sequence, at fixed places."""

    def __init__(self, lib: Any, size: int) -> None:
        self.size = size
        self._tokens = np.zeros(size, np.int32)
        self._positions = np.zeros(size, np.int32)
        self._wanted = np.zeros(size, np.int8)
        self._counts = np.ones(size, np.int32)
        self._sequence = ctypes.c_int32(0)
        pointer = ctypes.pointer(self._sequence)
        self._sequences = (type(pointer) * size)(*[pointer] * size)
        self._batch = lib.llama_batch()
        for name, values, kind in (
            ("token", self._tokens, ctypes.c_int32),
            ("pos", self._positions, ctypes.c_int32),
            ("n_seq_id", self._counts, ctypes.c_int32),
            ("logits", self._wanted, ctypes.c_int8),
        ):
            setattr(self._batch, name, values.ctypes.data_as(ctypes.POINTER(kind)))
        self._batch.seq_id = self._sequences

    def of(self, sequence: int, ids: Sequence[int], first: int, logits: bool) -> Any:
        count = len(ids)
        self._tokens[:count] = ids
        self._positions[:count] = range(first, first + count)
        self._wanted[:count] = 0
        self._wanted[count - 1] = logits
        self._sequence.value = sequence
        self._batch.n_tokens = count
        return self._batch
