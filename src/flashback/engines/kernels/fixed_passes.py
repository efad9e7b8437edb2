"""Passes without Python in between: at fixed places in memory, recorded on CUDA.

On a fast GPU, a pass over few tokens takes less time than Python needs to launch its kernels. A
CUDA graph replays all of them at once, but only with the same shapes at the same addresses. So here

    the tokens, their columns and what is in view   are read from one tensor
    their keys and values                           are written to the columns that it says
    attention looks at the columns [0, K) of a row  and hides what is not in view by a mask

Symbols: B rows, T tokens of a row in a pass, H key-value heads, D head size, K columns.

The columns of a row hold a passage first, and the text behind it. T is the
number of new tokens, rounded up; `padding.py` says where padding goes. K is an eighth or 256 more
than is needed, if the buffers have that.

A pass of some T and K runs step by step the first time, is recorded the second time, and replayed
from then on, until K columns are not enough or the buffers have moved. Without recording it runs
step by step every time; that is how it is tested on any machine.

One pass runs at a time, whichever thread it is for: nothing else may run on the device's stream
while a pass is recorded.
"""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from flashback.engines.kernels.padding import mask_of, place_tokens
from flashback.engines.kernels.states import States

_TOKENS = 16
"""Several tokens are rounded up to a multiple of so many."""
_MOST_TOKENS = 512
"""Of a pass; the kernels of a longer one take longer than to launch them."""
_COLUMNS = 256
"""Spare columns among K, or an eighth of K if that is more, as far as the buffers have them."""
_PREFILLS = 4
"""Lengths of passages that are recorded; each holds the keys and values of one passage."""
_RECORDING = threading.Lock()
"""Recording begins by waiting for the device, which would break into another's recording."""

Run = Callable[..., Tensor]
"""`Passes.run`."""
Prefill = Callable[[Tensor, Tensor], list[States]]
"""Keys and values of a passage's ids (1, T) at positions (1, T)."""


@dataclass(frozen=True)
class NewTokens:
    """The tokens that a pass adds to a row."""

    ids: Sequence[int]
    start: int
    """The column of the first."""
    first: int
    """The first column in view."""
    position: int
    """Of the first; the others follow."""


class _FixedLayer(DynamicLayer):
    """Keys and values in the first rows of a buffer, at the columns that a tensor says."""

    def __init__(self, buffers: States, columns: Tensor, width: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._buffers = buffers
        self._columns = columns
        self._width = width

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write (B, H, T, D) keys and values; everything up to K, (B, H, K, D)."""
        rows = len(key_states)
        keys, values = (
            self._write(buffer[:rows], states)
            for buffer, states in zip(self._buffers, (key_states, value_states), strict=True)
        )
        return keys, values

    def _write(self, buffer: Tensor, states: Tensor) -> Tensor:
        if len(self._columns) == 1:  # the same ones for all rows
            buffer.index_copy_(2, self._columns[0], states)
        else:
            rows = torch.arange(len(buffer), device=buffer.device)[:, None]
            buffer[rows, :, self._columns] = states.transpose(1, 2)
        return buffer[:, :, : self._width]

    def get_seq_length(self) -> int:
        """Columns in view before the new ones; the mask hides those that hold nothing."""
        return self._width - self._columns.shape[1]


Compute = Callable[[Tensor], Any]
"""From a tensor of whole numbers to tensors."""


class Recorder:
    """Records work on CUDA."""

    def record(self, compute: Compute, inputs: Tensor) -> tuple[Callable[[], None], Any]:
        """Do the work once; a call that repeats it, and the tensors that hold its results."""
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream()
        try:
            with _RECORDING, torch.cuda.graph(graph, capture_error_mode="thread_local"):
                output = compute(inputs)
        finally:  # a recording that fails leaves its own stream behind
            torch.cuda.set_stream(stream)
        return graph.replay, output


class _Repeated:
    """A computation from one tensor of whole numbers that is repeated."""

    def __init__(
        self, size: tuple[int, int], device: torch.device, recorder: Recorder | None
    ) -> None:
        self._inputs = torch.zeros(size, dtype=torch.long, device=device)
        self._recorder = recorder
        self._warm: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        """Where it ran once: libraries prepare for a thread then, which cannot be recorded."""
        self._replay: Callable[[], None] | None = None
        self._output: Any = None

    def __call__(self, inputs: list[list[int]], compute: Compute) -> Any:
        """The result of `compute` for these inputs; valid until the next call."""
        self._inputs.copy_(torch.tensor(inputs))
        thread = threading.current_thread()
        if self._replay is None and (self._recorder is None or thread not in self._warm):
            self._warm.add(thread)
            return compute(self._inputs)
        if self._replay is None:
            assert self._recorder is not None
            self._replay, self._output = self._recorder.record(compute, self._inputs)
        self._replay()
        return self._output


class FixedPass:
    """A pass over B rows of T tokens that look at K columns of their buffers."""

    def __init__(
        self,
        buffers: Sequence[States],
        *,
        rows: int,
        tokens: int,
        columns: int,
        recorder: Recorder | None,
    ) -> None:
        """Prepare a pass.

        Args:
            buffers: keys and values of every layer, (B or more, H, K or more, D) each. They are not
                kept alive.
            rows: B; 1 also stands for several rows that take all the same columns.
            tokens: T.
            columns: K.
            recorder: on CUDA.
        """
        self.tokens = tokens
        self.columns = columns
        self._buffers = [tuple(map(weakref.ref, pair)) for pair in buffers]
        self._dtype, device = buffers[0][0].dtype, buffers[0][0].device
        self._places = torch.arange(tokens, device=device)
        self._numbers = torch.arange(columns, device=device)
        self._repeated = _Repeated((rows, tokens + 4), device, recorder)

    def serves(self, buffers: Sequence[States], end: int) -> bool:
        """Whether the buffers are still where they were, and `end` columns are among K."""
        same = all(
            mine() is theirs
            for own, pair in zip(self._buffers, buffers, strict=True)
            for mine, theirs in zip(own, pair, strict=True)
        )
        return same and end <= self.columns

    def __call__(self, run: Run, buffers: Sequence[States], rows: Sequence[NewTokens]) -> Tensor:
        """The logits behind the last token of each row, (B, V); valid until the next call."""
        inputs = [self._numbers_of(row) for row in rows]
        logits: Tensor = self._repeated(inputs, lambda given: self._pass(run, buffers, given))
        return logits

    def _numbers_of(self, row: NewTokens) -> list[int]:
        padding = self.tokens - len(row.ids)
        shift = row.position - row.start
        return [*[0] * padding, *row.ids, row.start, row.first, padding, shift]

    def _pass(self, run: Run, buffers: Sequence[States], inputs: Tensor) -> Tensor:
        ids = inputs[:, : self.tokens]
        start, first, padding, shift = inputs[:, self.tokens :].split(1, dim=1)
        columns, positions = place_tokens(start, padding, shift, self._places)
        mask = mask_of(columns, first, self._numbers, self._dtype)
        cache = DynamicCache()
        cache.layers = [_FixedLayer(pair, columns, self.columns) for pair in buffers]
        return run(ids, positions, cache, 1, fixed=True, attention_mask=mask)[:, -1]


class _FixedPrefill:
    """A passage of up to T tokens on its own, padded behind."""

    def __init__(self, tokens: int, device: torch.device, recorder: Recorder | None) -> None:
        self._tokens = tokens
        self._repeated = _Repeated((2, tokens), device, recorder)

    def __call__(
        self, prefill: Prefill, ids: Sequence[int], positions: Sequence[int]
    ) -> list[States]:
        padding = self._tokens - len(ids)
        padded = [[*ids, *[0] * padding], [*positions, *[positions[-1]] * padding]]
        states: list[States] = self._repeated(
            padded, lambda inputs: prefill(inputs[:1], inputs[1:])
        )
        held = len(ids)  # copied, since the next passage is written over it
        return [(keys[:, :, :held].clone(), values[:, :, :held].clone()) for keys, values in states]


class FixedPasses:
    """The fixed passes of an engine: of every cache, and of passages on their own.

    The engine's methods are handed to each, not kept: with a circle of references its caches would
    not be freed with it.
    """

    def __init__(self, device: torch.device, recorder: Recorder | None) -> None:
        """Begin without any.

        Args:
            device: the model's.
            recorder: on CUDA; elsewhere the same passes run step by step.
        """
        self._device = device
        self._recorder = recorder
        self._passes: weakref.WeakKeyDictionary[DynamicCache, dict[tuple[int, int], FixedPass]] = (
            weakref.WeakKeyDictionary()
        )
        self._prefills: OrderedDict[int, _FixedPrefill] = OrderedDict()
        """By T, those used longest ago first."""

    def tokens(self, new: int) -> int | None:
        """T for so many new tokens of the longest row; None: too many."""
        rounded = new if new == 1 else -(-new // _TOKENS) * _TOKENS
        return rounded if rounded <= _MOST_TOKENS else None

    def step(
        self,
        run: Run,
        cache: DynamicCache,
        buffers: Sequence[States],
        rows: Sequence[NewTokens],
        tokens: int,
    ) -> Tensor:
        """Write new tokens to a cache's buffers: the logits behind the last of each row, (B, V).

        Valid until the next step.

        Args:
            run: `Passes.run`.
            cache: what the buffers belong to.
            buffers: with T free columns behind every row's `start`.
            tokens: T, from `tokens`.
        """
        passes = self._passes.setdefault(cache, {})
        key = (len(rows), tokens)
        end = max(row.start for row in rows) + tokens
        known = passes.get(key)
        if known is None or not known.serves(buffers, end):
            capacity = min(pair[0].shape[-2] for pair in buffers)
            columns = min(_columns(end), capacity)
            for other in [one for one, stale in passes.items() if not stale.serves(buffers, 0)]:
                del passes[other]
            known = passes[key] = FixedPass(
                buffers, rows=len(rows), tokens=tokens, columns=columns, recorder=self._recorder
            )
        return known(run, buffers, rows)

    def prefill(
        self, prefill: Prefill, ids: Sequence[int], positions: Sequence[int]
    ) -> list[States] | None:
        """Keys and values of a passage of T tokens, (1, H, T, D) each; None: it is too long."""
        tokens = self.tokens(len(ids))
        if tokens is None:
            return None
        known = self._prefills.pop(tokens, None)
        if known is None:
            known = _FixedPrefill(tokens, self._device, self._recorder)
        self._prefills[tokens] = known
        if len(self._prefills) > _PREFILLS:
            self._prefills.popitem(last=False)
        return known(prefill, ids, positions)

    def forget(self) -> None:
        """Drop all that is recorded of passages; that of a cache goes with the cache."""
        self._prefills.clear()


def _columns(end: int) -> int:
    return -(-(end + max(end // 8, _COLUMNS)) // _COLUMNS) * _COLUMNS
