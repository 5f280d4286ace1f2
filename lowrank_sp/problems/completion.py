"""Matrix completion: recover a low-rank matrix from some of its entries."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import kernels, xp
from ..constants import triangle
from ..coverage import covers
from ..frames import is_frame
from ..operators import Pattern, SampledMatrix, is_sparse, sparse_entries, unmasked
from ..parameterizations import BurerMonteiro
from .base import LeastSquares, block_cgls, relative_error
from .checks import as_data, as_indices, check_shape, warn_unobserved

__all__ = ["MatrixCompletion", "solve_rows"]

Array = Any

# Rows whose r x r systems are unpacked and solved at a time: bounds the memory of alternating least squares.
ROWS = 1024


@covers("S03")
class MatrixCompletion(LeastSquares):
    """``1/2 sum_(i,j) w_ij (W_ij - a_ij)^2`` over the observed entries; no m x n array is ever formed.

    Parameters
    ----------
    rows, cols : integer arrays (N,)
        Zero-based positions of the observed entries, each at most once.
    values : array (..., N)
        The entries; leading axes are batch (several matrices observed at the same positions). Their floating type
        is that of the whole computation: float32 stays float32.
    shape : (m, n)
        Shape of W.
    truth : Factors or array, optional
        The matrix that errors are measured against.
    weights : array (N,), optional
        Positive ``w_ij``, one by default. For entries whose noise has standard deviation ``s_ij`` the statistically
        efficient ones are ``1 / s_ij^2``.

    Attributes
    ----------
    data : array (..., N)
        ``sqrt(w_ij) a_ij`` in the order of ``pattern``, as the loss sees them; the entries are ``values``.

    Raises
    ------
    ValueError, TypeError
        For empty, duplicate or out-of-range positions, lengths that differ, NaN, infinite or non-numeric
        values, weights that are not positive, or mixed libraries. A row or column without any observation is a
        warning.

    >>> problem = MatrixCompletion([0, 0, 1], [0, 1, 0], [1.0, 2.0, 3.0], shape=(2, 2))
    >>> point = BurerMonteiro(np.array([[1.0], [3.0]]), np.array([[1.0], [2.0]]))
    >>> problem.residual(point).tolist(), float(point.dense()[1, 1])
    ([0.0, 0.0, 0.0], 6.0)
    """

    data_ndim = 1

    def __init__(self, rows: Any, cols: Any, values: Any, shape: Any, truth: Any = None, weights: Any = None):
        self.shape = check_shape(shape)
        values = as_data(values, "values", 1)
        rows, cols = as_indices(rows, "rows", self.shape[0]), as_indices(cols, "cols", self.shape[1])
        xp.namespace(rows, cols, values)
        if not rows.shape[0] == cols.shape[0] == values.shape[-1]:
            raise ValueError(
                f"rows, cols and values must have one length, got {rows.shape[0]}, {cols.shape[0]} "
                f"and {values.shape[-1]}"
            )
        roots = None if weights is None else _roots(weights, values)
        rows, cols, (self.values, self.roots) = _sorted(rows, cols, (values, roots), self.shape)
        self.data = self.values if self.roots is None else self.roots * self.values
        self.pattern = Pattern(rows, cols, self.shape)
        places = [(xp.to_numpy(a), k) for a, k in zip((rows, cols), self.shape, strict=True)]
        self._masses = [np.bincount(a, minlength=k) for a, k in places]
        warn_unobserved(self._masses[0], "rows")
        warn_unobserved(self._masses[1], "columns")
        if self.roots is not None:
            self._masses = [np.bincount(a, xp.to_numpy(self.roots) ** 2, k) for a, k in places]
        if xp.is_torch(self.data):  # where they are needed
            self._masses = [xp.asarray_like(a, self.data.real) for a in self._masses]
        self.scale = float(xp.to_numpy(self.inner(self.data, self.data)).max())
        self.nonexpansive = self.roots is None or float(self.roots.max()) <= 1
        self.truth = truth
        self._columns: Any = None

    @classmethod
    def from_array(cls, array: Any, truth: Any = None, weights: Any = None) -> MatrixCompletion:
        """From a matrix (m, n) in which NaN, or the mask of a NumPy masked array, marks the unknown entries.

        ``weights`` (m, n) count where it is known.
        """
        if not xp.is_torch(array):
            array = unmasked(array)
            if array.dtype.kind not in "fc":
                raise TypeError(f"array must be floating so that NaN can mark unknown entries, got {array.dtype}")
        if array.ndim != 2:
            raise ValueError(f"array must have two axes, got shape {tuple(array.shape)}")
        known = ~xp.namespace(array).isnan(array)
        if not bool(known.any()):
            raise ValueError("array holds only NaN: there are no observed entries")
        where = known.nonzero(as_tuple=True) if xp.is_torch(array) else known.nonzero()
        if weights is not None:
            weights = weights if xp.is_torch(weights) else np.asarray(weights)
            if tuple(weights.shape) != tuple(array.shape):
                raise ValueError(f"weights must have shape {tuple(array.shape)}, got {tuple(weights.shape)}")
            weights = weights[known]
        return cls(*where, array[known], tuple(array.shape), truth, weights)

    @classmethod
    def from_sparse(cls, matrix: Any, truth: Any = None, weights: Any = None) -> MatrixCompletion:
        """From a sparse matrix whose stored entries (explicit zeros included) are the observed ones.

        Parameters
        ----------
        matrix : scipy sparse array or matrix, or torch sparse tensor
            Of any format; torch tensors stay in torch, on their device.
        weights : array (N,), optional
            In the order of the stored entries of ``matrix.tocoo()``, or of the torch tensor.
        """
        rows, cols, values = sparse_entries(matrix)
        return cls(rows, cols, values, tuple(matrix.shape), truth, weights)

    @classmethod
    def from_frame(cls, frame: Any, truth: Any = None, weights: Any = None) -> MatrixCompletion:
        """From a pandas DataFrame with numeric columns, in which NaN and NA are unknown; see `fill`."""
        from ..frames import as_array

        return cls.from_array(as_array(frame), truth, None if weights is None else np.asarray(weights, float))

    @classmethod
    def of(cls, matrix: Any) -> MatrixCompletion:
        """From whatever holds a matrix with unknown entries: an array, a sparse matrix, a DataFrame, or a problem."""
        if isinstance(matrix, MatrixCompletion):
            return matrix
        if is_sparse(matrix):
            return cls.from_sparse(matrix)
        return cls.from_frame(matrix) if is_frame(matrix) else cls.from_array(matrix)

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
            out.append(total if self.roots is None else total * self.roots)
        return out

    def residual(self, point):
        out = self.measure((point,))[0]
        if out.shape == self.data.shape:
            out -= self.data
            return out
        return out - self.data

    def backproject(self, residual):
        return SampledMatrix(self.pattern, residual if self.roots is None else self.roots * residual)

    def surrogate(self):
        """The entries over the share observed; with weights those below average count less, the others alike."""
        if self.roots is None:
            return SampledMatrix(self.pattern, self.values / self.observed)
        weights = self.roots**2
        trust = xp.namespace(weights).clip(weights / weights.mean(), None, 1.0)
        return SampledMatrix(self.pattern, trust * self.values / (trust.mean() * self.observed))

    def like(self):
        return self.data

    def error(self, point, residual=None) -> Any:
        return None if self.truth is None else relative_error(point, self.truth)

    def solve_block(self, point, gradient, index, ridge):
        if isinstance(point, BurerMonteiro) and point.left.ndim == 2:
            return self._solve_rows(point, gradient, index, ridge)
        return block_cgls(self, point, gradient, index, ridge)

    def sweep_block(self, point, index, ridge, residual=None):
        factors = point.arrays()
        compiled = isinstance(point, BurerMonteiro) and kernels.available(
            self.data.shape[-1], point.rank, self.data, *factors
        )
        if not compiled:
            return super().sweep_block(point, index, ridge, residual)
        entries = self._by_column() if index else (self.pattern.indptr, self.pattern.cols, self.data, self.roots)
        block, other = factors[index], factors[1 - index]
        change, gradient = kernels.sweep(*entries, block, other, ridge * self._unit(other, index))
        return change, xp.inner(gradient, gradient)

    def _by_column(self) -> Any:
        """``indptr, rows, data, roots`` in column order, made once."""
        if self._columns is None:
            flipped = self.pattern.csr(self.data).tocsc()
            roots = None if self.roots is None else self.pattern.csr(self.roots).tocsc().data
            self._columns = flipped.indptr, flipped.indices, flipped.data, roots
        return self._columns

    def _solve_rows(self, point: BurerMonteiro, gradient: Array, index: int, ridge: float) -> Array:
        block, other = point.arrays()[index], point.arrays()[1 - index]
        ridge = ridge * self._unit(other, index)
        weights = None if self.roots is None else self.roots**2
        return solve_rows(self.pattern, other, gradient + ridge * block, index == 1, ridge, weights)

    def _unit(self, other: Array, index: int) -> float:
        """Mean diagonal of the Gram matrices of the rows of block ``index``."""
        squares = xp.square(other).sum(-1)
        masses = xp.asarray_like(self._masses[1 - index], squares)
        return float(masses @ squares) / (self.shape[index] * other.shape[-1])


def solve_rows(
    pattern: Pattern, other: Array, gradient: Array, transposed: bool, ridge: float, weights: Array | None = None
) -> Array:
    """Minus ``(G_i + ridge)^{-1} gradient_i`` for the Gram matrix ``G_i`` of every row of a sampled least squares.

    All Gram matrices come from one sparse product.

    Parameters
    ----------
    pattern : Pattern
        Its rows, or columns if ``transposed``, are the rows of ``gradient``.
    other : array (n, r)
    gradient : array (m, r)
    weights : array (N,), optional
    """
    first, second = triangle(other.shape[-1], other, 0)
    packed = pattern.indicator_product(other[:, first].conj() * other[:, second], transposed, weights)
    change = xp.namespace(gradient).empty_like(gradient)
    for start in range(0, gradient.shape[0], ROWS):
        part = slice(start, start + ROWS)
        grams = _unpack(packed[part], first, second, other.shape[-1])
        change[part] = -xp.solve_psd(grams, gradient[part, :, None], ridge)[..., 0]
    return change


def _unpack(packed: Array, first: Array, second: Array, r: int) -> Array:
    """Hermitian matrices (k, r, r) from their upper triangles (k, r (r + 1) / 2)."""
    if xp.is_torch(packed):
        grams = packed.new_empty((packed.shape[0], r, r))
    else:
        grams = np.empty((packed.shape[0], r, r), dtype=packed.dtype)
    grams[:, first, second] = packed.conj()
    grams[:, second, first] = packed
    return grams


def _roots(weights: Any, values: Array) -> Array:
    """Square roots of the weights (N,), in the floating type of the values."""
    weights = as_data(weights, "weights", 1)
    xp.namespace(weights, values)
    if tuple(weights.shape) != tuple(values.shape[-1:]):
        raise ValueError(f"weights must have shape {tuple(values.shape[-1:])}, got {tuple(weights.shape)}")
    if not bool((weights > 0).all()):
        raise ValueError("weights must be positive; leave out the entries that should not count")
    return xp.asarray_like(weights**0.5, values.real)


def _sorted(rows: Array, cols: Array, data: tuple[Any, ...], shape: tuple[int, int]) -> tuple[Array, Array, Any]:
    """Positions and what belongs to them in row order, with 32-bit indices for NumPy; duplicates are an error."""
    if xp.is_torch(rows):
        key = rows * shape[1] + cols
        order = key.argsort()
        _refuse_duplicates(key[order], shape[1])
    else:
        rows, cols = rows.astype(np.int32), cols.astype(np.int32)
        order = _row_order(rows, cols, shape)
    return rows[order], cols[order], [None if a is None else a[..., order] for a in data]


def _row_order(rows: np.ndarray, cols: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The permutation into row order, in linear time: a sparse matrix of ordinals sorts its rows by counting."""
    from scipy.sparse import coo_array

    csr = coo_array((np.arange(rows.shape[0]), (rows, cols)), shape=shape).tocsr()
    if csr.nnz < rows.shape[0]:
        _refuse_duplicates(np.sort(rows.astype(np.int64) * shape[1] + cols), shape[1])
    return csr.data


def _refuse_duplicates(key: Array, width: int) -> None:
    repeated = key[1:] == key[:-1]
    if bool(repeated.any()):
        i, j = divmod(int(key[1:][repeated][0]), width)
        raise ValueError(
            f"rows and cols repeat {int(repeated.sum())} positions, the first is ({i}, {j}); "
            "average or drop duplicate observations first"
        )
