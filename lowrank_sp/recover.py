"""One-line entry points for people with data: sensible solver, start and checks, nothing to tune."""

from __future__ import annotations

from typing import Any

from . import inits
from .parameterizations import BurerMonteiro
from .problems import MatrixCompletion, MatrixFactorization, MatrixSensing
from .result import Result
from .solve import solve
from .solvers import ALS, AltScaledGD, ScaledCG

__all__ = ["complete", "factorize", "sense"]


def factorize(target: Any, rank: int, max_iter: int = 200, tol: float = 1e-10, seed: Any = 0) -> Result:
    """The best rank-r approximation ``X Y^H`` of a matrix: array, sparse matrix or linear operator.

    Starts from a randomized sketch and polishes it with alternating scaled gradient descent, which for an
    exactly low-rank target takes one sweep.

    >>> import numpy as np
    >>> result = factorize(np.outer([1.0, 2.0], [3.0, 4.0, 5.0]), rank=1)
    >>> result.success
    True
    """
    problem = MatrixFactorization(target)
    start = inits.spectral(problem, BurerMonteiro, rank, seed=seed)
    return solve(problem, start, AltScaledGD(), max_iter, tol)


def sense(
    operator: Any,
    measurements: Any,
    shape: tuple[int, int],
    rank: int,
    max_iter: int = 1000,
    tol: float = 1e-10,
) -> Result:
    """A low-rank matrix from linear measurements ``y_i = <M_i, W>``; arguments as `MatrixSensing`."""
    problem = MatrixSensing(operator, measurements, shape)
    start = inits.spectral(problem, BurerMonteiro, rank)
    return solve(problem, start, ScaledCG(), max_iter, tol)


def complete(matrix: Any, rank: int, max_iter: int = 500, tol: float = 1e-10) -> Result:
    """Fill in a matrix: an array with NaN for unknown entries, a scipy sparse matrix, or a `MatrixCompletion`.

    Alternating least squares from a spectral start; ``result.point.dense()`` is the completed matrix and
    ``result.point.entries(rows, cols)`` some of its entries.
    """
    problem = _as_completion(matrix)
    start = inits.spectral(problem, BurerMonteiro, rank)
    return solve(problem, start, ALS(), max_iter, tol)


def _as_completion(matrix: Any) -> MatrixCompletion:
    import scipy.sparse

    if isinstance(matrix, MatrixCompletion):
        return matrix
    return (
        MatrixCompletion.from_sparse(matrix) if scipy.sparse.issparse(matrix) else MatrixCompletion.from_array(matrix)
    )
