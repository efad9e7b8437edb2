"""One forward pass of a model over a cached sequence, whatever runs behind it.

Symbols: B rows, T new tokens of a row, V vocabulary, H key-value heads, D head size, b sink tokens,
p tokens of a passage at reserved positions.

    plain     one call of the model, with its last layer narrowed to the logits that are needed
    step      a token of every row, by few calls                kernels/single_step.py
    fixed     at fixed places in memory, recorded on CUDA      kernels/fixed_passes.py
    joint     a passage beside the tokens that see it first    kernels/joint_pass.py
    alone     a passage behind the sink, up to the last layer's keys    kernels/states.py

All compute the same; `self_check.py` compares them. A model runs one pass at a time.
"""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from flashback.engines.cache.layers import full_layers, new_cache
from flashback.engines.cache.sequence import CachedSequence
from flashback.engines.kernels.attention import Attention
from flashback.engines.kernels.fixed_passes import FixedPasses, NewTokens, Recorder
from flashback.engines.kernels.joint_pass import PassageApart
from flashback.engines.kernels.last_layer import LastLayer, WholeLastLayer
from flashback.engines.kernels.single_step import SingleStep
from flashback.engines.kernels.states import KeysFirst, KeysKnown, States
from flashback.engines.kernels.window_masks import column_positions, masks_by_kind
from flashback.engines.support import label, support_of
from flashback.errors import UnsupportedReader
from flashback.patterns.prompt import PlacedPassage


class Passes:
    """Runs the passes of one model; a benchmark may override `run` or `extend` to observe them.

    `running` must be held around everything that computes, and for as long as its logits are read.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        attention: Attention | None = None,
        last_layer: LastLayer | None = None,
        step: SingleStep | None = None,
    ) -> None:
        """Take over a model.

        Args:
            model: in evaluation mode, on its device.
            attention: which exact attention a pass takes; None: the fastest.
            last_layer: how the last layer is narrowed; None: to the logits that are needed.
            step: computes single tokens, see `single_step_of`; None: the model.
        """
        self.model = model
        self.support = support_of(model)
        self.lock = threading.RLock()
        """Held during a pass, and while a sequence is copied or cut."""
        self.fixed: FixedPasses | None = None
        """Runs short passes at fixed places in memory; None: there are none."""
        self._attention = Attention(model) if attention is None else attention
        self._last_layer = LastLayer(model) if last_layer is None else last_layer
        self.step = step

    def fresh(self) -> "Passes":
        """Passes of the same model with the same choices, and nothing recorded."""
        passes = Passes(
            self.model, attention=self._attention, last_layer=self._last_layer, step=self.step
        )
        if self.fixed is not None:
            passes.fix()
        return passes

    def fix(self) -> None:
        """Run short passes at fixed places in memory from now on, recorded on CUDA."""
        on_cuda = self.model.device.type == "cuda"
        self.fixed = FixedPasses(self.model.device, Recorder() if on_cuda else None)

    def leave_last_layer_whole(self) -> None:
        """Compute the last layer at every position from now on."""
        self._last_layer = WholeLastLayer(self.model)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Hold the model: no other thread runs a pass of it by these passes meanwhile."""
        with self.lock, torch.inference_mode():
            yield

    def new_sequence(self) -> CachedSequence:
        """An empty sequence."""
        return CachedSequence(cache=new_cache(self.model))

    def extend(self, sequence: CachedSequence, ids: Sequence[int], keep: int = 1) -> Tensor:
        """Compute new tokens behind a sequence, with the passage in view that it has.

        Args:
            sequence: grows by the new tokens.
            ids: of T new tokens, at least one.
            keep: how many of the last ones need logits.

        Returns:
            (keep, V); after a fixed pass valid until the next one.
        """
        logits = self._fixed_pass(sequence, ids) if keep == 1 else None
        if logits is None:
            positions = self._range(sequence.position, len(ids))
            masks = self._masks(sequence, len(ids))
            logits = self.run(self._tensor(ids), positions, sequence.cache, keep, **masks)[0]
        sequence.append(ids)
        return logits

    def extend_with_passage(
        self, sequence: CachedSequence, passage: PlacedPassage, ids: Sequence[int]
    ) -> Tensor:
        """Exchange the passage in view in the pass of the tokens that see it first.

        `self_check.has_joint_passes` says whether a model can.

        Args:
            sequence: grows by the new tokens.
            passage: p tokens.
            ids: of the new tokens.

        Returns:
            The logits of the last new token, (1, V).

        Raises:
            UnsupportedReader: the model's attention was exchanged since it was checked.
        """
        layers = full_layers(sequence.cache)
        sink, given = len(passage.sink), passage.behind_sink
        apart = PassageApart(sink, len(given), len(ids))
        for layer in layers:
            layer.await_passage(len(given), sink)
        behind = self._range(sequence.position, len(ids))
        positions = torch.cat((self._tensor(passage.positions), behind), 1)
        with apart.of(self.model.config):
            logits = self.run(self._tensor([*given, *ids]), positions, sequence.cache, 1)[0]
        for layer in layers:
            layer.hide_sink(sink)
        if apart.calls != len(layers):
            raise UnsupportedReader(
                f"{label(self.model)} called PyTorch's attention {apart.calls} times in "
                f"{len(layers)} layers; expected once in each, as when it was loaded"
            )
        sequence.passage = passage.ids
        sequence.append(ids)
        return logits

    def prefill_passage(self, passage: PlacedPassage) -> list[States]:
        """Keys and values of a passage of p tokens, with the sink alone in view.

        Returns:
            (1, H, p, D) each, layer by layer.
        """
        ids, positions, states = passage.behind_sink, passage.positions, None
        if self.fixed is not None:
            prefill = partial(self.prefill_alone, fixed=True)
            states = self.fixed.prefill(prefill, ids, positions)
        if states is None:
            states = self.prefill_alone(self._tensor(ids), self._tensor(positions))
        sink = len(passage.sink)
        return [(keys[:, :, sink:], values[:, :, sink:]) for keys, values in states]

    def prefill_alone(self, ids: Tensor, positions: Tensor, *, fixed: bool = False) -> list[States]:
        """Keys and values of ids with nothing else in view.

        The pass ends in the last layer, before its attention.

        Args:
            ids, positions: of T tokens, (1, T) each.
            fixed: see `run`.

        Returns:
            (1, H, T, D) each, layer by layer.
        """
        cache = DynamicCache(config=self.model.config)  # without buffers: it takes what it holds
        layers = [
            DynamicLayer() if isinstance(layer, DynamicSlidingWindowLayer) else layer
            for layer in cache.layers
        ]
        cache.layers = list(layers)
        *_, last = (at for at, layer in enumerate(layers) if isinstance(layer, DynamicLayer))
        cache.layers[last] = KeysFirst(layers[last])  # type: ignore[call-overload]
        with contextlib.suppress(KeysKnown):  # not narrowed: a narrowed layer would catch it
            self.run(ids, positions, cache, ids.shape[1], fixed=fixed)
        states = []
        for layer in layers:
            if isinstance(layer, DynamicLayer):
                assert layer.keys is not None
                assert layer.values is not None
                states.append((layer.keys, layer.values))
        return states

    def run(
        self,
        ids: Tensor,
        positions: Tensor,
        cache: DynamicCache,
        keep: int,
        *,
        fixed: bool = False,
        **more: Any,
    ) -> Tensor:
        """Call the model.

        Args:
            ids: new tokens, (B, T).
            positions: theirs, (B, T).
            cache: grows by them.
            keep: how many of the last positions need logits.
            fixed: the pass has the shapes and addresses of others; see `fixed_passes.py`.
            more: further arguments of the model.

        Returns:
            The last logits, (B, keep, V).
        """
        if self.step is not None and ids.shape[1] == 1 and not (more or fixed):
            return self.step(ids, positions, cache)
        if self.support.takes_positions:
            more["position_ids"] = positions
        if self.support.takes_logits_to_keep:  # the head is half of a small model's work
            more["logits_to_keep"] = keep
        tokens = ids.shape[1]
        narrowed = self._last_layer.narrowed(keep) if keep < tokens else contextlib.nullcontext()
        behind = cache.get_seq_length() > 0
        with self._attention.for_pass(tokens, fixed=fixed, behind=behind), narrowed:
            output = self.model(input_ids=ids, past_key_values=cache, use_cache=True, **more)
        logits: Tensor = output.logits[:, -keep:]
        return logits

    def _masks(self, sequence: CachedSequence, new: int) -> dict[str, Any]:
        """The mask of a pass that needs one of its own, as an argument of the model."""
        window, layout, held = self.support.window, sequence.layout, len(sequence.ids)
        if window is None or not layout.reserved or held + new <= layout.history:
            return {}
        passage = len(sequence.passage)
        full = column_positions(
            passage, held + new, layout.history, layout.reserved, self.model.device
        )
        visible = max(held - (window - 1), 0)  # see `BufferedSlidingLayer`
        windowed = torch.cat((full[:passage], full[passage + visible :]))
        masks = masks_by_kind(full[-new:], full, windowed, window, self.model.dtype)
        return {"attention_mask": masks}

    def _fixed_pass(self, sequence: CachedSequence, ids: Sequence[int]) -> Tensor | None:
        """The logits of the last of `ids`, (1, V); None: this pass is no fixed one."""
        if self.fixed is None or (tokens := self.fixed.tokens(len(ids))) is None:
            return None
        layers = full_layers(sequence.cache)
        if not all(layer.is_initialized for layer in layers):
            return None
        for layer in layers:
            layer.reserve(tokens)
        new = NewTokens(ids, sequence.end, sequence.first, sequence.position)
        buffers = [layer.buffers for layer in layers]
        logits = self.fixed.step(self.run, sequence.cache, buffers, [new], tokens)
        for layer in layers:
            layer.advance(len(ids))
        return logits

    def _tensor(self, ids: Sequence[int]) -> Tensor:
        """Ids of one row, (1, T)."""
        return torch.tensor([ids], device=self.model.device)

    def _range(self, start: int, count: int) -> Tensor:
        """Consecutive positions of one row, (1, count)."""
        return torch.arange(start, start + count, device=self.model.device)[None]
