"""Loops over sampled entries compiled by numba; import it through `kernels`, which knows when it is worth it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

__all__ = ["back_and_forth", "largest", "sampled", "sweep"]

# Reassociation lets the compiler use vector instructions; NaN and infinity keep their meaning.
OPTIONS = {"nogil": True, "fastmath": {"reassoc", "contract", "arcp", "nsz"}}
# Entries of a row that are gathered at a time: long enough for vector instructions, short enough for the cache.
BATCH = 256
# Small systems that are solved side by side, one in every lane of the vector instructions.
LANES = 8


def kernel(function: Callable[..., Any]) -> Any:
    """Compile on first use and remember the result on disk, where there is a disk to write to."""
    try:
        return numba.njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # no writable folder for the cache
        return numba.njit(**OPTIONS)(function)


@kernel
def sampled(left, right, rows, cols, out, low, high):
    """Entries number ``low`` to ``high`` of ``left right^T`` at the positions; whether all of them exist.

    Compiled code does not check its indices, so this does; negative ones count from the end.
    """
    m, n, rank = left.shape[0], right.shape[0], left.shape[1]
    for e in range(low, high):
        i, j = rows[e], cols[e]
        if i < -m or i >= m or j < -n or j >= n:
            return False
        total = left[i, 0] * right[j, 0]
        for k in range(1, rank):
            total += left[i, k] * right[j, k]
        out[e] = total
    return True


@kernel
def largest(indptr, values, keep, out, low, high):
    """Lines ``low`` to ``high``: the value number ``keep[i]`` of each, from the largest down."""
    for i in range(low, high):
        count = indptr[i + 1] - indptr[i]
        if count:
            out[i] = np.partition(values[indptr[i] : indptr[i + 1]], count - keep[i])[count - keep[i]]


@kernel
def _gather(other, cols, roots, low, count, buffer):
    """The rows of ``other`` at some entries, each times its root weight, as columns of ``buffer``."""
    whole = count - count % 4
    for q in range(0, whole, 4):  # four columns that are neighbours in the buffer
        a, b, c, d = cols[low + q], cols[low + q + 1], cols[low + q + 2], cols[low + q + 3]
        for k in range(other.shape[1]):
            buffer[k, q] = other[a, k]
            buffer[k, q + 1] = other[b, k]
            buffer[k, q + 2] = other[c, k]
            buffer[k, q + 3] = other[d, k]
    for q in range(whole, count):
        for k in range(other.shape[1]):
            buffer[k, q] = other[cols[low + q], k]
    if roots.shape[0]:
        for k in range(other.shape[1]):
            for q in range(count):
                buffer[k, q] *= roots[low + q]


@kernel
def _add_gram(buffer, count, rank, gram):
    """Add the lower triangle of ``buffer buffer^T``, two rows and two columns at a time."""
    for k in range(0, rank, 2):
        for l in range(0, k + 1, 2):
            a = b = c = d = buffer[0, 0] * 0
            for q in range(count):
                a += buffer[k, q] * buffer[l, q]
                b += buffer[k, q] * buffer[l + 1, q]
                c += buffer[k + 1, q] * buffer[l, q]
                d += buffer[k + 1, q] * buffer[l + 1, q]
            gram[k, l] += a
            gram[k, l + 1] += b
            gram[k + 1, l] += c
            gram[k + 1, l + 1] += d


@kernel
def _add_gradient(buffer, count, x, data, low, residual, gradient):
    """Add ``buffer (buffer^T x - data)``."""
    for q in range(count):
        residual[q] = -data[low + q]
    for k in range(x.shape[0]):
        for q in range(count):
            residual[q] += x[k] * buffer[k, q]
    for k in range(x.shape[0]):
        total = residual[0] * 0
        for q in range(count):
            total += residual[q] * buffer[k, q]
        gradient[k] += total


@kernel
def _factor(grams, floors):
    """Cholesky's factors of lower triangles (r, r, LANES) in place, with one over the pivots on the diagonal.

    Pivots are at least the root of the floor of their lane.
    """
    for k in range(grams.shape[0]):
        for l in range(k + 1):
            for q in range(l):
                for p in range(LANES):
                    grams[k, l, p] -= grams[k, q, p] * grams[l, q, p]
            for p in range(LANES):
                if l < k:
                    grams[k, l, p] *= grams[l, l, p]
                else:
                    grams[k, k, p] = 1 / np.sqrt(max(grams[k, k, p], floors[p]))


@kernel
def _solve(grams, moves):
    """Solve for columns (r, LANES) in place with the factors of `_factor`."""
    rank = grams.shape[0]
    for k in range(rank):
        for q in range(k):
            for p in range(LANES):
                moves[k, p] -= grams[k, q, p] * moves[q, p]
        for p in range(LANES):
            moves[k, p] *= grams[k, k, p]
    for k in range(rank - 1, -1, -1):
        for q in range(k + 1, rank):
            for p in range(LANES):
                moves[k, p] -= grams[q, k, p] * moves[q, p]
        for p in range(LANES):
            moves[k, p] *= grams[k, k, p]


@kernel
def sweep(indptr, cols, data, roots, block, other, ridge, relative, tiny, change, gradient, low, high):
    """Rows ``low`` to ``high`` of an ALS block: each change solves the ridged least squares of its entries.

    ``gradient`` receives the gradient before the change, without the ridge; ``relative`` and ``tiny`` make the
    floor of `xp.solve_psd`.
    """
    rank = block.shape[1]
    buffer = np.zeros((rank + 1, BATCH + LANES), other.dtype)  # rows a power of two apart would share cache lines
    residual = np.empty(BATCH, other.dtype)
    gram = np.empty((rank + 1, rank + 1), other.dtype)
    grams, moves = np.zeros((rank, rank, LANES), other.dtype), np.zeros((rank, LANES), other.dtype)
    floors = np.full(LANES, tiny)
    for start in range(low, high, LANES):
        for p in range(min(LANES, high - start)):
            i = start + p
            gram[:] = 0
            gradient[i] = 0
            for e in range(indptr[i], indptr[i + 1], BATCH):
                count = min(BATCH, indptr[i + 1] - e)
                _gather(other, cols, roots, e, count, buffer)
                _add_gram(buffer, count, rank, gram)
                _add_gradient(buffer, count, block[i], data, e, residual, gradient[i])
            floors[p] = tiny
            for k in range(rank):
                floors[p] += gram[k, k] * relative / rank
            for k in range(rank):
                moves[k, p] = -gradient[i, k] - ridge * block[i, k]
                for l in range(k + 1):
                    grams[k, l, p] = gram[k, l]
                grams[k, k, p] += max(floors[p], ridge)
        _factor(grams, floors)
        _solve(grams, moves)
        for p in range(min(LANES, high - start)):
            for k in range(rank):
                change[start + p, k] = moves[k, p]


@kernel
def back_and_forth(matrix, chosen, first, second, images, low, high):
    """The rows of ``matrix`` at ``chosen[low:high]`` times two vectors, into ``images``, and their sum with those
    weights.

    Four rows at a time, which are still in the cache when they are needed again.
    """
    count = matrix.shape[1]
    backs = np.zeros((2, count), matrix.dtype)
    whole = low + (high - low) // 4 * 4
    for e in range(low, whole, 4):
        h, i, k, l = chosen[e], chosen[e + 1], chosen[e + 2], chosen[e + 3]
        a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = matrix[0, 0] * 0
        for j in range(count):
            u, v = first[j], second[j]
            a0 += matrix[h, j] * u
            a1 += matrix[i, j] * u
            a2 += matrix[k, j] * u
            a3 += matrix[l, j] * u
            b0 += matrix[h, j] * v
            b1 += matrix[i, j] * v
            b2 += matrix[k, j] * v
            b3 += matrix[l, j] * v
        for j in range(count):
            p, q, r, s = matrix[h, j], matrix[i, j], matrix[k, j], matrix[l, j]
            backs[0, j] += p * a0 + q * a1 + r * a2 + s * a3
            backs[1, j] += p * b0 + q * b1 + r * b2 + s * b3
        images[0, h], images[0, i], images[0, k], images[0, l] = a0, a1, a2, a3
        images[1, h], images[1, i], images[1, k], images[1, l] = b0, b1, b2, b3
    for e in range(whole, high):
        i = chosen[e]
        a = b = matrix[0, 0] * 0
        for j in range(count):
            a += matrix[i, j] * first[j]
            b += matrix[i, j] * second[j]
        for j in range(count):
            backs[0, j] += a * matrix[i, j]
            backs[1, j] += b * matrix[i, j]
        images[0, i], images[1, i] = a, b
    return backs
