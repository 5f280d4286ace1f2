"""Tensors as arrays and as samples: unfoldings, mode products and sums over sampled entries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from . import xp
from .operators import Pattern, SampledMatrix

__all__ = [
    "SampledTensor",
    "TensorPattern",
    "in_blocks",
    "khatri_rao_rows",
    "mode_product",
    "take_rows",
    "unfold",
    "unpacked",
]

Array = Any
Rows = Callable[[tuple[Array, ...]], Array]

# Samples are gathered in blocks, so that memory stays that of the samples.
BLOCK = 1 << 14


def unfold(tensor: Array, mode: int, order: int) -> Array:
    """The mode unfolding (..., n_mode, product of the other modes in order) of (..., n_1, ..., n_order)."""
    axis = tensor.ndim - order + mode
    front = xp.namespace(tensor).moveaxis(tensor, axis, tensor.ndim - order)
    return front.reshape(*front.shape[: front.ndim - order + 1], -1)


def mode_product(tensor: Array, matrix: Array, mode: int, order: int) -> Array:
    """``tensor x_mode matrix``: (..., n_1, ..., n_d) with ``matrix`` (..., p, n_mode) in place of that mode."""
    if mode == order - 1:  # one product instead of one for every fiber
        spread = (
            matrix if matrix.ndim == 2 else matrix.reshape(*matrix.shape[:-2], *[1] * (order - 2), *matrix.shape[-2:])
        )
        return tensor @ spread.mT
    batch, modes = tensor.shape[: tensor.ndim - order], list(tensor.shape[tensor.ndim - order :])
    split = tensor.reshape(*batch, prod(modes[:mode]), modes[mode], prod(modes[mode + 1 :]))
    out = matrix[..., None, :, :] @ split
    modes[mode] = matrix.shape[-2]
    return out.reshape(*out.shape[:-3], *modes)


def take_rows(matrix: Array, places: Array) -> Array:
    """Rows (..., N, r) of a matrix (..., n, r)."""
    return matrix.take(places, -2) if type(matrix) is np.ndarray else matrix[..., places, :]


def khatri_rao_rows(parts: Sequence[Array]) -> Array:
    """Row by row the Kronecker products of matrices (..., N, r_j): (..., N, product of the r_j)."""
    total = parts[0]
    for part in parts[1:]:
        total = total[..., :, None] * part[..., None, :]
        total = total.reshape(*total.shape[:-2], -1)
    return total


def in_blocks(fn: Rows, indices: Sequence[Array]) -> Array:
    """``fn`` of index arrays (N,), an array (..., N), a block of samples at a time."""
    count = indices[0].shape[0]
    blocks = [fn(tuple(i[s : s + BLOCK] for i in indices)) for s in range(0, count, BLOCK)]
    return blocks[0] if len(blocks) == 1 else xp.namespace(blocks[0]).concatenate(blocks, -1)


class TensorPattern:
    """Positions of sampled entries of a tensor, and sums over the samples that share a place in one mode.

    Parameters
    ----------
    indices : sequence of integer arrays (N,)
        One per mode.
    shape : tuple of int
    """

    def __init__(self, indices: Sequence[Array], shape: tuple[int, ...]):
        self.indices, self.shape = tuple(indices), tuple(shape)
        self._sorted: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._blocks: tuple[tuple[slice, TensorPattern], ...] = ()
        self._fibers: dict[int, tuple[Pattern, tuple[Array, Array] | None]] = {}

    @property
    def count(self) -> int:
        return self.indices[0].shape[0]

    @property
    def blocks(self) -> tuple[tuple[slice, TensorPattern], ...]:
        """Slices of the samples with the patterns of their blocks, which remember their order."""
        if not self._blocks:
            parts = [slice(s, min(s + BLOCK, self.count)) for s in range(0, self.count, BLOCK)]
            whole = len(parts) == 1
            self._blocks = tuple(
                (p, self if whole else TensorPattern([i[p] for i in self.indices], self.shape)) for p in parts
            )
        return self._blocks

    def fibers(self, mode: int) -> tuple[Pattern, tuple[Array, Array] | None]:
        """The samples as a sparse matrix with a row for every fiber along ``mode`` and a column for every place in it.

        With it the order of the samples there and its inverse, or None where it is the same.
        """
        if mode not in self._fibers:
            others = [k for k in range(len(self.shape)) if k != mode]
            fibers, places = self.indices[others[0]], self.indices[mode]
            fibers = fibers if xp.is_torch(fibers) else fibers.astype(np.int64)
            for k in others[1:]:
                fibers = fibers * self.shape[k] + self.indices[k]
            moved = None
            if bool((fibers[1:] < fibers[:-1]).any()):
                order = fibers.argsort() if xp.is_torch(fibers) else fibers.argsort(kind="stable")
                fibers, places, moved = fibers[order], places[order], (order, order.argsort())
            size = prod(self.shape) // self.shape[mode]
            if not xp.is_torch(fibers):
                fibers = fibers.astype(np.int32 if size < 2**31 else np.int64)
            self._fibers[mode] = Pattern(fibers, places, (size, self.shape[mode])), moved
        return self._fibers[mode]

    def accumulate(self, values: Array, mode: int | None, rows: Rows) -> Array:
        """``sum_n values_n rows_n`` over the samples at each place of ``mode``: (..., n_mode, width).

        ``rows`` gives (..., N, width) for the index arrays of a block; without a mode all samples are summed,
        (..., 1, width).
        """
        total: Any = 0.0
        for part, block in self.blocks:
            total = total + block._sum(values[..., part], mode, rows(block.indices))
        return total

    def _sum(self, values: Array, mode: int | None, rows: Array) -> Array:
        if mode is None:
            return values[..., None, :] @ rows
        if not xp.is_torch(rows):
            return self._sum_sorted(values, mode, rows)
        weighted = values[..., :, None] * rows
        out = weighted.new_zeros((*weighted.shape[:-2], self.shape[mode], weighted.shape[-1]))
        return out.index_add_(-2, self.indices[mode], weighted)

    def _sum_sorted(self, values: np.ndarray, mode: int, rows: np.ndarray) -> np.ndarray:
        if values.ndim > 1 or rows.ndim > 2:
            batch = np.broadcast_shapes(values.shape[:-1], rows.shape[:-2])
            flat = np.broadcast_to(values, (*batch, values.shape[-1])).reshape(-1, values.shape[-1])
            stacked = np.broadcast_to(rows, (*batch, *rows.shape[-2:])).reshape(-1, *rows.shape[-2:])
            sums = [self._sum_sorted(v, mode, r) for v, r in zip(flat, stacked, strict=True)]
            return np.stack(sums).reshape(*batch, *sums[0].shape)
        from scipy.sparse import csr_array

        order, starts = self._by_place(mode)
        return csr_array((values[order], order, starts), shape=(self.shape[mode], rows.shape[0])) @ rows

    def _by_place(self, mode: int) -> tuple[np.ndarray, np.ndarray]:
        """The samples sorted by their place in a mode, and where each place starts."""
        if mode not in self._sorted:
            places = self.indices[mode]
            counts = np.bincount(places, minlength=self.shape[mode])
            starts = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
            self._sorted[mode] = places.argsort(kind="stable").astype(np.int32), starts
        return self._sorted[mode]

    def grams(self, mode: int | None, rows: Rows) -> Array:
        """``sum_n rows_n^H rows_n`` over the samples at each place of ``mode``: (n_mode, width, width)."""
        total: Any = 0.0
        for _, block in self.blocks:
            a = rows(block.indices)
            if mode is None:
                total = total + (xp.adjoint(a) @ a)[None]
                continue
            first, second = np.triu_indices(a.shape[-1])
            total = total + block._sum(a[..., 0].real * 0 + 1, mode, a[..., first].conj() * a[..., second])
        return total if mode is None else unpacked(total, *np.triu_indices(a.shape[-1]))


def unpacked(packed: Array, first: np.ndarray, second: np.ndarray) -> Array:
    """Hermitian matrices (n, w, w) from their upper triangles (n, w (w + 1) / 2)."""
    width = int(second[-1]) + 1
    empty = packed.new_empty if xp.is_torch(packed) else (lambda shape: np.empty(shape, packed.dtype))
    grams = empty((packed.shape[0], width, width))
    grams[:, second, first] = packed.conj()
    grams[:, first, second] = packed
    return grams


class SampledTensor:
    """A tensor with few entries that are not zero, possibly with batched values, for NumPy and torch.

    Parameters
    ----------
    pattern : TensorPattern
    values : array (..., N)
        The entries, in the order of the pattern.
    """

    def __init__(self, pattern: TensorPattern, values: Array):
        self.pattern, self.values = pattern, values

    @property
    def shape(self) -> tuple[int, ...]:
        return self.pattern.shape

    def accumulate(self, mode: int | None, rows: Rows) -> Array:
        """As `TensorPattern.accumulate`, with the entries as values."""
        return self.pattern.accumulate(self.values, mode, rows)

    def fibers(self, mode: int) -> SampledMatrix:
        """A row for every fiber along ``mode``: the transposed unfolding."""
        pattern, moved = self.pattern.fibers(mode)
        return SampledMatrix(pattern, self.values if moved is None else self.values[..., moved[0]])

    def dense(self) -> Array:
        """The whole tensor (..., n_1, ..., n_d)."""
        batch = tuple(self.values.shape[:-1])
        zeros = self.values.new_zeros if xp.is_torch(self.values) else (lambda s: np.zeros(s, self.values.dtype))
        out = zeros((*batch, *self.shape))
        out[(..., *self.pattern.indices)] = self.values
        return out
