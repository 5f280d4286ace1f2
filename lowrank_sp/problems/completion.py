"""Matrix completion: recover a low-rank matrix from some of its entries."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import xp
from ..coverage import covers
from ..operators import Pattern, SampledMatrix
from ..parameterizations import BurerMonteiro
from .base import LeastSquares, block_cgls, relative_error
from .checks import as_data, as_indices, check_shape, warn_unobserved

__all__ = ["MatrixCompletion"]

Array = Any

# Rows whose r x r systems are unpacked and solved at a time: bounds the memory of alternating least squares.
ROWS = 1024


@covers("S03")
class MatrixCompletion(LeastSquares):
    """``1/2 sum_(i,j) (W_ij - a_ij)^2`` over the observed entries; no m x n array is ever formed.

    Parameters
    ----------
    rows, cols : integer arrays (N,)
        Zero-based positions of the observed entries, each at most once.
    values : array (..., N)
        The entries; leading axes are batch (several matrices observed at the same positions).
    shape : (m, n)
        Shape of W.
    truth : Factors or array, optional
        The matrix that errors are measured against.

    Raises
    ------
    ValueError, TypeError
        For empty, duplicate or out-of-range positions, lengths that differ, NaN, infinite or non-numeric
        values, or mixed libraries. A row or column without any observation is a warning.
    """

    data_ndim = 1
    nonexpansive = True

    def __init__(self, rows: Any, cols: Any, values: Any, shape: Any, truth: Any = None):
        self.shape = check_shape(shape)
        values = as_data(values, "values", 1)
        rows, cols = as_indices(rows, "rows", self.shape[0]), as_indices(cols, "cols", self.shape[1])
        xp.namespace(rows, cols, values)
        if not rows.shape[0] == cols.shape[0] == values.shape[-1]:
            raise ValueError(
                f"rows, cols and values must have one length, got {rows.shape[0]}, {cols.shape[0]} "
                f"and {values.shape[-1]}"
            )
        rows, cols, self.data = _sorted(rows, cols, values, self.shape)
        self.pattern = Pattern(rows, cols, self.shape)
        counts = [np.bincount(xp.to_numpy(a), minlength=k) for a, k in zip((rows, cols), self.shape, strict=True)]
        warn_unobserved(counts[0], "rows")
        warn_unobserved(counts[1], "columns")
        self.scale = float(xp.to_numpy(self.inner(self.data, self.data)).max())
        self.truth = truth

    @classmethod
    def from_array(cls, array: Any, truth: Any = None) -> MatrixCompletion:
        """From a matrix (m, n) in which NaN marks the unknown entries."""
        if not xp.is_torch(array):
            array = np.asarray(array)
            if array.dtype.kind not in "fc":
                raise TypeError(f"array must be floating so that NaN can mark unknown entries, got {array.dtype}")
        if array.ndim != 2:
            raise ValueError(f"array must have two axes, got shape {tuple(array.shape)}")
        known = ~xp.namespace(array).isnan(array)
        if not bool(known.any()):
            raise ValueError("array holds only NaN: there are no observed entries")
        where = known.nonzero(as_tuple=True) if xp.is_torch(array) else known.nonzero()
        return cls(*where, array[known], tuple(array.shape), truth)

    @classmethod
    def from_sparse(cls, matrix: Any, truth: Any = None) -> MatrixCompletion:
        """From a scipy sparse matrix whose stored entries (explicit zeros included) are the observed ones."""
        coo = matrix.tocoo()
        return cls(coo.row, coo.col, coo.data, coo.shape, truth)

    @property
    def observed(self) -> float:
        """Share of the entries that is observed."""
        return self.data.shape[-1] / (self.shape[0] * self.shape[1])

    def measure(self, *sums):
        rows, cols = self.pattern.rows, self.pattern.cols
        out = []
        for points in sums:
            total = points[0].entries(rows, cols)
            for point in points[1:]:
                total += point.entries(rows, cols)
            out.append(total)
        return out

    def residual(self, point):
        out = point.entries(self.pattern.rows, self.pattern.cols)
        if out.shape == self.data.shape:
            out -= self.data
            return out
        return out - self.data

    def backproject(self, residual):
        return SampledMatrix(self.pattern, residual)

    def surrogate(self):
        return SampledMatrix(self.pattern, self.data / self.observed)

    def like(self):
        return self.data

    def error(self, point, residual=None) -> Any:
        return None if self.truth is None else relative_error(point, self.truth)

    def solve_block(self, point, gradient, index, ridge):
        if isinstance(point, BurerMonteiro) and point.left.ndim == 2:
            return self._solve_rows(point, gradient, index, ridge)
        return block_cgls(self, point, gradient, index, ridge)

    def _solve_rows(self, point: BurerMonteiro, gradient: Array, index: int, ridge: float) -> Array:
        """Each row of the block by its own r x r system; all Gram matrices from one sparse product."""
        other = point.right if index == 0 else point.left
        first, second = np.triu_indices(other.shape[-1])
        packed = self.pattern.indicator_product(other[:, first].conj() * other[:, second], index == 1)
        ridge = ridge * float(packed[:, first == second].real.mean())
        gradient = gradient + ridge * point.arrays()[index]
        change = xp.namespace(gradient).empty_like(gradient)
        for start in range(0, gradient.shape[0], ROWS):
            part = slice(start, start + ROWS)
            grams = _unpack(packed[part], first, second)
            change[part] = -xp.solve_psd(grams, gradient[part, :, None], ridge)[..., 0]
        return change


def _unpack(packed: Array, first: np.ndarray, second: np.ndarray) -> Array:
    """Hermitian matrices (k, r, r) from their upper triangles (k, r (r + 1) / 2)."""
    r = int(second[-1]) + 1
    if xp.is_torch(packed):
        grams = packed.new_empty((packed.shape[0], r, r))
    else:
        grams = np.empty((packed.shape[0], r, r), dtype=packed.dtype)
    grams[:, first, second] = packed.conj()
    grams[:, second, first] = packed
    return grams


def _sorted(rows: Array, cols: Array, values: Array, shape: tuple[int, int]) -> tuple[Array, Array, Array]:
    """Entries in row order, with 32-bit indices for NumPy; duplicates are an error."""
    key = rows * shape[1] + cols if xp.is_torch(rows) else rows.astype(np.int64) * shape[1] + cols
    order = key.argsort()
    key = key[order]
    repeated = key[1:] == key[:-1]
    if bool(repeated.any()):
        i, j = divmod(int(key[1:][repeated][0]), shape[1])
        raise ValueError(
            f"rows and cols repeat {int(repeated.sum())} positions, the first is ({i}, {j}); "
            "average or drop duplicate observations first"
        )
    if not xp.is_torch(rows):
        del key
        rows, cols = rows.astype(np.int32), cols.astype(np.int32)
    return rows[order], cols[order], values[..., order]
