"""Products of thin matrices with each other and with small ones, at the speed that the library allows."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from .namespaces import adjoint

__all__ = ["LONG", "add_times", "combine", "cross", "gram", "times"]

Array = Any

# From as many rows on a matrix is thin: products with it are worth some preparation.
LONG = 256
# Columns that fill a vector register of single precision: narrower products run at half the speed or less.
LANES = 16


def _fold(a: Array) -> int:
    """How many rows of a thin matrix to put side by side, so that products with it fill vector registers.

    More than one for torch on a processor alone: such a product does more arithmetic, in half the time.
    """
    if isinstance(a, np.ndarray):
        return 1
    m, r = a.shape[-2:]
    count = LANES // r if 0 < r < LANES and a.dtype == sys.modules["torch"].float32 and a.device.type == "cpu" else 1
    return count if m >= LONG and m % count == 0 and a.is_contiguous() else 1


def _folded(a: Array, count: int) -> Array:
    return a.reshape(*a.shape[:-2], a.shape[-2] // count, count * a.shape[-1])


def gram(a: Array) -> Array:
    """``a^H a``: (..., m, r) to (..., r, r)."""
    return cross(a, a)


def cross(a: Array, b: Array) -> Array:
    """``a^H b`` for thin matrices: (..., m, r) and (..., m, k) to (..., r, k)."""
    count = _fold(a) if a is b or (_fold(a) == _fold(b) and a.shape == b.shape) else 1
    if count == 1:
        return adjoint(a) @ b
    r = a.shape[-1]
    blocks = adjoint(_folded(a, count)) @ _folded(b, count)
    return blocks.reshape(*blocks.shape[:-2], count, r, count, r).diagonal(0, -4, -2).sum(-1)


def times(a: Array, small: Array) -> Array:
    """``a small`` for a thin matrix (..., m, r) and a small one (..., r, k)."""
    count = _fold(a)
    if count == 1:
        return a @ small
    product = _folded(a, count) @ _repeated(small, count)
    return product.reshape(*product.shape[:-2], a.shape[-2], small.shape[-1])


def add_times(base: Array, a: Array, small: Array, factor: Any = 1.0) -> Array:
    """``base + factor a small`` for thin matrices (..., m, k), (..., m, r), a small one (..., r, k) and a number."""
    if isinstance(a, np.ndarray) or not base.ndim == a.ndim == small.ndim == 3 or a.shape[0] != small.shape[0]:
        return base + times(a, factor * small)
    if base.shape != (*a.shape[:2], small.shape[2]) or base.dtype != a.dtype or not isinstance(factor, float):
        return base + times(a, factor * small)
    baddbmm = sys.modules["torch"].baddbmm
    count = _fold(a)
    if count > 1 and base.is_contiguous():
        wide = baddbmm(_folded(base, count), _folded(a, count), _repeated(small, count), alpha=factor)
        return wide.reshape(base.shape)
    return baddbmm(base, a, small, alpha=factor)


def combine(a: Array, p: Array, b: Array, q: Array) -> Array:
    """``a p + b q`` for thin matrices (..., m, r), (..., m, k) and small ones, summed within the first product."""
    product = times(a, p)
    if isinstance(b, np.ndarray) or not product.ndim == b.ndim == q.ndim == 3 or b.shape[0] != q.shape[0]:
        return product + times(b, q)
    if product.shape != (*b.shape[:2], q.shape[2]) or product.dtype != b.dtype or not product.is_contiguous():
        return product + times(b, q)
    count = _fold(b)
    _folded(product, count).baddbmm_(_folded(b, count), _repeated(q, count) if count > 1 else q)
    return product


def _repeated(small: Array, count: int) -> Array:
    """The block diagonal matrix of ``count`` copies of ``small``."""
    eye = sys.modules["torch"].eye(count, dtype=small.dtype, device=small.device)
    blocks = eye[:, None, :, None] * small[..., None, :, None, :]
    return blocks.reshape(*small.shape[:-2], count * small.shape[-2], count * small.shape[-1])
