"""Decoding without Python in between: a token's pass at fixed places in memory, recorded on CUDA.

On a fast GPU, a decode step takes less time than Python needs to launch its kernels. A CUDA graph
replays all of them at once, but only with the same shapes at the same addresses. So here

    the token, its column and the first column in view   are read from one tensor
    its keys and values                                  are written to the column that it says
    attention looks at the columns [0, K) of the buffer  and hides what is not in view by a mask

Column i of a buffer holds position i: the slot first, the context behind it. K is the next multiple
of 256, so a text is recorded anew every 256 tokens, and whenever its buffers move.

Without recording, the same pass runs step by step; that is how it is tested on any machine.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from flashback.engines.cache import BufferedLayer, States, full_layers

_COLUMNS = 256
_WARM_UPS = 2
"""Passes before one is recorded: libraries allocate their workspaces in them."""

Run = Callable[..., Tensor]
"""`LocalEngine.run`."""


class _FixedLayer(DynamicLayer):
    """Keys and values in a buffered layer's buffer, at the column that a tensor says."""

    def __init__(self, buffers: States, column: Tensor, columns: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._buffers = buffers
        self._column = column
        self._columns = columns

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write (B, H, 1, D) keys and values; everything up to K, (B, H, K, D)."""
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer.index_copy_(2, self._column, states)
        keys, values = (buffer[:, :, : self._columns] for buffer in self._buffers)
        return keys, values

    def get_seq_length(self) -> int:
        """Columns in view before the new one; the mask hides those that hold nothing."""
        return self._columns - 1


class DecodeGraph:
    """One token's pass on one cache."""

    def __init__(self, run: Run, layers: list[BufferedLayer], columns: int, record: bool) -> None:
        """Prepare a pass.

        Args:
            run: `LocalEngine.run`.
            layers: all of the cache's, with room for one token more.
            columns: K.
            record: on CUDA.
        """
        self.buffers = [layer.buffers for layer in layers]
        self.columns = columns
        device, self._dtype = self.buffers[0][0].device, self.buffers[0][0].dtype
        self._run = run
        self._inputs = torch.zeros(3, dtype=torch.long, device=device)
        """The token, its column, the first column in view."""
        self._numbers = torch.arange(columns, device=device)
        self._cache = DynamicCache()
        self._cache.layers = [
            _FixedLayer(buffers, self._inputs[1:2], columns) for buffers in self.buffers
        ]
        self._record = record
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits: Tensor | None = None

    def serves(self, layers: list[BufferedLayer], column: int) -> bool:
        """Whether the buffers are still where they were, and the column is among K."""
        same = all(
            mine is theirs
            for own, layer in zip(self.buffers, layers, strict=True)
            for mine, theirs in zip(own, layer.buffers, strict=True)
        )
        return same and column < self.columns

    def step(self, token: int, column: int, first: int) -> Tensor:
        """The logits behind a token, (1, V); valid until the next step.

        Args:
            column: the token's.
            first: the first column in view.
        """
        self._inputs.copy_(torch.tensor([token, column, first]))
        if not self._record:
            return self._pass()
        if self._graph is None:
            self._graph = self._recorded()
        self._graph.replay()
        assert self._logits is not None
        return self._logits

    def _pass(self) -> Tensor:
        token, column, first = self._inputs.split(1)
        seen = (self._numbers <= column) & (self._numbers >= first)
        never = torch.finfo(self._dtype).min
        mask = torch.zeros_like(seen, dtype=self._dtype).masked_fill(~seen, never)
        logits = self._run(
            token[None], column[None], self._cache, 1, attention_mask=mask[None, None, None]
        )
        return logits[0]

    def _recorded(self) -> "torch.cuda.CUDAGraph":
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UPS):  # they write what the replayed pass writes again
                self._pass()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Another thread may encode the next passage meanwhile (lookahead); only this one records.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._logits = self._pass()
        return graph


class DecodeGraphs:
    """The graph of every cache that is being decoded."""

    def __init__(self, run: Run, record: bool) -> None:
        """Begin without any.

        Args:
            run: `LocalEngine.run`.
            record: on CUDA; elsewhere the same passes run step by step.
        """
        self._run = run
        self._record = record
        self._graphs: weakref.WeakKeyDictionary[DynamicCache, DecodeGraph] = (
            weakref.WeakKeyDictionary()
        )

    def step(self, cache: DynamicCache, token: int, column: int, first: int) -> Tensor | None:
        """Write a token behind what a cache holds: its logits, (1, V).

        None: the cache is empty, so there is nowhere to write to yet.

        Args:
            column: R + n, the token's.
            first: R - p, the first in view.
        """
        layers = full_layers(cache)
        if not all(layer.is_initialized for layer in layers):
            return None
        for layer in layers:
            layer.reserve(1)
        graph = self._graphs.get(cache)
        if graph is None or not graph.serves(layers, column):
            capacity = min(layer.buffers[0].shape[-2] for layer in layers)
            columns = min(-(-(column + 1) // _COLUMNS) * _COLUMNS, capacity)
            graph = DecodeGraph(self._run, layers, columns, self._record)
            self._graphs[cache] = graph
        logits = graph.step(token, column, first)
        for layer in layers:
            layer.advance(1)
        return logits
