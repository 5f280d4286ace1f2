"""Matrix-like gradients: anything with ``@`` and ``adjoint`` that is never stored as a full matrix."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import xp

__all__ = ["ImplicitMatrix", "SampledMatrix", "as_linear_operator", "is_sparse", "sparse_entries", "unmasked"]

Array = Any


def is_sparse(matrix: Any) -> bool:
    """Whether it is a scipy sparse matrix or array, or a sparse torch tensor."""
    return hasattr(matrix, "tocoo") or (xp.is_torch(matrix) and str(matrix.layout) != "torch.strided")


def unmasked(array: Any) -> np.ndarray:
    """A NumPy array of anything, with NaN where a masked array masks.

    >>> unmasked(np.ma.array([1.0, 2.0], mask=[False, True])).tolist()
    [1.0, nan]
    """
    if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
        return np.ma.filled(array.astype(array.dtype if array.dtype.kind in "fc" else float), np.nan)
    return np.asarray(array)


def sparse_entries(matrix: Any) -> tuple[Array, Array, Array]:
    """Rows, columns and values of the stored entries of a sparse matrix, repeated ones not added up.

    Raises
    ------
    TypeError, ValueError
        When it is not sparse, or has not two axes.
    """
    if not is_sparse(matrix):
        raise TypeError(f"matrix must be a scipy sparse matrix or a torch sparse tensor, got {type(matrix).__name__}")
    if matrix.ndim != 2:
        raise ValueError(f"matrix must have two axes, got shape {tuple(matrix.shape)}")
    if xp.is_torch(matrix):
        coo = matrix.to_sparse_coo()
        return *coo._indices(), coo._values()  # the public ones refuse repeated positions
    coo = matrix.tocoo()
    return coo.row, coo.col, coo.data


def as_linear_operator(matrix: Any) -> Any:
    """A scipy ``LinearOperator`` of a point, a gradient in W, or a measurement map, so that scipy and PyLops take it.

    Parameters
    ----------
    matrix : Factors, Ensemble, or a matrix-like gradient such as `SampledMatrix`
        Of NumPy arrays without batch axes. A point acts as its matrix F(x) (m, n), a measurement map on ``vec(W)`` in
        C order, and as an operator of problems in return: ``lr.MatrixSensing(as_linear_operator(a), y, shape)``.

    Raises
    ------
    TypeError
        When it is none of these, or is of torch.
    ValueError
        For batch axes.

    Examples
    --------
    >>> from scipy.sparse.linalg import svds
    >>> import lowrank_sp as lr
    >>> point = lr.BurerMonteiro(np.ones((6, 1)), np.arange(1.0, 5.0)[:, None])
    >>> float(svds(as_linear_operator(point), k=1, return_singular_vectors=False)[0].round(6))
    13.416408
    """
    if hasattr(matrix, "as_linear_operator"):
        return matrix.as_linear_operator()
    if hasattr(matrix, "product"):
        matrix = _Product(*matrix.product())
    if xp.is_torch(matrix) or not (hasattr(matrix, "__matmul__") and hasattr(matrix, "adjoint")):
        raise TypeError(f"matrix must be a point, a measurement map or a gradient in W, got {type(matrix).__name__}")
    if isinstance(matrix, SampledMatrix):
        _check_numpy(matrix.values, 1)
    return _scipy_operator(matrix)


def _scipy_operator(matrix: Any) -> Any:
    """Products with anything that has ``@`` for thin arrays and an adjoint."""
    from scipy.sparse.linalg import LinearOperator

    probe = np.zeros((matrix.shape[1], 1))
    first, back = matrix @ probe, matrix.adjoint()
    return LinearOperator(
        matrix.shape,
        matvec=lambda v: (matrix @ np.asarray(v).reshape(-1, 1))[:, 0],
        rmatvec=lambda u: (back @ np.asarray(u).reshape(-1, 1))[:, 0],
        matmat=lambda x: matrix @ np.asarray(x),
        rmatmat=lambda x: back @ np.asarray(x),
        dtype=first.dtype,
    )


def _check_numpy(array: Array, ndim: int) -> None:
    if xp.is_torch(array):
        raise TypeError("scipy's operators take NumPy arrays, got a tensor; move the data to NumPy first")
    if array.ndim > ndim:
        raise ValueError(f"a linear operator is one matrix, got batch axes {tuple(array.shape[: array.ndim - ndim])}")


class _Product:
    """``left right^H`` of two thin arrays."""

    def __init__(self, left: Array, right: Array):
        _check_numpy(left, 2)
        self.left, self.right, self.shape = left, right, (int(left.shape[0]), int(right.shape[0]))

    def adjoint(self) -> _Product:
        return _Product(self.right, self.left)

    def __matmul__(self, x: Array) -> Array:
        return self.left @ (xp.adjoint(self.right) @ x)


class SampledMatrix:
    """A sparse matrix with a fixed pattern and possibly batched values, for NumPy and torch.

    Parameters
    ----------
    pattern : Pattern
        Row-sorted coordinates shared by all matrices of the pattern.
    values : array (..., N)
        The entries, in the order of the pattern.
    """

    def __init__(self, pattern: Pattern, values: Array, transposed: bool = False):
        self.pattern, self.values, self.transposed = pattern, values, transposed

    @property
    def shape(self) -> tuple[int, int]:
        m, n = self.pattern.shape
        return (n, m) if self.transposed else (m, n)

    def adjoint(self) -> SampledMatrix:
        return SampledMatrix(self.pattern, self.values.conj(), not self.transposed)

    def __matmul__(self, x: Array) -> Array:
        return self.pattern.multiply(self.values, x, self.transposed)


class Pattern:
    """Coordinates of observed entries, sorted by row; products with thin matrices in O(N r)."""

    def __init__(self, rows: Array, cols: Array, shape: tuple[int, int]):
        self.rows, self.cols, self.shape = rows, cols, shape
        self.indptr: Any = None  # NumPy only
        self.moved: dict[Any, Any] = {}  # the pattern of the same entries at other places (`rearrange`)
        self._flipped: Any = None
        if isinstance(rows, np.ndarray):
            counts = np.bincount(rows, minlength=shape[0])
            wide = rows.dtype if rows.shape[0] <= np.iinfo(rows.dtype).max else np.int64
            self.indptr = np.concatenate(([0], np.cumsum(counts))).astype(wide)

    def csr(self, values: np.ndarray) -> Any:
        """A scipy matrix that shares the memory of the pattern and of ``values``."""
        from scipy.sparse import csr_array

        return csr_array((values, self.cols, self.indptr), shape=self.shape)

    def flipped(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same entries in column order (NumPy only): ``indptr, rows, order``, made once."""
        if self._flipped is None:
            csc = self.csr(np.arange(self.rows.shape[0], dtype=self.indptr.dtype)).tocsc()
            self._flipped = csc.indptr, csc.indices, csc.data
        return self._flipped

    def indicator_product(self, x: Array, transposed: bool, weights: Array | None = None) -> Array:
        """The matrix with ones (or ``weights``) at the pattern, or its transpose, times ``x``; for NumPy in blocks
        of rows, so that the ones take no memory."""
        if weights is not None:
            return self.multiply(weights, x, transposed)
        if xp.is_torch(x):
            return self.multiply(x.new_ones(self.rows.shape[0]), x, transposed)
        from scipy.sparse import csr_array

        m, n = self.shape
        out = np.zeros((n if transposed else m, x.shape[1]), dtype=x.dtype)
        step = max(1, m // 16)
        for top in range(0, m, step):
            end = min(top + step, m)
            low, high = self.indptr[top], self.indptr[end]
            ones = np.ones(high - low, dtype=x.dtype)
            block = csr_array((ones, self.cols[low:high], self.indptr[top : end + 1] - low), shape=(end - top, n))
            if transposed:
                out += block.T @ x[top:end]
            else:
                out[top:end] = block @ x
        return out

    def multiply(self, values: Array, x: Array, transposed: bool) -> Array:
        if xp.is_torch(values):
            return self._multiply_torch(values, x, transposed)
        if values.ndim == 1 and x.ndim == 2:
            matrix = self.csr(values)
            return (matrix.T if transposed else matrix) @ x
        batch = np.broadcast_shapes(values.shape[:-1], x.shape[:-2])
        values = np.broadcast_to(values, (*batch, values.shape[-1])).reshape(-1, values.shape[-1])
        xs = np.broadcast_to(x, (*batch, *x.shape[-2:])).reshape(-1, *x.shape[-2:])
        out = [self.multiply(v, y, transposed) for v, y in zip(values, xs, strict=True)]
        return np.stack(out).reshape(*batch, *out[0].shape)

    def _multiply_torch(self, values: Any, x: Any, transposed: bool) -> Any:
        into, out_of = (self.cols, self.rows) if transposed else (self.rows, self.cols)
        size = self.shape[1] if transposed else self.shape[0]
        step = max(1, (1 << 16 if values.device.type == "cpu" else 1 << 24) // x.shape[-1])
        batch = values.shape[:-1]
        out = x.new_zeros((*batch, size, x.shape[-1]), dtype=(values[..., :1] * x[..., :1, 0]).dtype)
        for start in range(0, values.shape[-1], step):
            part = slice(start, start + step)
            weighted = values[..., part, None] * x[..., out_of[part], :]
            out.index_add_(-2, into[part], weighted)
        return out


class ImplicitMatrix:
    """``sum_k c_k L_k R_k^H - c_0 A`` with A sparse or a linear operator: the residual of its factorization.

    Inner products go through thin products and Gram matrices, so nothing of the size of A is formed; in
    exchange a residual below about 1e-8 of the size of A loses its relative accuracy.
    """

    def __init__(self, target: Any, weight: float, terms: tuple[tuple[Any, Array, Array], ...]):
        self.target, self.weight, self.terms = target, weight, terms

    @property
    def shape(self) -> tuple[int, int]:
        if self.target is not None:
            return self.target.shape
        _, left, right = self.terms[0]
        return left.shape[-2], right.shape[-2]

    def _combine(self, other: ImplicitMatrix, sign: float) -> ImplicitMatrix:
        moved = tuple((sign * c, left, right) for c, left, right in other.terms)
        return ImplicitMatrix(self.target, self.weight + sign * other.weight, self.terms + moved)

    def __add__(self, other: ImplicitMatrix) -> ImplicitMatrix:
        return self._combine(other, 1.0)

    def __sub__(self, other: ImplicitMatrix) -> ImplicitMatrix:
        return self._combine(other, -1.0)

    def __rmul__(self, factor: Any) -> ImplicitMatrix:
        return ImplicitMatrix(self.target, factor * self.weight, tuple((factor * c, a, b) for c, a, b in self.terms))

    def __neg__(self) -> ImplicitMatrix:
        return -1.0 * self

    def adjoint(self) -> ImplicitMatrix:
        target = None if self.target is None else self.target.adjoint()
        return ImplicitMatrix(target, self.weight, tuple((c, b, a) for c, a, b in self.terms))

    def __matmul__(self, x: Array) -> Array:
        total = -self.weight * self.target.times(x) if self.weight else 0.0
        for c, left, right in self.terms:
            total = total + c * (left @ (xp.adjoint(right) @ x))
        return total

    def inner(self, other: ImplicitMatrix) -> Any:
        total = self.weight * other.weight * self.target.square
        for c, left, right in self.terms:
            if other.weight:
                total = total - c * other.weight * self.target.against(left, right)
            for d, u, v in other.terms:
                total = total + c * d * xp.inner(xp.adjoint(u) @ left, xp.adjoint(v) @ right)
        if self.weight:
            for d, u, v in other.terms:
                total = total - d * self.weight * self.target.against(u, v)
        return total


class Target:
    """A sparse matrix or linear operator with its squared norm and its last product remembered."""

    def __init__(self, matrix: Any, square: float):
        self.matrix, self.square, self.shape = matrix, square, (int(matrix.shape[0]), int(matrix.shape[1]))
        self._key: Any = None
        self._value: Any = None

    def times(self, x: Array) -> Array:
        """``A x``; the product with the same array object is computed once."""
        if self._key is not x:
            self._key, self._value = x, np.asarray(self.matrix @ x)
        return self._value

    def times_adjoint(self, x: Array) -> Array:
        return np.asarray(xp.adjoint(self.matrix) @ x)

    def adjoint(self) -> Flipped:
        return Flipped(self)

    def against(self, left: Array, right: Array) -> Any:
        """``Re <A, left right^H>``."""
        return xp.inner(left, self.times(right))


class Flipped:
    """The adjoint view of a `Target`."""

    def __init__(self, target: Target):
        self.target, self.square, self.shape = target, target.square, target.shape[::-1]

    def times(self, x: Array) -> Array:
        return self.target.times_adjoint(x)

    def adjoint(self) -> Target:
        return self.target

    def against(self, left: Array, right: Array) -> Any:
        return self.target.against(right, left)
