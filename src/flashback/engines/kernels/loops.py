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
Weights = tuple[NDArray[np.generic], Floats]
"""Blocks (O / B, I, B), and scales and biases (2, O / B, B)."""
Norm = tuple[Floats, Floats, np.float32]
"""Weight, bias (empty: an RMS norm) and ε."""
HeadNorms = tuple[Floats, Floats, np.float32]
"""RMS norms of queries and of keys (D; empty: there are none), and their ε."""
Columns = tuple[Floats, Floats, int, int, int]
"""Keys and values of a layer (H, C, D), flat; C, the first column in view, the one to write."""
Sizes = tuple[int, int, int, np.float32, int]
"""H·G, H, D, the scale of scores, and in how many pieces columns are cut."""

GATED, RELU = 0, 1
"""Activations of a feed-forward network."""
_ANY_ORDER = {"reassoc", "contract", "nsz"}
"""Sums may be taken in any order, as in every matrix product."""
_OPTIONS = {"fastmath": _ANY_ORDER, "cache": True}
_inner = numba.njit(**_OPTIONS)
_PRODUCT = "void({}[:,:,::1], {}[::1], float32[:,:,::1], float32[:,::1])"
_ATTENTION = (
    "void(float32[:,:,::1], float32[::1], float32[::1], int64, int64, float32, "
    "float32[:,:,:,::1], float32[:,:,:,::1])"
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
    """`block` for weights in float32 or 8 bits, which is compiled when it is first called.

    Raises:
        FlashBackError: see `_compiled`.
    """
    product_loop(dtype)
    _compiled(attention_pieces, _ATTENTION)
    return block


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
def attention_pieces(
    query: Floats,
    keys: Floats,
    values: Floats,
    count: int,
    apart: int,
    scale: float,
    sums: Floats,
    terms: Floats,
) -> None:
    # Each head's columns are cut into pieces, one for each thread. Nothing else stands here: every
    # array expression would be compiled, and run, in parallel on its own.
    heads, pieces, shared, size = sums.shape
    for task in prange(heads * pieces):
        head, piece = task // pieces, task % pieces
        first, last = count * piece // pieces, count * (piece + 1) // pieces
        if first < last:
            start, end = head * apart + first * size, head * apart + last * size
            scores = np.empty((shared, last - first), np.float32)
            _scores(query[head], keys[start:end], scale, scores)
            _weights(scores, terms[head, piece])
            _sums(scores, values[start:end], sums[head, piece])


@_inner  # type: ignore[untyped-decorator]
def _attention(
    query: Floats, keys: Floats, values: Floats, count: int, apart: int, sizes: Sizes
) -> Floats:
    # Of queries (H, G, D): (H·G, D).
    queries, heads, size, scale, pieces = sizes
    shared = queries // heads
    sums = np.zeros((heads, pieces, shared, size), np.float32)
    terms = np.zeros((heads, pieces, 2, shared), np.float32)
    terms[:, :, 0] = -1e30
    attention_pieces(query, keys, values, count, apart, scale, sums, terms)
    found = np.zeros((queries, size), np.float32)
    for head in range(heads):
        _put_together(sums[head], terms[head], found[head * shared : (head + 1) * shared])
    return found


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
def _times(weights: Weights, x: Floats) -> Floats:
    y = np.empty(weights[1].shape[1:], np.float32)
    product(weights[0], x, weights[1], y)
    return y.reshape(-1)


@_inner  # type: ignore[untyped-decorator]
def _attended(
    heads: Floats, rotation: tuple[Floats, Floats], norms: HeadNorms, cache: Columns, sizes: Sizes
) -> Floats:
    # Queries, keys and values (H·G + 2 H) D of a token to (H·G) D; its keys and values are cached.
    keys, values, capacity, first, end = cache
    queries, count, size, _, _ = sizes
    nothing = np.zeros(0, np.float32)
    for at in range(queries + count):
        head = heads[at * size : (at + 1) * size]
        own = norms[0] if at < queries else norms[1]
        if len(own):
            _normed(head, own, nothing, norms[2], head)
        if len(rotation[0]):
            _rotated(head, rotation[0], rotation[1])
    for at in range(count):
        place = (at * capacity + end) * size
        key, value = (queries + at) * size, (queries + count + at) * size
        for i in range(size):  # a slice would be checked, and its message compiled
            keys[place + i] = heads[key + i]
            values[place + i] = heads[value + i]
    query = heads[: queries * size].reshape(count, queries // count, size)
    own_keys, own_values = keys[first * size :], values[first * size :]
    columns, apart = end + 1 - first, capacity * size
    found: Floats = _attention(query, own_keys, own_values, columns, apart, sizes)
    return found.reshape(-1)


@_inner  # type: ignore[untyped-decorator]
def block(
    x: Floats,
    rotation: tuple[Floats, Floats],
    cache: Columns,
    sizes: Sizes,
    act: int,
    norms: tuple[Norm, Norm, HeadNorms],
    weights: tuple[Weights, Weights, Weights, Weights],
) -> None:
    """A layer of a model for one token: x (W) becomes what it gives.

    Args:
        rotation: cosines and sines, (D) each; empty: positions are not rotated.
        act: `GATED` or `RELU`.
        norms: before attention, before the feed-forward network, and of queries and keys.
        weights: to queries, keys and values, of the output, up, and down.
    """
    width = len(x)
    h = np.empty(width, np.float32)
    _normed(x, norms[0][0], norms[0][1], norms[0][2], h)
    found = _attended(_times(weights[0], h), rotation, norms[2], cache, sizes)
    added = _times(weights[1], found)
    for i in range(width):
        x[i] += added[i]
    _normed(x, norms[1][0], norms[1][1], norms[1][2], h)
    middle = np.empty(weights[3][0].shape[1], np.float32)
    _activated(_times(weights[2], h), act, middle)
    added = _times(weights[3], middle)
    for i in range(width):
        x[i] += added[i]
