"""Which product each linear layer takes: the fastest one, measured on this processor at load.

For every shape of a weight each product is timed with 1, 8 and 144 rows: a token, tokens of several
texts, a passage with the tokens behind it. Weights are random, and more than caches hold, since a
pass reads every weight of a model once. What was measured is kept in the user's cache folder, by
processor, threads and versions.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flashback.engines.kernels.products import BYTES, LAYOUT_OF, LAYOUTS, MakeRows, Product
from flashback.files import write_atomically

ROWS = (1, 8, 144)
FEW = 32
"""The most rows that count as a few."""
_STRIDE = (15, 0, 1)
"""Passes of a stride of 16 tokens with so many rows: what one layout for all is chosen for."""
_COLD_BYTES = 1 << 25
"""Of each weight, copies: with those of other layouts more than caches hold."""
_SECONDS = 0.02
"""For each product and number of rows."""
_LEAST_BYTES = 1 << 18
"""A smaller weight is not worth being timed."""
_SECOND_COPY = 1 << 29
"""Bytes that a model's weights may take once more, in a second layout."""
_WORTH = 0.95
"""Part of the time that a second layout must leave at most."""
_CALLS = 5e-5
"""Seconds that calls around a product of a single row take where a layer is not one loop, which it
is if all its products are compiled (docs/lab-log.md, "What a decode step waits for")."""


class Choice(NamedTuple):
    """The products of a layer, by name."""

    single: str
    few: str
    many: str

    def __str__(self) -> str:
        return self[0] if len(set(self)) == 1 else "/".join(self)


Choose = Callable[[int, int, torch.dtype], Choice]
"""From a weight's outputs, inputs and dtype."""
Seconds = dict[str, list[float]]
"""Of each product, for each of `ROWS`."""


def always(name: str) -> Choose:
    """One product for everything; beside compiled ones of single rows, that of their layout."""
    layout = LAYOUT_OF.get(name, name)
    choice = Choice(name, layout, layout)
    return lambda *_: choice


class Chooser:
    """Measures, remembers and chooses."""

    def __init__(
        self,
        names: Sequence[str],
        kept: Path | None = None,
        machine: str = "",
        compiled: MakeRows | None = None,
    ) -> None:
        """Choose among some products.

        Args:
            names: of products; the first is that of small weights.
            kept: a file of what was measured before; None: nothing is kept.
            machine: the processor and versions that figures are of.
            compiled: makes the compiled products among them.
        """
        self.chosen: dict[str, Choice] = {}
        """By shape, as `960x576`."""
        self.seconds = 0.0
        """Spent measuring."""
        self._names = names
        self._kept = kept
        self._machine = machine
        self._compiled = compiled
        self._spare = _SECOND_COPY
        self._known = _read(kept, machine)

    def __call__(self, outputs: int, inputs: int, dtype: torch.dtype) -> Choice:
        """The products of a layer of a model."""
        shape, size = f"{outputs}x{inputs}", outputs * inputs * dtype.itemsize
        if size < _LEAST_BYTES:
            return always(self._names[0])(outputs, inputs, dtype)
        figures = self._figures(outputs, inputs, dtype)
        choice, copies = _fastest(figures, self._names, second=size <= self._spare)
        self._spare -= size * copies
        self.chosen[shape] = choice
        return choice

    def of_many(self, outputs: int, inputs: int, dtype: torch.dtype) -> str:
        """The layout of a layer that multiplies many rows only, as in training."""
        if outputs * inputs * dtype.itemsize < _LEAST_BYTES:
            return self._names[0]
        figures = self._figures(outputs, inputs, dtype)
        layouts = [name for name in figures if name in LAYOUTS]
        return min(layouts, key=lambda name: figures[name][-1], default=self._names[0])

    def keep(self) -> None:
        """Write what was measured to the file; where it cannot be written, nothing is kept."""
        if self._kept is None or not self.seconds:
            return
        with contextlib.suppress(OSError):
            self._kept.parent.mkdir(parents=True, exist_ok=True)
            every = {**_read_all(self._kept), self._machine: self._known}
            write_atomically(self._kept, json.dumps(every, indent=1) + "\n")

    def _figures(self, outputs: int, inputs: int, dtype: torch.dtype) -> Seconds:
        key = f"{outputs}x{inputs} {str(dtype).removeprefix('torch.')}"
        known = self._known.setdefault(key, {})
        missing = [name for name in self._names if name not in known]
        if missing:
            started = time.perf_counter()
            known |= measure(missing, outputs, inputs, dtype, self._compiled)
            self.seconds += time.perf_counter() - started
        return {name: known[name] for name in self._names if name in known}


@torch.inference_mode()
def measure(
    names: Sequence[str],
    outputs: int,
    inputs: int,
    dtype: torch.dtype,
    compiled: MakeRows | None = None,
) -> Seconds:
    """Time products of one shape; those that this processor does not have are left out."""
    entries = {
        (name, rows): (products[:2] if rows == ROWS[-1] else products, rows)
        for name, products in _products(names, outputs, inputs, dtype, compiled)
        for rows in (ROWS if name in LAYOUTS else ROWS[:1])
    }
    inputs_of = {rows: torch.ones(rows, inputs, dtype=dtype) for rows in ROWS}
    best = dict.fromkeys(entries, float("inf"))
    for products, rows in entries.values():
        products[0](inputs_of[rows])  # the first call is another one
    ends = time.perf_counter() + _SECONDS * len(entries)
    # In turns, so that whatever else runs meanwhile meets all of them.
    while max(best.values(), default=0) == float("inf") or time.perf_counter() < ends:
        for key, (products, rows) in entries.items():
            best[key] = min(best[key], _seconds(products, inputs_of[rows]))
    found: Seconds = {}
    for (name, _), seconds in best.items():
        found.setdefault(name, []).append(seconds)
    return found


def _products(
    names: Sequence[str], outputs: int, inputs: int, dtype: torch.dtype, compiled: MakeRows | None
) -> Iterator[tuple[str, Sequence[Product]]]:
    """Each product that there is, several times: more weights than caches hold."""
    weight = torch.full((outputs, inputs), 0.01, dtype=dtype)
    for layout in dict.fromkeys(LAYOUT_OF.get(name, name) for name in names):
        size = weight.numel() * (1 if layout in BYTES else dtype.itemsize)
        copies = max(1, min(64, _COLD_BYTES // size))
        with contextlib.suppress(AttributeError, RuntimeError):
            kept = [LAYOUTS[layout](weight.clone(), None) for _ in range(copies)]
            yield layout, kept
            for name in (one for one in names if LAYOUT_OF.get(one) == layout):
                made = (compiled(name, one, weight, None) if compiled else None for one in kept)
                if loops := [one for one in made if one is not None]:
                    yield name, loops


def _seconds(products: Sequence[Product], x: Tensor) -> float:
    """The time of one product."""
    started = time.perf_counter()
    for product in products:
        product(x)
    return (time.perf_counter() - started) / len(products)


def _fastest(figures: Seconds, names: Sequence[str], *, second: bool) -> tuple[Choice, int]:
    """The fastest choice, and how many copies of a weight it keeps beyond one.

    Args:
        second: a second layout may be kept.
    """
    layouts = [name for name in names if name in figures and name in LAYOUTS]
    if not layouts:
        return always(names[0])(0, 0, torch.float32), 0

    def singles(layout: str) -> tuple[float, str]:
        own = [one for one in figures if LAYOUT_OF.get(one) == layout]
        loops = [(figures[name][0], name) for name in own]
        return min([(figures[layout][0] + _CALLS, layout), *loops])

    def total(one: str, other: str) -> float:
        times = singles(one)[0], *figures[other][1:]
        return sum(passes * seconds for passes, seconds in zip(_STRIDE, times, strict=True))

    best = min(layouts, key=lambda name: total(name, name))
    pair = min(
        ((one, other) for one in layouts for other in layouts), key=lambda both: total(*both)
    )
    if second and pair[0] != pair[1] and total(*pair) < _WORTH * total(best, best):
        one, other = pair
        few = min(pair, key=lambda name: figures[name][1])
        return Choice(singles(one)[1], few, other), 1
    return Choice(singles(best)[1], best, best), 0


def _read_all(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _read(path: Path | None, machine: str) -> dict[str, Seconds]:
    """What was measured on this machine; figures that are none are left out."""
    found = {} if path is None else _read_all(path).get(machine, {})
    if not isinstance(found, dict):
        return {}
    return {
        shape: {name: times for name, times in own.items() if _are_times(times, name)}
        for shape, own in found.items()
        if isinstance(own, dict)
    }


def _are_times(times: object, name: str) -> bool:
    count = len(ROWS) if name in LAYOUTS else 1
    return (
        isinstance(times, list)
        and len(times) == count
        and all(isinstance(one, float) and one > 0 for one in times)
    )
