"""Matrix factorization: a fully known target, dense, sparse or a linear operator."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import xp
from ..coverage import covers
from ..factors import sum_dense
from ..operators import ImplicitMatrix, Target, is_sparse
from .base import LeastSquares, block_cgls, relative_error
from .checks import LinearMap, as_data, check_finite, check_shape

__all__ = ["MatrixFactorization"]

Array = Any


@covers("S02")
class MatrixFactorization(LeastSquares):
    """``1/2 || W - A ||_F^2``, the population limit of sensing and the one-layer testbed of LoRA.

    Parameters
    ----------
    target : array (..., m, n), scipy sparse matrix, or scipy / PyLops LinearOperator
        A. Dense targets may be NumPy or torch and carry batch axes. Sparse and operator targets are never
        formed; their loss goes through Gram matrices and is accurate to about 1e-16 of ``||A||^2``.
    truth : Factors or array, optional
        The matrix that errors are measured against.
    noiseless : bool
        Says that ``truth`` equals the target, so that errors come from the residual at no cost.
    square : float, optional
        ``||A||_F^2``, needed for a LinearOperator (taken from the data otherwise); estimated by products
        with the identity in blocks when absent.

    Raises
    ------
    TypeError, ValueError
        For non-numeric, empty, NaN or infinite targets, or a sparse torch tensor.

    Notes
    -----
    Source: equation (12) of :cite:`survey2026sp`.

    >>> import lowrank_sp as lr
    >>> problem = MatrixFactorization(np.outer([1.0, 2.0], [3.0, 4.0]))
    >>> point = lr.BurerMonteiro(np.array([[1.0], [2.0]]), np.array([[3.0], [4.0]]))
    >>> float(problem.loss(problem.residual(point))), problem.gradient(point).left.tolist()
    (0.0, [[0.0], [0.0]])
    """

    def __init__(self, target: Any, truth: Any = None, square: float | None = None, noiseless: bool = False):
        if xp.is_torch(target) and is_sparse(target):
            raise TypeError(
                "target must not be a sparse tensor; give target.to_dense(), or a scipy matrix, or take lr.complete if "
                "entries that are not stored are unknown"
            )
        self.implicit = _is_implicit(target)
        if self.implicit:
            self.shape = check_shape(target.shape, "target.shape")
            if hasattr(target, "data") and isinstance(target.data, np.ndarray):
                check_finite(target.data, "target")
            square = _squared_norm(target) if square is None else float(square)
            self.data: Any = ImplicitMatrix(Target(target, square), -1.0, ())  # A itself, as minus minus A
            self.scale = square
            self.refresh = 1
        else:
            self.data = as_data(target, "target", 2)
            self.shape = (int(self.data.shape[-2]), int(self.data.shape[-1]))
            self._square = xp.inner(self.data, self.data)
            self.scale = float(xp.to_numpy(self._square).max())
        self.truth, self.noiseless = truth, noiseless and not self.implicit
        self._target = target if self.implicit else self.data

    data_ndim = 2
    nonexpansive = True

    def measure(self, *sums):
        if self.implicit:
            target = self.data.target
            return [ImplicitMatrix(target, 0.0, tuple((1.0, *p.product()) for p in points)) for points in sums]
        return [sum_dense(points) for points in sums]

    def residual(self, point):
        if self.implicit:
            left, right = point.product()
            return ImplicitMatrix(self.data.target, 1.0, ((1.0, left, right),))
        return point.dense() - self.data

    def backproject(self, residual):
        return residual

    def inner(self, a, b):
        return a.inner(b) if self.implicit else xp.inner(a, b, 2)

    def loss(self, residual):
        value = 0.5 * self.inner(residual, residual)
        return value if not self.implicit else np.maximum(value, 0.0)

    def surrogate(self):
        return self._target

    def like(self):
        if not self.implicit:
            return self.data
        dtype = getattr(self._target, "dtype", None) or np.float64
        return np.zeros(1, dtype=np.result_type(dtype, np.float64))

    def solve_block(self, point, gradient, index, ridge):
        return block_cgls(self, point, gradient, index, ridge)

    def error(self, point, residual=None) -> Any:
        if self.truth is None:
            return None
        if self.noiseless:
            gap = self.residual(point) if residual is None else residual
            return (self.inner(gap, gap) / self._square) ** 0.5
        return relative_error(point, self.truth)


def _is_implicit(target: Any) -> bool:
    """Whether the target is a scipy sparse matrix or a linear operator rather than an array."""
    import scipy.sparse

    return scipy.sparse.issparse(target) or isinstance(target, LinearMap)


def _squared_norm(target: Any) -> float:
    """``||A||_F^2`` from the stored entries, or from products with blocks of the identity."""
    import scipy.sparse

    if scipy.sparse.issparse(target):
        return float(np.vdot(target.data, target.data).real)
    n, total = target.shape[1], 0.0
    for start in range(0, n, 256):
        width = min(256, n - start)
        block = np.zeros((n, width))
        block[start + np.arange(width), np.arange(width)] = 1.0
        image = np.asarray(target @ block)
        total += float(np.vdot(image, image).real)
    return total
