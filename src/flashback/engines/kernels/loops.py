"""The loops that numba compiles for a single row: products, attention, and a layer of both.

All are in this file, since what is compiled is kept by file: a loop that calls a changed one must
be compiled anew, too. Threads are OpenMP's, the same as PyTorch's; a process that has used them
must not fork.

Symbols: O outputs, I inputs, B outputs side by side in a block, W width, H key-value heads, G query
heads of each, D head size, K columns.
"""

from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from numba import prange
from numpy.typing import NDArray

from flashback.errors import FlashBackError

Floats = NDArray[np.float32]

GATED, RELU = 0, 1
"""Activations of a feed-forward network."""
_ANY_ORDER = {"reassoc", "contract", "nsz"}
"""Sums may be taken in any order, as in every matrix product."""
_OPTIONS = {"fastmath": _ANY_ORDER, "cache": True}
_inner = numba.njit(**_OPTIONS)
_PRODUCT = "void({}[:,:,::1], {}[::1], float32[:,:,::1], float32[:,::1])"
_ATTENTION = (
    "void(float32[:,:,::1], float32[::1], float32[::1], int64, int64, int64, float32, int64, "
    "float32[:,::1])"
)
_NUMBERS = {torch.float32: "float32", torch.int8: "int8"}


def same_threads() -> None:
    """Let loops of this thread run on as many threads as PyTorch does."""
    # This number is the thread's own, and forgotten in a new one.
    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))


@cache
def product_loop(dtype: torch.dtype) -> Any:
    """The product of a row and weights: in float32 or 8 bits, or, as pairs in 32 bits, bfloat16.

    Raises:
        FlashBackError: see `_compiled`.
    """
    if dtype is torch.uint32:
        return _compiled(pairs_product, _PRODUCT.format("uint32", "uint32"))
    return _compiled(product, _PRODUCT.format(_NUMBERS[dtype], "float32"))


@cache
def block_loop(dtype: torch.dtype) -> Any:
    """A layer of a model whose weights are in float32 or 8 bits; see `CompiledBlock`.

    Raises:
        FlashBackError: see `_compiled`.
    """
    product_loop(dtype)
    _compiled(attention, _ATTENTION)
    row, places = "float32[::1]", "int64, int64, int64"
    norms = f"{row}, {row}, float32"
    weights = ", ".join([f"{_NUMBERS[dtype]}[:,:,::1], float32[:,:,::1]"] * 4)
    return _compiled(
        _block,
        f"void({row}, {row}, {row}, {row}, {row}, {places}, {places}, float32, int64, int64, "
        f"{norms}, {norms}, {norms}, {weights})",
    )


def _compiled(loop: Any, types: str) -> Any:
    """A loop, compiled for some types now or in an earlier process.

    Raises:
        FlashBackError: numba has no OpenMP here, or was started with other threads. Those would
            spin beside PyTorch's and take turns with them at every product.
    """
    numba.config.THREADING_LAYER = "omp"
    threads = torch.get_num_threads()
    try:
        loop.compile(types)
        layer: str = numba.threading_layer()
    except ValueError as error:
        layer = f"none ({str(error).splitlines()[0]})"
    torch.set_num_threads(threads)  # starting OpenMP, numba sets it for all
    if layer != "omp":
        raise FlashBackError(
            f"--weights='numba': numba's threads are {layer}; expected omp, OpenMP's, which "
            "PyTorch uses: install libgomp, or leave the option out"
        )
    return loop


@numba.njit(parallel=True, **_OPTIONS)  # type: ignore[untyped-decorator]
def product(weight: NDArray[np.generic], x: Floats, terms: Floats, y: Floats) -> None:
    for block in prange(weight.shape[0]):
        rows = weight[block]
        sums = np.zeros(rows.shape[1], np.float32)
        for i in range(rows.shape[0]):
            for o in range(rows.shape[1]):
                sums[o] += x[i] * np.float32(rows[i, o])
        for o in range(rows.shape[1]):
            y[block, o] = sums[o] * terms[0, block, o] + terms[1, block, o]


@numba.njit(parallel=True, **_OPTIONS)  # type: ignore[untyped-decorator]
def pairs_product(
    weight: NDArray[np.uint32], x: NDArray[np.uint32], terms: Floats, y: Floats
) -> None:
    # The upper half of a float32 is a bfloat16: shifted or masked, it is one.
    for block in prange(weight.shape[0]):
        rows = weight[block]
        sums = np.zeros(rows.shape[1], np.float32)
        for i in range(rows.shape[0]):
            even = np.uint32(x[i] << 16).view(np.float32)
            odd = np.uint32(x[i] & 0xFFFF0000).view(np.float32)
            for o in range(rows.shape[1]):
                sums[o] += even * np.uint32(rows[i, o] << 16).view(np.float32)
                sums[o] += odd * np.uint32(rows[i, o] & 0xFFFF0000).view(np.float32)
        for o in range(rows.shape[1]):
            y[block, o] = sums[o] * terms[0, block, o] + terms[1, block, o]


@_inner  # type: ignore[untyped-decorator]
def _scores(query: Floats, keys: Floats, scale: float, scores: Floats) -> None:
    # Of rows (G, D) to columns, (G, K).
    shared, size = query.shape
    for i in range(scores.shape[1]):
        key = keys[i * size : (i + 1) * size]
        for row in range(shared):
            dot = np.float32(0)
            for d in range(size):
                dot += query[row, d] * key[d]
            scores[row, i] = dot * scale


@_inner  # type: ignore[untyped-decorator]
def _weights(scores: Floats, terms: Floats) -> None:
    # Exponentials of scores (G, K) less the largest, in place; the largest, and their sums, (2, G).
    for row in range(len(scores)):
        own = scores[row]
        largest = np.float32(-np.inf)
        for i in range(len(own)):
            largest = max(largest, own[i])
        total = np.float32(0)
        for i in range(len(own)):
            own[i] = np.exp(own[i] - largest)
            total += own[i]
        terms[0, row], terms[1, row] = largest, total


@_inner  # type: ignore[untyped-decorator]
def _sums(weights: Floats, values: Floats, sums: Floats) -> None:
    # Of values, by weights (G, K): (G, D).
    shared, size = sums.shape
    for i in range(weights.shape[1]):
        value = values[i * size : (i + 1) * size]
        for row in range(shared):
            weight, own = weights[row, i], sums[row]
            for d in range(size):
                own[d] += weight * value[d]


@_inner  # type: ignore[untyped-decorator]
def _put_together(sums: Floats, terms: Floats, found: Floats) -> None:
    # The pieces of a head, (P, G, D) and (P, 2, G); one without columns has a sum of nothing.
    pieces, shared, size = sums.shape
    for row in range(shared):
        most, total = np.float32(-1e30), np.float32(0)
        for piece in range(pieces):
            most = max(most, terms[piece, 0, row])
        for piece in range(pieces):
            terms[piece, 0, row] = np.exp(terms[piece, 0, row] - most)
            total += terms[piece, 1, row] * terms[piece, 0, row]
        for piece in range(pieces):
            for d in range(size):
                found[row, d] += sums[piece, row, d] * terms[piece, 0, row] / total


@numba.njit(parallel=True, **_OPTIONS)  # type: ignore[untyped-decorator]
def attention(
    query: Floats,
    keys: Floats,
    values: Floats,
    count: int,
    apart: int,
    size: int,
    scale: float,
    pieces: int,
    found: Floats,
) -> None:
    # Each head's columns are cut into pieces, one for each thread.
    heads, shared = query.shape[0], query.shape[1]
    sums = np.zeros((heads, pieces, shared, size), np.float32)
    terms = np.zeros((heads, pieces, 2, shared), np.float32)
    terms[:, :, 0] = -1e30
    for task in prange(heads * pieces):
        head, piece = task // pieces, task % pieces
        first, last = count * piece // pieces, count * (piece + 1) // pieces
        if first < last:
            start, end = head * apart + first * size, head * apart + last * size
            scores = np.empty((shared, last - first), np.float32)
            _scores(query[head], keys[start:end], scale, scores)
            _weights(scores, terms[head, piece])
            _sums(scores, values[start:end], sums[head, piece])
    found[:] = 0
    for head in range(heads):
        _put_together(sums[head], terms[head], found[head * shared : (head + 1) * shared])


@_inner  # type: ignore[untyped-decorator]
def _normed(x: Floats, weight: Floats, bias: Floats, eps: float, y: Floats) -> None:
    mean = np.float32(0)
    if len(bias):
        for i in range(len(x)):
            mean += x[i]
        mean /= len(x)
    squares = np.float32(0)
    for i in range(len(x)):
        squares += (x[i] - mean) * (x[i] - mean)
    scale = np.float32(1) / np.sqrt(squares / np.float32(len(x)) + eps)
    for i in range(len(x)):
        y[i] = (x[i] - mean) * scale * weight[i]
    if len(bias):
        for i in range(len(x)):
            y[i] += bias[i]


@_inner  # type: ignore[untyped-decorator]
def _rotated(head: Floats, cosines: Floats, sines: Floats) -> None:
    half = len(head) // 2
    for i in range(half):
        a, b = head[i], head[half + i]
        head[i] = a * cosines[i] - b * sines[i]
        head[half + i] = b * cosines[half + i] + a * sines[half + i]


@_inner  # type: ignore[untyped-decorator]
def _activated(up: Floats, act: int, y: Floats) -> None:
    size = len(y)
    if act == GATED:
        for i in range(size):
            y[i] = up[i] / (np.float32(1) + np.exp(-up[i])) * up[size + i]
    else:
        for i in range(size):
            y[i] = max(up[i], np.float32(0))


@_inner  # type: ignore[untyped-decorator]
def _block(
    x: Floats,
    cosines: Floats,
    sines: Floats,
    keys: Floats,
    values: Floats,
    capacity: int,
    first: int,
    end: int,
    queries: int,
    heads: int,
    size: int,
    scale: float,
    act: int,
    pieces: int,
    norm: Floats,
    norm_bias: Floats,
    eps: float,
    second_norm: Floats,
    second_bias: Floats,
    second_eps: float,
    query_norm: Floats,
    key_norm: Floats,
    head_eps: float,
    project: Floats,
    project_terms: Floats,
    output: Floats,
    output_terms: Floats,
    up: Floats,
    up_terms: Floats,
    down: Floats,
    down_terms: Floats,
) -> None:
    width = len(x)
    h = np.empty(width, np.float32)
    _normed(x, norm, norm_bias, eps, h)
    projected = np.empty(project_terms.shape[1:], np.float32)
    product(project, h, project_terms, projected)
    flat = projected.reshape(-1)
    nothing = np.zeros(0, np.float32)
    for at in range(queries + heads):
        head = flat[at * size : (at + 1) * size]
        own = query_norm if at < queries else key_norm
        if len(own):
            _normed(head, own, nothing, head_eps, head)
        if len(cosines):
            _rotated(head, cosines, sines)
    for at in range(heads):
        place = (at * capacity + end) * size
        key, value = (queries + at) * size, (queries + heads + at) * size
        keys[place : place + size] = flat[key : key + size]
        values[place : place + size] = flat[value : value + size]
    query = flat[: queries * size].reshape(heads, queries // heads, size)
    found = np.empty((queries, size), np.float32)
    attention(
        query,
        keys[first * size :],
        values[first * size :],
        end + 1 - first,
        capacity * size,
        size,
        scale,
        pieces,
        found,
    )
    added = np.empty(output_terms.shape[1:], np.float32)
    product(output, found.reshape(-1), output_terms, added)
    more = added.reshape(-1)
    for i in range(width):
        x[i] += more[i]
    _normed(x, second_norm, second_bias, second_eps, h)
    wide = np.empty(up_terms.shape[1:], np.float32)
    product(up, h, up_terms, wide)
    middle = np.empty(down.shape[1], np.float32)
    _activated(wide.reshape(-1), act, middle)
    last = np.empty(down_terms.shape[1:], np.float32)
    product(down, middle, down_terms, last)
    more = last.reshape(-1)
    for i in range(width):
        x[i] += more[i]
