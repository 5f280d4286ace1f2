"""Gathering and scattering along the last axis, with one index array for all or one per batch element."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from . import xp

__all__ = ["beside", "draw", "gather", "scatter"]

Array = Any


def beside(index: np.ndarray, like: Array) -> Array:
    """A NumPy array of integers in the library and on the device of ``like``."""
    return sys.modules["torch"].as_tensor(index, device=like.device) if xp.is_torch(like) else index


def gather(a: Array, index: Array) -> Array:
    """``out[..., s] = a[..., index[..., s]]`` for ``a`` (..., n) and ``index`` (..., s)."""
    if index.ndim == 1:
        return a[..., index]
    index = _aligned(index, a)
    if xp.is_torch(a):
        return a.gather(-1, index)
    return np.take_along_axis(a, index, -1)


def scatter(values: Array, index: Array, size: int) -> Array:
    """``out[..., k] = sum of values[..., s] over index[..., s] = k``, an array (..., size)."""
    if xp.is_torch(values):
        out = values.new_zeros((*values.shape[:-1], size))
        if index.ndim == 1:
            return out.index_add(-1, index, values)
        return out.scatter_add(-1, _aligned(index, values), values)
    index = np.broadcast_to(index, values.shape) if index.ndim == 1 else _aligned(index, values)
    lines = np.arange(int(np.prod(values.shape[:-1]))).reshape(*values.shape[:-1], 1)
    flat = (lines * size + index).reshape(-1)
    parts = (values.real, values.imag) if values.dtype.kind == "c" else (values,)
    sums = [np.bincount(flat, part.reshape(-1), lines.size * size) for part in parts]
    total = sums[0] if len(sums) == 1 else sums[0] + 1j * sums[1]
    return total.reshape(*values.shape[:-1], size).astype(values.dtype, copy=False)


def _aligned(index: Array, a: Array) -> Array:
    """The index with axes of length one before its last, and repeated along those of ``a``."""
    while index.ndim < a.ndim:
        index = index[..., None, :]
    if xp.is_torch(a):
        return index.expand(*a.shape[:-1], index.shape[-1])
    return np.broadcast_to(index, (*a.shape[:-1], index.shape[-1]))


def draw(rng: Any, among: int, count: int, batch: tuple[int, ...]) -> np.ndarray:
    """``count`` different numbers below ``among`` in increasing order, for every batch element: (..., count)."""
    flat = [np.sort(rng.choice(among, count, replace=False)) for _ in range(int(np.prod(batch)))]
    return np.stack(flat).reshape(*batch, count) if flat else np.zeros((*batch, count), np.int64)
