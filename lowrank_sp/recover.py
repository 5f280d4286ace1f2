"""One-line entry points for people with data: sensible solver, start and checks, nothing to tune."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import inits, xp
from .baselines import PCP
from .parameterizations import SVD, BurerMonteiro, SymmetricBurerMonteiro
from .problems import MatrixCompletion, MatrixFactorization, MatrixSensing, QuadraticEnsemble, RobustPCA
from .result import Result
from .solve import solve
from .solvers import ALS, AltScaledGD, ScaledCG

__all__ = ["Separation", "complete", "factorize", "phase_retrieval", "robust_pca", "sense"]

# What robust_pca calls an outlier: an entry of the residual this many standard deviations of the rest from zero,
# and at least this share of the root mean square of W.
DEVIATIONS, RELATIVE = 5.0, 1e-3


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


class Separation(NamedTuple):
    """A matrix as low rank plus sparse."""

    result: Result
    """Of the low-rank part: ``result.point.dense()``."""
    sparse: Any
    """The sparse part, an array (m, n)."""


def robust_pca(
    matrix: Any, rank: int, outliers: float | None = None, max_iter: int = 500, tol: float = 1e-10
) -> Separation:
    """A matrix as a low-rank part plus sparse outliers of any size.

    Three steps: principal component pursuit with few singular values for a start, alternating scaled gradient
    descent on the trimmed loss of `RobustPCA`, and least squares on the entries that are no outliers.

    Parameters
    ----------
    matrix : array (m, n)
    rank : int
        Of the low-rank part.
    outliers : float, optional
        Largest share of outliers in any row or column, in (0, 0.5), if known; by default what stands out after
        the first step.

    Returns
    -------
    Separation
        ``(result, sparse)``; the result is that of the last step.

    >>> matrix = np.outer(np.arange(1.0, 21.0), np.ones(16))
    >>> matrix[3, 5] += 100.0
    >>> result, sparse = robust_pca(matrix, rank=1)
    >>> np.argwhere(sparse).tolist()
    [[3, 5]]
    """
    problem = RobustPCA(matrix, 0.1 if outliers is None else outliers)
    if len(problem.data.shape) != 2:
        raise ValueError(f"matrix must have two axes, got shape {tuple(problem.data.shape)}")
    first = inits.spectral(problem, BurerMonteiro, rank)
    wide = solve(problem, first, PCP(rank=rank + 10), 80, 1e-4).point.to(SVD)
    point = SVD(*(a[..., :rank] for a in wide.arrays())).to(BurerMonteiro)
    share = float(xp.to_numpy(_largest_share(_stands_out(problem.data, point)))) if outliers is None else outliers
    problem = RobustPCA(problem.data, min(max(share, 1e-3), 0.4))
    point = solve(problem, point, AltScaledGD(), max_iter, max(tol, 1e-6)).point
    clean = ~_stands_out(problem.data, point)
    where = clean.nonzero(as_tuple=True) if xp.is_torch(clean) else clean.nonzero()
    result = solve(MatrixCompletion(*where, problem.data[clean], problem.shape), point, ALS(ridge=0.0), max_iter, tol)
    return Separation(result, (problem.data - result.point.dense()) * ~clean)


def _stands_out(data: Any, point: Any) -> Any:
    """Which entries (m, n) of the residual are outliers."""
    low = point.dense()
    gap, size = abs(data - low), float(xp.inner(low, low) / low.shape[0] / low.shape[1]) ** 0.5
    deviation = 1.4826 * float(np.median(xp.to_numpy(gap)))
    return gap > max(DEVIATIONS * deviation, RELATIVE * size)


def _largest_share(mask: Any) -> Any:
    """The largest share of true entries in any row or column."""
    values = mask * 1.0
    return max(values.mean(-1).max(), values.mean(-2).max())


def phase_retrieval(vectors: Any, intensities: Any, rank: int = 1, max_iter: int = 1000, tol: float = 1e-10) -> Result:
    """A signal from squared magnitudes ``y_i = |a_i^H x|^2``, up to its sign or phase.

    Parameters
    ----------
    vectors : array (N, n)
        The ``a_i``, real or complex; six to ten times as many as the signal is long, close to Gaussian.
    intensities : array (N,)
    rank : int
        Columns of the signal, for sums of intensities ``||X^H a_i||^2``.

    Returns
    -------
    Result
        ``result.point.factor[:, 0]`` is the signal; X is known up to a unitary r x r matrix.

    >>> rng = np.random.default_rng(0)
    >>> signal, vectors = rng.standard_normal(10), rng.standard_normal((80, 10))
    >>> found = phase_retrieval(vectors, (vectors @ signal) ** 2).point.factor[:, 0]
    >>> bool(np.allclose(abs(found), abs(signal)))
    True
    """
    operator = QuadraticEnsemble(vectors)
    problem = MatrixSensing(operator, intensities, operator.shape)
    start = inits.spectral(problem, SymmetricBurerMonteiro, rank)
    return solve(problem, start, ScaledCG(), max_iter, tol)
