"""Several sequences in one pass, each as dense in its row as if it were alone.

Symbols: B rows, A rows of a pass, T new tokens of the longest row of a pass, R columns before a
row's text, p tokens of the passage there, n tokens of the text. Columns of a row:

    [0, R-p)      nothing: hidden
    [R-p, R)      the passage in view; R = p = 0 without one
    [R, R+n)      the row's text
    [R+n, ...)    nothing yet: hidden, and overwritten by the row's next tokens

Rows differ in n, and no column is skipped. So nothing about a row depends on the others: each is
cut at its own length (one that jumps does not disturb the rest), keeps what `CachedSequence` would
keep, and a sliding window is a matter of the mask. Padding is explained in `kernels/padding.py`.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DummyLayer, DynamicSlidingWindowLayer

from flashback.engines.cache.passages import PassageCache
from flashback.engines.cache.rows import RowsLayer, RowsPass
from flashback.engines.kernels.fixed_passes import NewTokens
from flashback.engines.kernels.padding import mask_of, place_tokens
from flashback.engines.kernels.window_masks import KINDS, column_positions
from flashback.engines.passes import Passes
from flashback.engines.protocol import Request, Usage
from flashback.patterns.held import HeldTokens
from flashback.patterns.prompt import Ids, Layout, Prompt

_PADDING = 4
"""Rows share a pass if at most one in so many of its tokens is padding, row by row."""


Check = Callable[[Prompt, int], None]
"""Refuses a prompt and a number of new tokens that cannot be completed."""


@dataclass(eq=False)
class BatchRow(HeldTokens):
    """One sequence of a batch."""

    place: int = 0
    """Which row of the buffers holds it."""

    def column_positions(self, end: int, device: torch.device) -> Tensor:
        """The positions of the columns [0, end), (end,)."""
        history, reserved = self.layout.history, self.layout.reserved
        return column_positions(self.room, end - self.room, history, reserved, device)

    def lay_out(self, layout: Layout) -> None:
        """Let the next tokens stand where another prompt has them; its R is not above `room`."""
        if layout != self.layout:
            self.layout, self.passage = layout, ()  # the passage in view stands elsewhere


class LocalBatch:
    """Rows of a transformers model; see the module's docstring, and `Batch` for what it does."""

    def __init__(
        self,
        passes: Passes,
        passages: PassageCache,
        rows: int,
        *,
        fixed: bool,
        check: Check = lambda *_: None,
    ) -> None:
        """Start with empty rows.

        Args:
            passes: of the model.
            passages: where keys and values of passages are kept.
            rows: B, the most requests at a time.
            fixed: run fixed passes where possible.
            check: called before a request is computed; raises if it cannot be completed.
        """
        self.rows = rows
        self.passes = passes
        self._fixed = passes.fixed if fixed else None
        self._passages = passages
        self._check = check
        self._held: list[BatchRow] = []
        """In the order of their places, from 0 on; of texts that ended, too."""
        self._cache = DynamicCache(config=passes.model.config)
        self._windows = [_window(layer) for layer in self._cache.layers if _keeps_states(layer)]
        self._cache.layers = [
            RowsLayer(rows) if _keeps_states(layer) else layer for layer in self._cache.layers
        ]
        self._layers = [layer for layer in self._cache.layers if isinstance(layer, RowsLayer)]

    def complete(self, requests: Sequence[Request]) -> Iterator[list[tuple[int, int]]]:
        """See `Batch.complete`.

        Raises:
            SettingsError: see `LocalEngine.complete`.
        """
        assert len(requests) <= self.rows
        for request in requests:
            self._check(request.prompt, request.max_tokens)
        rows = self._seat([request.prompt for request in requests])
        tokens = self._boundary(rows, requests)
        while tokens:
            yield sorted(tokens.items())
            tokens = self._decode(rows, requests, tokens)

    def logits(self, prompts: Sequence[Prompt]) -> Tensor:
        """The logits behind each prompt, (A, V), from one pass; for checks."""
        rows = self._seat(prompts)
        pairs = zip(rows, prompts, strict=True)
        return self._pass(rows, [self._extend_to_last(row, one, Usage()) for row, one in pairs])

    def _boundary(self, rows: Sequence[BatchRow], requests: Sequence[Request]) -> dict[int, int]:
        """Prefill the new tokens of every prompt; each request's first token."""
        new = [
            self._extend_to_last(row, request.prompt, request.usage)
            for row, request in zip(rows, requests, strict=True)
        ]
        tokens = {}
        for numbers in together([len(ids) for ids in new]):
            began = time.perf_counter()
            logits = self._pass([rows[at] for at in numbers], [new[at] for at in numbers])
            for at, scores in zip(numbers, logits, strict=True):
                tokens[at] = requests[at].sampler.choose(scores)
                usage = requests[at].usage
                usage.prefilled += len(new[at])
                usage.count_reused(len(requests[at].prompt.arranged))
            seconds = (time.perf_counter() - began) / len(numbers)
            for at in numbers:
                requests[at].usage.prefill_seconds += seconds
        return tokens

    def _decode(
        self, rows: Sequence[BatchRow], requests: Sequence[Request], last: dict[int, int]
    ) -> dict[int, int]:
        """One more token of every request that wants one."""
        going = {
            at: token
            for at, token in last.items()
            if not requests[at].closed and requests[at].usage.decoded + 1 < requests[at].max_tokens
        }
        if not going:
            return {}
        began = time.perf_counter()
        self._bring_forward([rows[at] for at in going])
        running = sorted(going, key=lambda at: rows[at].place)
        logits = self._pass([rows[at] for at in running], [(going[at],) for at in running])
        scored = zip(running, logits, strict=True)
        tokens = {at: requests[at].sampler.choose(scores) for at, scores in scored}
        seconds = (time.perf_counter() - began) / len(going)
        for at in going:
            requests[at].usage.decoded += 1
            requests[at].usage.decode_seconds += seconds
        return tokens

    def _seat(self, prompts: Sequence[Prompt]) -> list[BatchRow]:
        """The row of each prompt, cut to what it shares; rows that no prompt continues are dropped.

        Rows go to the prompt that shares most with them.
        """
        shared = sorted(
            (
                (row.common_prefix(prompt), -at, row.place)
                for at, prompt in enumerate(prompts)
                for row in self._held
            ),
            reverse=True,
        )
        found: dict[int, BatchRow] = {}
        for length, minus, place in shared:
            row = self._held[place]
            if length and -minus not in found and row not in found.values():
                row.keep(length)
                self._make_room(row, prompts[-minus].layout.reserved)
                row.lay_out(prompts[-minus].layout)
                found[-minus] = row
        self._bring_forward(list(found.values()))
        del self._held[len(found) :]
        for at, prompt in enumerate(prompts):
            if at not in found:
                found[at] = BatchRow(
                    layout=prompt.layout,
                    room=prompt.layout.reserved,
                    salt=prompt.salt,
                    place=len(self._held),
                )
                self._held.append(found[at])
        return [found[at] for at in range(len(prompts))]

    @torch.inference_mode()
    def _make_room(self, row: BatchRow, columns: int) -> None:
        """Have at least so many columns before a row's text, which is moved for them."""
        if (more := columns - row.room) > 0:
            for layer in self._layers:
                layer.shift(row.place, row.room, row.end, more)
            row.room = columns

    @torch.inference_mode()
    def _bring_forward(self, rows: Sequence[BatchRow]) -> None:
        """Have these rows at the first places of the buffers; those that stood there go behind."""
        behind = [row for row in rows if row.place >= len(rows)]
        wanted = {row.place for row in rows}
        others = [row for row in self._held[: len(rows)] if row.place not in wanted]
        try:
            for row, other in zip(behind, others, strict=True):
                for layer in self._layers:
                    layer.swap(row.place, other.place, max(row.end, other.end))
                row.place, other.place = other.place, row.place
        except BaseException:  # two rows are exchanged in some layers only
            self._held = []
            raise
        self._held.sort(key=lambda row: row.place)

    def _extend_to_last(self, row: BatchRow, prompt: Prompt, usage: Usage) -> Ids:
        """Prefill all new segments but the last, show the last one's passage; its ids."""
        began = time.perf_counter()
        *earlier, last = prompt.after(len(row.ids))
        for segment in earlier:
            self._show(row, segment.passage, usage)
            usage.prefilled += len(segment.ids)
            self._pass([row], [segment.ids])
        self._show(row, last.passage, usage)
        usage.prefill_seconds += time.perf_counter() - began
        return last.ids

    def _show(self, row: BatchRow, passage: Ids, usage: Usage) -> None:
        """Exchange a row's passage in view; counts what has to be prefilled for it."""
        if row.passage == passage:
            return
        row.passage = ()  # if a pass fails, nothing is in view
        if not passage:
            return
        with self.passes.running():
            placed, prefill = row.placed(passage), self.passes.prefill_passage
            states, hit = self._passages.get(placed, prefill)
            for layer, part in zip(self._layers, states, strict=True):
                layer.put(row.place, row.room, part)
        row.passage = passage
        if not hit:
            usage.count_passage(placed)

    def _pass(self, rows: Sequence[BatchRow], new: Sequence[Sequence[int]]) -> Tensor:
        """Compute new tokens behind these rows; the logits of the last of each, (A, V)."""
        with self.passes.running():
            logits = self._fixed_pass(rows, new)
            if logits is None:
                logits = self._plain_pass(rows, new)
        for row, ids in zip(rows, new, strict=True):
            row.append(ids)
        return logits

    def _plain_pass(self, rows: Sequence[BatchRow], new: Sequence[Sequence[int]]) -> Tensor:
        device = self.passes.model.device
        running, positions = _placed(rows, new, device)
        for layer in self._layers:
            layer.running = running
        masks = self._masks(rows, running, positions)
        ids = _padded(new, device)
        return self.passes.run(ids, positions, self._cache, keep=1, attention_mask=masks)[:, -1]

    def _fixed_pass(self, rows: Sequence[BatchRow], new: Sequence[Sequence[int]]) -> Tensor | None:
        """The same as a fixed pass; None: it cannot be one.

        Its rows must be the first ones of the buffers, and not all of them empty.
        """
        fixed = self._fixed
        if fixed is None or (tokens := fixed.tokens(max(map(len, new)))) is None:
            return None
        if not all(layer.is_held for layer in self._layers):
            return None
        if [row.place for row in rows] != list(range(len(rows))):
            return None
        end = max(row.end for row in rows) + tokens
        buffers = [layer.reserve(end) for layer in self._layers]
        added = [
            NewTokens(ids, row.end, row.first, row.position)
            for ids, row in zip(new, rows, strict=True)
        ]
        return fixed.step(self.passes.run, self._cache, buffers, added, tokens)

    def _masks(self, rows: Sequence[BatchRow], running: RowsPass, positions: Tensor) -> Any:
        """The masks of `padding.mask_of`, (A, 1, T, end); by kind of layer if they differ."""
        model = self.passes.model
        keys = torch.arange(running.end, device=model.device)
        first = torch.tensor([[row.first] for row in rows]).to(model.device)
        at = None
        if any(window is not None for window in self._windows):
            held = [row.column_positions(running.end, model.device) for row in rows]
            at = positions, torch.stack(held)
        masks = {
            KINDS[window is None]: mask_of(running.columns, first, keys, model.dtype, window, at)
            for window in set(self._windows)
        }
        return masks if len(masks) > 1 else next(iter(masks.values()))


def together(lengths: Sequence[int]) -> list[list[int]]:
    """Which rows share a pass, by their numbers; `lengths` are the new tokens of each row."""
    groups: list[list[int]] = []
    for at in sorted(range(len(lengths)), key=lambda at: -lengths[at]):
        longest = lengths[groups[-1][0]] if groups else 0
        if groups and (longest - lengths[at]) * _PADDING <= longest:
            groups[-1].append(at)
        else:
            groups.append([at])
    return [sorted(group) for group in groups]


def _padded(new: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Left-padded ids, (A, T)."""
    longest = max(map(len, new))
    return torch.tensor([[0] * (longest - len(ids)) + [*ids] for ids in new]).to(device)


def _placed(
    rows: Sequence[BatchRow], new: Sequence[Sequence[int]], device: torch.device
) -> tuple[RowsPass, Tensor]:
    """Where the new tokens of these rows go, and their positions (A, T)."""
    longest = max(map(len, new))
    starts = torch.tensor([[row.end] for row in rows])
    padding = torch.tensor([[longest - len(ids)] for ids in new])
    shifts = torch.tensor([[row.position - row.end] for row in rows])
    columns, positions = place_tokens(starts, padding, shifts, torch.arange(longest))
    first, count = rows[0].place, len(rows)
    neighbours = [row.place for row in rows] == list(range(first, first + count))
    return RowsPass(
        slice(first, first + count)
        if neighbours
        else torch.tensor([row.place for row in rows]).to(device),
        columns.to(device),
        max(row.end + len(ids) for row, ids in zip(rows, new, strict=True)),
    ), positions.to(device)


def _keeps_states(layer: object) -> bool:
    return not isinstance(layer, DummyLayer)


def _window(layer: object) -> int | None:
    return layer.sliding_window if isinstance(layer, DynamicSlidingWindowLayer) else None
