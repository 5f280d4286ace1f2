"""Matrix sensing: recover a low-rank matrix from linear measurements."""

from __future__ import annotations

from typing import Any

from .. import xp
from ..coverage import covers
from .base import LeastSquares, block_cgls, relative_error
from .checks import as_data, check_shape
from .ensembles import as_ensemble

__all__ = ["MatrixSensing"]


@covers("S01")
class MatrixSensing(LeastSquares):
    """``1/2 || A(W) - y ||^2`` for N linear measurements ``y_i = <M_i, W>``.

    Parameters
    ----------
    operator : array (N, m, n) or (N, m n), scipy or PyLops LinearOperator on vec(W) in C order, or Ensemble
        A.
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
        xp.namespace(self.data, self.operator.like())
        self.scale = float(xp.to_numpy(self.inner(self.data, self.data)).max())
        self.truth = truth

    def measure(self, *sums):
        return self.operator.measure([list(points) for points in sums])

    def backproject(self, residual):
        return self.operator.adjoint(residual)

    def surrogate(self):
        return self.operator.surrogate(self.data)

    def like(self):
        return self.operator.like() + 0 * self.data.reshape(-1)[:1]

    def error(self, point, residual=None) -> Any:
        return None if self.truth is None else relative_error(point, self.truth)

    def solve_block(self, point, gradient, index, ridge):
        return block_cgls(self, point, gradient, index, ridge)
