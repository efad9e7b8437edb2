"""Several sequences in one pass, each as dense in its row as if it were alone.

Symbols: B rows, A rows of a pass, H key-value heads, D head size, T new tokens of the longest row
of a pass, R room of the slot, p tokens of the passage in it, n context tokens of a row.

    [0, R-p)      nothing: hidden
    [R-p, R)      the passage in the slot; R = p = 0 without one
    [R, R+n)      the row's context, column = position
    [R+n, ...)    nothing yet: hidden, and overwritten by the row's next tokens

Rows differ in n, and no column is skipped. So nothing about a row depends on the others: each is
cut at its own length (one that jumps does not disturb the rest), keeps what `CachedSequence` would
keep, and a sliding window is a matter of the mask.

A pass takes t new tokens of every row, left-padded to T, so that the last column gives the logits
of all. Padding is written behind the row's end, where it is seen by nothing and soon overwritten.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

from flashback.engines.cache.layers import States, room_for
from flashback.engines.cache.sequence import HeldTokens
from flashback.engines.kernels.fixed_passes import NewTokens
from flashback.engines.protocol import Request, Usage
from flashback.patterns.prompt import Ids, Prompt

if TYPE_CHECKING:
    from flashback.engines.local import LocalEngine

_PADDING = 4
"""Rows share a pass if at most one in so many of its tokens is padding, row by row."""


@dataclass(eq=False)
class Row(HeldTokens):
    """One sequence of a batch."""

    place: int = 0
    """Which row of the buffers holds it."""


@dataclass(frozen=True)
class _Pass:
    """Where the new tokens of A rows go, and which columns they look at."""

    rows: slice | Tensor
    """The places of the rows: a slice where they are neighbours, since that needs no copy."""
    columns: Tensor
    """(A, T): where each new token is written."""
    end: int
    """Columns from here on are seen by no row."""

    def write(self, buffer: Tensor, states: Tensor) -> None:
        """Put (A, H, T, D) into the buffer (B, H, capacity, D)."""
        places = torch.arange(len(buffer), device=buffer.device)[self.rows]
        buffer[places[:, None], :, self.columns] = states.transpose(1, 2)

    def view(self, buffer: Tensor) -> Tensor:
        """What the rows may see of a buffer, (A, H, end, D)."""
        seen = buffer[:, :, : self.end]
        return seen[self.rows] if isinstance(self.rows, slice) else seen.index_select(0, self.rows)


class _Layer(DynamicLayer):
    """Keys and values of all rows, written where the pass that is running says."""

    def __init__(self, rows: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.running: _Pass | None = None
        self._rows = rows
        self._buffers: States | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write (A, H, T, D) keys and values; everything that the rows of the pass may see."""
        assert self.running is not None
        held = self._enough((key_states, value_states), int(self.running.columns.max()) + 1)
        for buffer, states in zip(held, (key_states, value_states), strict=True):
            self.running.write(buffer, states)
        return self.running.view(held[0]), self.running.view(held[1])

    def put(self, place: int, end: int, states: States) -> None:
        """Write a passage (1, H, p, D) to the columns [end - p, end) of a row."""
        start = end - states[0].shape[-2]
        for buffer, part in zip(self._enough(states, end), states, strict=True):
            buffer[place, :, start:end] = part[0]

    def move(self, source: int, target: int, end: int) -> None:
        """Copy the columns [0, end) of one row over those of another."""
        for buffer in self._buffers or ():
            buffer[target, :, :end] = buffer[source, :, :end]

    def get_seq_length(self) -> int:
        """The longest row of the pass."""
        return 0 if self.running is None else self.running.end - self.running.columns.shape[1]

    @property
    def held(self) -> bool:
        """Whether there is anything."""
        return self._buffers is not None

    def reserve(self, capacity: int) -> States:
        """The buffers, (B, H, capacity or more, D) each."""
        assert self._buffers is not None
        return self._enough(self._buffers, capacity)

    def _enough(self, states: States, capacity: int) -> States:
        """The buffers, enlarged if they have fewer columns than `capacity`."""
        held = self._buffers
        if held is None or held[0].shape[-2] < capacity:
            keys, values = (self._enlarged(at, part, capacity) for at, part in enumerate(states))
            self._buffers = held = keys, values
        return held

    def _enlarged(self, at: int, states: Tensor, capacity: int) -> Tensor:
        # Zeros: hidden columns weigh nothing, but nothing times not-a-number is not nothing.
        heads, size = states.shape[1], states.shape[3]
        larger = states.new_zeros((self._rows, heads, room_for(capacity), size))
        if self._buffers is not None:
            old = self._buffers[at]
            larger[:, :, : old.shape[-2]] = old
        return larger


class LocalBatch:
    """Rows of a transformers model; see the module's docstring, and `Batch` for what it does."""

    def __init__(self, engine: "LocalEngine", rows: int, *, fixed: bool) -> None:
        """Start with empty rows.

        Args:
            engine: whose model, passages and limits are used.
            rows: B, the most requests at a time.
            fixed: take the engine's fixed passes where they can be.
        """
        self.rows = rows
        self._fixed = engine.fixed if fixed else None
        self._engine = engine
        self._held: list[Row] = []
        """In the order of their places, [0, A)."""
        self._cache = DynamicCache(config=engine.model.config)
        self._windows = [_window(layer) for layer in self._cache.layers if _keeps_states(layer)]
        self._cache.layers = [
            _Layer(rows) if _keeps_states(layer) else layer for layer in self._cache.layers
        ]
        self._layers = [layer for layer in self._cache.layers if isinstance(layer, _Layer)]

    def complete(self, requests: Sequence[Request]) -> Iterator[list[tuple[int, int]]]:
        """See `Batch.complete`.

        Raises:
            SettingsError: a prompt is empty, exceeds the window, or has a slot that cannot be.
        """
        assert len(requests) <= self.rows
        for request in requests:
            self._engine.check_request(request.prompt, request.max_tokens)
        rows = self._seat([request.prompt for request in requests])
        tokens = self._boundary(rows, requests)
        while tokens:
            yield sorted(tokens.items())
            self._held = self._pack(
                [row for row, request in zip(rows, requests, strict=True) if not request.closed]
            )
            tokens = self._decode(rows, requests, tokens)

    def logits(self, prompts: Sequence[Prompt]) -> Tensor:
        """What is behind each prompt, (A, V), from one pass; for checks."""
        rows = self._seat(prompts)
        pairs = zip(rows, prompts, strict=True)
        return self._pass(rows, [self._show_pieces(row, one, Usage()) for row, one in pairs])

    def _boundary(self, rows: Sequence[Row], requests: Sequence[Request]) -> dict[int, int]:
        """Encode what is new of every prompt; each request's first token."""
        new = [
            self._show_pieces(row, request.prompt, request.usage)
            for row, request in zip(rows, requests, strict=True)
        ]
        tokens = {}
        for numbers in together([len(ids) for ids in new]):
            began = time.perf_counter()
            logits = self._pass([rows[at] for at in numbers], [new[at] for at in numbers])
            for at, scores in zip(numbers, logits, strict=True):
                tokens[at] = requests[at].sampler.choose(scores)
                usage = requests[at].usage
                usage.encoded += len(new[at])
                usage.reused = max(len(requests[at].prompt.arranged) - usage.encoded, 0)
            seconds = (time.perf_counter() - began) / len(numbers)
            for at in numbers:
                requests[at].usage.encode_seconds += seconds
        return tokens

    def _decode(
        self, rows: Sequence[Row], requests: Sequence[Request], last: dict[int, int]
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
        # Rows that have all their tokens come along for nothing: leaving one out would cost a copy.
        number = {id(row): at for at, row in enumerate(rows)}
        ids = [going.get(number[id(row)]) for row in self._held]
        logits = self._pass(self._held, [() if token is None else (token,) for token in ids])
        tokens = {at: requests[at].sampler.choose(logits[rows[at].place]) for at in going}
        seconds = (time.perf_counter() - began) / len(going)
        for at in going:
            requests[at].usage.decoded += 1
            requests[at].usage.decode_seconds += seconds
        return tokens

    def _seat(self, prompts: Sequence[Prompt]) -> list[Row]:
        """The row of each prompt, cut to what it shares; rows that nobody continues are given up.

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
        found: dict[int, Row] = {}
        for length, minus, place in shared:
            row = self._held[place]
            if length and -minus not in found and row not in found.values():
                row.keep(length)
                found[-minus] = row
        self._held = self._pack(list(found.values()))
        for at, prompt in enumerate(prompts):
            if at not in found:
                found[at] = Row(room=prompt.reserved, place=len(self._held))
                self._held.append(found[at])
        return [found[at] for at in range(len(prompts))]

    @torch.inference_mode()
    def _pack(self, rows: Sequence[Row]) -> list[Row]:
        """Move rows so that they take the first places; they, in order."""
        places = {row.place for row in rows}
        free = iter(place for place in range(len(rows)) if place not in places)
        for row in rows:
            if row.place >= len(rows):
                target = next(free)
                for layer in self._layers:
                    layer.move(row.place, target, row.end)
                row.place = target
        return sorted(rows, key=lambda row: row.place)

    def _show_pieces(self, row: Row, prompt: Prompt, usage: Usage) -> Ids:
        """Encode what is new of a prompt but for its last piece; that, its passage in view."""
        began = time.perf_counter()
        *earlier, (passage, last) = ((one.passage, one.ids) for one in prompt.after(len(row.ids)))
        for seen, ids in earlier:
            usage.encoded += self._show(row, seen) + len(ids)
            self._pass([row], [ids])
        usage.encoded += self._show(row, passage)
        usage.encode_seconds += time.perf_counter() - began
        return last

    def _show(self, row: Row, passage: Ids) -> int:
        """Put a passage into a row's slot; how many tokens had to be encoded for it."""
        if row.shown == passage:
            return 0
        row.shown = passage
        if not passage:
            return 0
        engine = self._engine
        with engine.lock, torch.inference_mode():
            states, kept = engine.passages.get(passage, row.room, engine.encode_passage)
            for layer, part in zip(self._layers, states, strict=True):
                layer.put(row.place, row.room, part)
        return 0 if kept else len(passage)

    def _pass(self, rows: Sequence[Row], new: Sequence[Sequence[int]]) -> Tensor:
        """Encode new tokens behind these rows; the logits of the last of each, (A, V)."""
        with self._engine.lock, torch.inference_mode():
            logits = self._fixed_pass(rows, new)
            if logits is None:
                logits = self._free_pass(rows, new)
        for row, ids in zip(rows, new, strict=True):
            row.encoded(ids)
        return logits

    def _free_pass(self, rows: Sequence[Row], new: Sequence[Sequence[int]]) -> Tensor:
        device = self._engine.model.device
        longest = max(map(len, new))
        padded = torch.tensor([[0] * (longest - len(ids)) + [*ids] for ids in new]).to(device)
        running = _plan(rows, new, device)
        for layer in self._layers:
            layer.running = running
        ends = torch.tensor([row.end + len(ids) for row, ids in zip(rows, new, strict=True)])
        return self._engine.run(
            padded,
            torch.minimum(running.columns, (ends - 1).clamp(min=0).to(device)[:, None]),
            self._cache,
            keep=1,
            attention_mask=self._masks(rows, running),
        )[:, -1]

    def _fixed_pass(self, rows: Sequence[Row], new: Sequence[Sequence[int]]) -> Tensor | None:
        """The same where the engine has fixed passes, of the first rows, behind what is held."""
        fixed = self._fixed
        if fixed is None or (tokens := fixed.tokens(max(map(len, new)))) is None:
            return None
        if not all(layer.held for layer in self._layers):
            return None
        if [row.place for row in rows] != list(range(len(rows))):
            return None
        end = max(row.end for row in rows) + tokens
        buffers = [layer.reserve(end) for layer in self._layers]
        added = [NewTokens(ids, row.end, row.first) for ids, row in zip(new, rows, strict=True)]
        return fixed.step(self._engine.run, self._cache, buffers, added, tokens)

    def _masks(self, rows: Sequence[Row], running: _Pass) -> Any:
        """What is added to attention scores, (A, 1, T, end); by kind of layer if they differ."""
        model = self._engine.model
        masks = {
            _KINDS[window is None]: _mask(rows, running, window, model)
            for window in set(self._windows)
        }
        return masks if len(masks) > 1 else next(iter(masks.values()))


_KINDS = ("sliding_attention", "full_attention")
"""What transformers calls them."""


def together(lengths: Sequence[int]) -> list[list[int]]:
    """Which rows share a pass, by number, when they have so many new tokens each."""
    groups: list[list[int]] = []
    for at in sorted(range(len(lengths)), key=lambda at: -lengths[at]):
        longest = lengths[groups[-1][0]] if groups else 0
        if groups and (longest - lengths[at]) * _PADDING <= longest:
            groups[-1].append(at)
        else:
            groups.append([at])
    return [sorted(group) for group in groups]


def _plan(rows: Sequence[Row], new: Sequence[Sequence[int]], device: torch.device) -> _Pass:
    longest = max(map(len, new))
    starts = torch.tensor([[row.end] for row in rows])
    padding = torch.tensor([[longest - len(ids)] for ids in new])
    # The new tokens in order, then the padding that stands before them in the pass.
    columns = starts + (torch.arange(longest)[None] - padding) % longest
    places = [row.place for row in rows]
    neighbours = places == list(range(places[0], places[0] + len(places)))
    return _Pass(
        slice(places[0], places[0] + len(places))
        if neighbours
        else torch.tensor(places).to(device),
        columns.to(device),
        max(row.end + len(ids) for row, ids in zip(rows, new, strict=True)),
    )


def _mask(
    rows: Sequence[Row], running: _Pass, window: int | None, model: PreTrainedModel
) -> Tensor:
    keys = torch.arange(running.end, device=model.device)
    queries = running.columns[:, :, None]
    first = torch.tensor([row.first for row in rows]).to(model.device)[:, None, None]
    seen = (keys <= queries) & (keys >= first)
    if window is not None:
        seen &= keys > queries - window
    never = torch.finfo(model.dtype).min
    return torch.zeros(seen.shape, dtype=model.dtype, device=model.device).masked_fill_(
        ~seen, never
    )[:, None]


def _keeps_states(layer: object) -> bool:
    return not isinstance(layer, DummyLayer)


def _window(layer: object) -> int | None:
    return layer.sliding_window if isinstance(layer, DynamicSlidingWindowLayer) else None
