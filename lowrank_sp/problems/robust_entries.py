"""Robust completion: low rank plus sparse outliers, from some entries, at a cost linear in their number."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import kernels, xp
from ..coverage import covers
from ..operators import Pattern, SampledMatrix
from .completion import MatrixCompletion
from .trimmed import Trimmed

__all__ = ["RobustCompletion"]

Array = Any

# What choosing the largest of an entry's line costs, in the units of `kernels.available`.
SELECT = 16


class Lines:
    """The entries of all rows of a pattern, or of all its columns, and their order statistics.

    Attributes
    ----------
    ids : integer array (N,)
        The line of every entry.
    indptr : integer array (lines + 1,)
        Where lines begin once entries are put in ``order``; None for entries that are in it already.
    """

    def __init__(self, pattern: Pattern, transposed: bool):
        self.ids, self.size = (pattern.cols, pattern.shape[1]) if transposed else (pattern.rows, pattern.shape[0])
        self.order: Any = None
        self._buckets: Any = None
        if not xp.is_torch(self.ids):
            self.indptr = pattern.indptr
            if transposed:
                self.indptr, _, self.order = pattern.flipped()
            return
        counts = self.ids.bincount(minlength=self.size)
        self.indptr = counts.new_zeros(self.size + 1)
        self.indptr[1:] = counts.cumsum(0)
        if transposed:
            self.order = self.ids.argsort(stable=True)

    def counts(self) -> np.ndarray:
        """How many entries every line holds."""
        indptr = xp.to_numpy(self.indptr)
        return indptr[1:] - indptr[:-1]

    def thresholds(self, values: Array, share: float) -> Array:
        """The least of the ``share`` largest values (at least one) of every line, (lines,); zero for empty ones."""
        values = values if self.order is None else values[self.order]
        if kernels.available(values.shape[0], SELECT, values):
            return kernels.largest(self.indptr, values, _rounded_up(share, self.counts()))
        if self._buckets is None:
            self._buckets = list(_buckets(self.indptr, self.ids))
        out = values.new_zeros(self.size) if xp.is_torch(values) else np.zeros(self.size, values.dtype)
        for lines, places, padding, counts in self._buckets:
            block = values[places]
            block[padding] = -np.inf
            block = block.sort(-1).values if xp.is_torch(block) else np.sort(block, -1)
            at = places.shape[1] - _rounded_up(share, counts)
            out[lines] = block[_beside(np.arange(at.size), self.ids), _beside(at, self.ids)]
        return out


def _rounded_up(share: float, counts: np.ndarray) -> np.ndarray:
    """Shares of counts as integers: seven of a hundred at 0.07, whose product is a little more than seven."""
    return np.ceil(share * counts * (1 - 1e-12)).astype(np.int64)


def _buckets(indptr: Array, like: Array) -> Iterator[tuple[Array, Array, Array, np.ndarray]]:
    """Lines of about equal length as blocks: the lines, their places (k, width), what is padding, and the counts.

    Widths are powers of two, so that the blocks hold at most twice the entries.
    """
    starts = xp.to_numpy(indptr).astype(np.int64)
    counts = np.diff(starts)
    kinds = np.ceil(np.log2(np.maximum(counts, 1))).astype(int)
    for kind in np.unique(kinds[counts > 0]):
        lines = np.flatnonzero((kinds == kind) & (counts > 0))
        steps = np.arange(1 << kind)
        padding = steps >= counts[lines, None]
        places = np.where(padding, 0, starts[lines, None] + steps)
        yield _beside(lines, like), _beside(places, like), _beside(padding, like), counts[lines]


def _beside(a: np.ndarray, like: Array) -> Array:
    """Integers or a mask in the library and on the device of ``like``."""
    return sys.modules["torch"].as_tensor(a, device=like.device) if xp.is_torch(like) else a


@covers("S05")
class RobustCompletion(Trimmed):
    """Some entries of a low-rank matrix plus sparse outliers; no m x n array is ever formed.

    The trimmed loss of `RobustPCA` over the entries that are known,
    ``1/2 sum_known (W + S - A)_ij^2``: S holds those entries of the residual that are among the
    ``factor * outliers`` largest of the known ones in their row *and* in their column, rounded up. One evaluation
    costs ``O(N r)`` for N entries, quantiles included (without numba up to the logarithm of the longest row).

    Parameters
    ----------
    rows, cols, values, shape
        As for `MatrixCompletion`, without batch axes.
    outliers : float
        Largest share of outliers among the known entries of any row or column, in (0, 0.5). An estimate from above
        is safe.
    factor : float
        How much larger than ``outliers`` the share is that the iterations trim; the surrogate of the starts
        trims ``outliers`` itself.
    truth : Factors or array, optional
        The low-rank part that errors are measured against.

    Attributes
    ----------
    data : array (N,)
        The entries, in the order of ``pattern``.

    Raises
    ------
    ValueError, TypeError
        As `MatrixCompletion`, and for shares out of range or batch axes.

    Notes
    -----
    Solvers see it as they see `RobustPCA`: the residual is not affine in W, so steps come from a model and are
    backtracked. Source: the partially observed case of :cite:`yi2016rpca`; :cite:`tong2021scaledgd`, section 4.
    """

    data_ndim = 1
    nonexpansive = True

    def __init__(
        self,
        rows: Any,
        cols: Any,
        values: Any,
        shape: Any,
        outliers: float = 0.1,
        factor: float = 2.0,
        truth: Any = None,
    ):
        self.entries = MatrixCompletion(rows, cols, values, shape)
        self.data, self.pattern, self.shape = self.entries.values, self.entries.pattern, self.entries.shape
        if self.data.ndim != 1:
            raise ValueError(f"values must have one axis, got shape {tuple(self.data.shape)}")
        self._lines = Lines(self.pattern, False), Lines(self.pattern, True)
        self.observed, self.truth = self.entries.observed, truth
        self._trim(outliers, factor)

    @classmethod
    def from_sparse(cls, matrix: Any, outliers: float = 0.1, factor: float = 2.0, truth: Any = None):
        """From a scipy sparse matrix or sparse torch tensor: stored entries, zeros included, are the known ones."""
        return cls.from_completion(MatrixCompletion.from_sparse(matrix, truth), outliers, factor)

    @classmethod
    def from_completion(cls, known: MatrixCompletion, outliers: float = 0.1, factor: float = 2.0):
        """From a completion problem without weights: its entries are the known ones, its truth the low-rank part."""
        if known.roots is not None:
            raise ValueError("matrix has weights; which of its entries are outliers is told without them only")
        entries = known.pattern.rows, known.pattern.cols, known.values
        return cls(*entries, known.shape, outliers, factor, known.truth)

    def largest(self, values: Array, share: float) -> Array:
        """The entries (N,) among the ``share`` largest of their row and of their column; zero elsewhere."""
        size = abs(values)
        kept = values * 1
        for lines in self._lines:
            kept *= size >= lines.thresholds(size, share)[lines.ids]
        return kept

    def _gap(self, point):
        return self.entries.residual(point)

    def known_part(self, values: Array) -> Array:
        """The values at the known entries: all of them."""
        return values

    def suspicious(self, values: Array) -> Array:
        """Sizes of the residual (N,), zero where they are not among the larger half of their row and of their column.

        A row of few entries that is fitted to one of its outliers would else lose all others, and never return.
        """
        return self.largest(values, 0.5)

    def largest_share(self, mask: Array) -> float:
        """The share of true entries among all: the largest of any row says little where rows hold few entries."""
        return float(xp.to_numpy(mask).mean())

    def without(self, mask: Array) -> MatrixCompletion:
        """The completion problem of the known entries that are not under a mask (N,)."""
        keep = ~mask
        return MatrixCompletion(self.pattern.rows[keep], self.pattern.cols[keep], self.data[keep], self.shape)

    def as_sparse(self, values: Array) -> Any:
        """Values (N,) of the known entries as a sparse matrix of those that are not zero: scipy's, or torch's."""
        found = values != 0
        rows, cols, values = self.pattern.rows[found], self.pattern.cols[found], values[found]
        if not xp.is_torch(values):
            from scipy.sparse import csr_array

            return csr_array((values, (rows, cols)), shape=self.shape)
        backend, places = xp.namespace(values), xp.namespace(values).stack((rows, cols))
        return backend.sparse_coo_tensor(places, values, self.shape, is_coalesced=True, check_invariants=True)

    def pursuit_weight(self) -> float:
        """As for `RobustPCA`: ``1 / sqrt(share known * max(m, n))``."""
        return (self.observed * max(self.shape)) ** -0.5

    def measure(self, *sums):
        return self.entries.measure(*sums)

    def backproject(self, residual):
        return SampledMatrix(self.pattern, residual)
