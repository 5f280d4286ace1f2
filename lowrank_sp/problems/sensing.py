"""Matrix sensing: recover a low-rank matrix from linear measurements."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import xp
from ..coverage import covers
from .base import LeastSquares, block_cgls, relative_error
from .checks import as_data, check_shape
from .ensembles import DenseEnsemble, Ensemble, as_ensemble

__all__ = ["MatrixSensing", "check_types"]


class Traced:
    """Measurements that bring their ``A^*`` along: a vector of the measurement space, as sums of it with arrays are.

    Images along a line of factors come like that where one pass over the map gives both, so that the gradient at the
    end of a step costs no other pass.
    """

    __array_ufunc__ = None  # arithmetic with NumPy's numbers and arrays is that of this class

    def __init__(self, problem: MatrixSensing, values: Any, back: Any):
        self.problem, self.values, self.back = problem, values, back

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.array(self.values, dtype=dtype, copy=copy)

    def __add__(self, other: Any) -> Traced:
        values = other.values if isinstance(other, Traced) else other
        return Traced(self.problem, self.values + values, self.back + self.problem.backproject(other))

    __radd__ = __add__

    def __rmul__(self, factor: Any) -> Traced:
        return Traced(self.problem, factor * self.values, factor * self.back)

    def __neg__(self) -> Traced:
        return -1.0 * self

    def __sub__(self, other: Any) -> Traced:
        return self + -1.0 * other


def check_types(operator: Ensemble, measurements: Any) -> None:
    """Refuse measurements of another library than the map has, and for torch of another type, which NumPy raises.

    Raises
    ------
    TypeError
        When they differ.
    """
    like = operator.like()
    xp.namespace(measurements, like)
    if not xp.is_torch(like):
        return
    apart = (
        measurements.dtype != like.dtype if isinstance(operator, DenseEnsemble) else xp.eps(measurements) < xp.eps(like)
    )
    if apart:
        raise TypeError(
            f"measurements are {measurements.dtype} and the operator is {like.dtype}, which torch does not multiply; "
            "convert one of them with .to(dtype)"
        )


@covers("S01")
class MatrixSensing(LeastSquares):
    """``1/2 || A(W) - y ||^2`` for N linear measurements ``y_i = <M_i, W>``.

    Parameters
    ----------
    operator : array (N, m, n) or (N, m n), scipy sparse matrix, LinearOperator on vec(W) in C order, or Ensemble
        A. Operators of scipy and PyLops are dot-tested; a failure is a warning.
    measurements : array (..., N)
        y; leading axes are batch.
    shape : (m, n)
        Shape of W.
    truth : Factors or array, optional
        The matrix that errors are measured against.

    Raises
    ------
    ValueError, TypeError
        When lengths do not match, data are NaN, infinite, empty or not numeric, or libraries are mixed.

    Notes
    -----
    Fine-tuning a linear layer ``W_pre + W`` is this problem with ``y - A(W_pre)``.
    Source: equations (3)-(5) of :cite:`survey2026sp`.

    >>> import lowrank_sp as lr
    >>> operator = np.eye(4).reshape(4, 2, 2)  # measures the entries
    >>> problem = MatrixSensing(operator, [3.0, 4.0, 6.0, 8.0], (2, 2))
    >>> point = lr.BurerMonteiro(np.array([[1.0], [2.0]]), np.array([[3.0], [4.0]]))
    >>> problem.residual(point).tolist()
    [0.0, 0.0, 0.0, 0.0]
    """

    data_ndim = 1

    def __init__(self, operator: Any, measurements: Any, shape: Any, truth: Any = None):
        self.shape = check_shape(shape)
        self.operator: Any = as_ensemble(operator, self.shape)
        self.data = as_data(measurements, "measurements", 1)
        if self.data.shape[-1] != self.operator.count:
            raise ValueError(
                f"measurements has {self.data.shape[-1]} values, but the operator makes {self.operator.count}"
            )
        check_types(self.operator, self.data)
        self.scale = float(xp.to_numpy(self.inner(self.data, self.data)).max())
        self.truth = truth
        self._last: tuple[Any, Any, Any] = (None, None, None)  # measurements, a copy of them, and A^* of them

    def measure(self, *sums):
        groups = [list(points) for points in sums]
        pairs = self.operator.traced(groups)
        return self.operator.measure(groups) if pairs is None else [Traced(self, *pair) for pair in pairs]

    def backproject(self, residual):
        if isinstance(residual, Traced):
            return residual.back
        if type(residual) is not np.ndarray or residual.ndim > 1:
            return self.operator.adjoint(residual)
        known, mark, back = self._last
        if known is not residual or not np.array_equal(mark, residual):
            back = self.operator.adjoint(residual)
            self._last = residual, residual.copy(), back
        return back

    def inner(self, a, b):
        a, b = (v.values if isinstance(v, Traced) else v for v in (a, b))
        return super().inner(a, b)

    def surrogate(self):
        return self.operator.surrogate(self.data)

    def like(self):
        return self.operator.like() + 0 * self.data.reshape(-1)[:1]

    def error(self, point, residual=None) -> Any:
        return None if self.truth is None else relative_error(point, self.truth)

    def solve_block(self, point, gradient, index, ridge):
        return block_cgls(self, point, gradient, index, ridge)
