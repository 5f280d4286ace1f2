"""Robust principal components in one line: low rank plus sparse outliers, from arrays or from stored entries."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np

from . import inits, xp
from .baselines import PCP
from .baselines.common import frobenius
from .operators import is_sparse
from .parameterizations import SVD, BurerMonteiro
from .problems import MatrixCompletion, MatrixSensing, RobustCompletion, RobustPCA, RobustSensing
from .problems.checks import check_limits, freedom, warn_underdetermined
from .problems.ensembles import MaskedEnsemble
from .ranks import given, is_auto, rank_by_gap, rank_of_completion
from .result import Result, Status, explained, join, uninterrupted
from .solve import solve
from .solvers import ALS, AltScaledGD, ScaledCG, ScaledGD

__all__ = ["Separation", "robust_pca", "robust_sense", "separate_measurements"]

# What robust_pca calls an outlier: an entry of the residual this many standard deviations of the rest from zero,
# and at least this share of the root mean square of W.
DEVIATIONS, RELATIVE = 5.0, 1e-3
# Where the first step fails much stands out. What is trimmed must leave so many known entries per degree of freedom.
LEFT = 2.5
# Beyond so many deviations an entry has no part in the fit: small outliers left in cost more than good ones left out.
DOUBTFUL = 3.0
# Times that doubtful entries are named anew. Each time the fit follows those left in, and they look better.
ROUNDS = 2
# Wrong measurements stand out once the median residual is this share of the median measurement; how often to look.
# The first is for large ones alone.
SEEN, LOOK = (0.2, 0.02), 5
# Iterations between two looks at which measurements are wrong, once those stand out, and how many looks.
BRIEF, LOOKS = 5, 10
# Singular values of the pursuit that looks for the rank of stored entries.
WIDE = 30


class Separation(NamedTuple):
    """A matrix as low rank plus sparse."""

    result: Result
    """Of the low-rank part: ``result.point.dense()``."""
    sparse: Any
    """The sparse part (m, n): an array, or a sparse matrix or tensor if the data came in one. Of measurements, (N,)."""


def robust_pca(
    matrix: Any, rank: int | str, outliers: float | None = None, max_iter: int = 500, tol: float = 1e-10
) -> Separation:
    """A matrix as a low-rank part plus sparse outliers of any size.

    Three steps: principal component pursuit with few singular values for a start, alternating scaled gradient
    descent on the trimmed loss of `RobustPCA`, and least squares on the entries that are no outliers. From sparse
    containers, and from a `MatrixCompletion`, all of it, with `RobustCompletion`, costs time and memory in proportion
    to the known entries.

    Parameters
    ----------
    matrix : array (m, n), scipy sparse matrix, torch sparse tensor, DataFrame or MatrixCompletion
        NaN marks unknown entries, and in sparse containers the stored entries, zeros included, are the known ones, as
        for `complete`; outliers are then separated and the rest is filled in.
    rank : int or "auto"
        Of the low-rank part; ``"auto"`` takes the widest gap of its spectrum once outliers are cut out, by principal
        component pursuit with full decompositions.
    outliers : float, optional
        Largest share of outliers in any row or column, in (0, 0.5), if known; by default what stands out after
        the first step. See `RobustPCA` for what it refers to where entries are unknown.
    max_iter, tol : int, float
        Of every step, as for `solve`.

    Raises
    ------
    ValueError, TypeError
        As for `RobustPCA`, and for a rank or limits out of range.

    Returns
    -------
    Separation
        ``(result, sparse)``; the result is that of the last step, and ``sparse`` is zero where the matrix is unknown.

    >>> matrix = np.outer(np.arange(1.0, 21.0), np.ones(16))
    >>> matrix[3, 5] += 100.0
    >>> result, sparse = robust_pca(matrix, rank=1)
    >>> np.argwhere(sparse).tolist()
    [[3, 5]]
    """
    check_limits(max_iter, tol)
    share = 0.1 if outliers is None else outliers
    problem = _stated(matrix, share)
    if problem.data.ndim != problem.data_ndim:
        raise ValueError(f"matrix must have two axes, got shape {tuple(problem.data.shape)}")
    rank, why = _rank_with_outliers(problem) if is_auto(rank) else given(rank, problem)
    first = inits.spectral(problem, BurerMonteiro, rank)
    wide = uninterrupted(solve(problem, first, PCP(rank=rank + 10), 80, 1e-4)).point.to(SVD)
    point = SVD(*(a[..., :rank] for a in wide.arrays())).to(BurerMonteiro)
    if outliers is None:
        share = min(problem.largest_share(_stands_out(problem, point)), _most_to_trim(problem, rank))
        problem = problem.trimming(max(share, 1e-3))
    point = uninterrupted(solve(problem, point, AltScaledGD(), max_iter, max(tol, 1e-6))).point
    result, outside = _refitted(problem, point, max_iter, tol)
    chain = f"PCP -> AltScaledGD with at most {problem.outliers:.2g} outliers per row and column -> ALS on the rest"
    sparse = problem.as_sparse(problem.leftover(result.point) * outside)
    return Separation(explained(result, why, chain), sparse)


def _stated(matrix: Any, share: float) -> RobustPCA | RobustCompletion:
    """The problem that a container states: of its known entries alone where it lists them."""
    if isinstance(matrix, MatrixCompletion):
        return RobustCompletion.from_completion(matrix, share)
    return RobustCompletion.from_sparse(matrix, share) if is_sparse(matrix) else RobustPCA(matrix, share)


def robust_sense(
    operator: Any,
    measurements: Any,
    shape: tuple[int, int],
    rank: int,
    outliers: float = 0.2,
    max_iter: int = 1000,
    tol: float = 1e-10,
) -> Separation:
    """A low-rank matrix from linear measurements of which a share is arbitrarily wrong; arguments as `RobustSensing`.

    Scaled subgradients of the sum of absolute values, only until the wrong measurements stand out of the residual;
    then conjugate gradients in the metric of ScaledGD on the squares of the others, until those stay the same.
    Fewer measurements without the ``outliers`` than degrees of freedom, ``rank (m + n - rank)``, are a warning.

    Parameters
    ----------
    operator, measurements, shape
        As for `MatrixSensing`.
    rank : int
    outliers : float
        Share of wrong measurements, in [0, 0.5); an estimate from above is safe.
    max_iter, tol : int, float
        Of every stage, as for `solve`.

    Raises
    ------
    ValueError, TypeError
        As for `RobustSensing`, and for a rank or limits out of range.

    Returns
    -------
    Separation
        ``(result, sparse)``; ``sparse`` (N,) is what is wrong with the measurements.

    >>> rng = np.random.default_rng(0)
    >>> operator, truth = rng.standard_normal((150, 8, 7)), np.outer(np.arange(8.0), np.ones(7))
    >>> measurements = np.einsum("kij,ij->k", operator, truth)
    >>> measurements[::10] += 100.0
    >>> result, sparse = robust_sense(operator, measurements, (8, 7), rank=1)
    >>> bool(np.allclose(result.point.dense(), truth))
    True
    """
    check_limits(max_iter, tol)
    problem = RobustSensing(operator, measurements, shape, outliers)
    if problem.data.ndim != 1:
        raise ValueError(f"measurements must have one axis, got shape {tuple(problem.data.shape)}")
    rank, why = given(rank, problem)
    right = round((1 - outliers) * problem.data.shape[0])
    warn_underdetermined(right, freedom(problem.shape, rank), "measurements that are no outliers")
    result, wrong = separate_measurements(problem, rank, max_iter, tol)
    chain = "BurerMonteiro, truncated spectral start -> ScaledGD of absolute values -> ScaledCG of the rest"
    return Separation(explained(result, why, chain), -problem.residual(result.point) * wrong)


def separate_measurements(problem: RobustSensing, rank: int, max_iter: int, tol: float) -> tuple[Result, Any]:
    """The solve behind `robust_sense`, and which measurements (N,) it takes for wrong.

    Large wrong measurements stand out early. Where the fit without those is still poor, there are small ones, and
    subgradients go on.
    """
    unit, stages, wrong = _median(problem.data), [], None
    point = inits.spectral(problem, BurerMonteiro, rank)
    for share in SEEN:

        def seen(iteration: int, point: Any, loss: float, share: float = share) -> bool:
            return iteration % LOOK == 0 and _median(problem.residual(point)) < share * unit

        stages.append(uninterrupted(solve(problem, point, ScaledGD(), max_iter, tol, callback=seen)))
        point = stages[-1].point
        fitted, wrong = _without_wrong(problem, point, unit, max_iter, tol)
        stages += fitted
        met = _median(problem.residual(stages[-1].point)) < SEEN[-1] * unit
        if met or stages[-1].status is Status.INTERRUPTED:
            break
    return join(stages, ""), wrong


def _without_wrong(
    problem: RobustSensing, point: Any, unit: float, max_iter: int, tol: float
) -> tuple[list[Result], Any]:
    """Least squares without the measurements that stand out, until those stay the same."""
    wrong, most, stages = _large(problem, point, unit), min(BRIEF, max_iter), []
    for last in [False] * (LOOKS - 1) + [True]:
        rest = MaskedEnsemble(problem.operator, ~wrong)
        squares = MatrixSensing(rest, problem.data * ~wrong, problem.shape, problem.truth)
        # Until the names stay the same, solutions are not worth their accuracy.
        stages.append(solve(squares, point, ScaledCG(), max_iter if last else most, tol))
        point, before = stages[-1].point, wrong
        wrong = _large(problem, point, unit)
        same = bool((wrong == before).all())
        if stages[-1].status is Status.INTERRUPTED or (same and (stages[-1].success or most == max_iter)):
            break
        most = max_iter if same else most
    return stages, wrong


def _large(problem: RobustSensing, point: Any, unit: float) -> Any:
    """Which residuals stand out of the others, or of rounding."""
    size = abs(problem.residual(point))
    return size > max(DEVIATIONS * 1.4826 * _median(size), 1e3 * xp.eps(size) * unit)


def _median(values: Any) -> float:
    return float(np.median(abs(xp.to_numpy(values))))


def _refitted(problem: RobustPCA | RobustCompletion, point: Any, max_iter: int, tol: float) -> tuple[Result, Any]:
    """Least squares on the entries that are not doubtful, until those stay the same; with it which are outliers."""
    doubtful, stages = _stands_out(problem, point, DOUBTFUL), []
    for _ in range(ROUNDS):
        stages.append(solve(_without(problem, doubtful), point, ALS(ridge=0.0), max_iter, tol))
        before, point = doubtful, stages[-1].point
        doubtful = _stands_out(problem, point, DOUBTFUL)
        if bool((doubtful == before).all()) or stages[-1].status is Status.INTERRUPTED:
            break
    return join(stages, ""), _stands_out(problem, point)


def _without(problem: RobustPCA | RobustCompletion, mask: Any) -> MatrixCompletion:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a row may be all outliers; unobserved ones were named before
        return problem.without(mask)


def _rank_with_outliers(problem: RobustPCA | RobustCompletion) -> tuple[int, str]:
    """By the spectrum of the matrix whose outliers are replaced by what pursuit puts there, or by held-out entries."""
    if isinstance(problem, RobustPCA):
        low = uninterrupted(solve(problem, inits.spectral(problem, BurerMonteiro, 1), PCP(), 300, 1e-6)).point
        wrong = _stands_out(problem, low)
        unusable = wrong if problem.known is None else wrong | ~problem.known
        clean = problem.data * ~unusable + low.dense() * unusable
        rank = rank_by_gap(xp.to_numpy(xp.namespace(clean).linalg.svd(clean)[1]))
        return rank, f"rank {rank} from the widest gap of the spectrum, outliers cut out by PCP"
    pursuit = PCP(rank=min(WIDE, *problem.shape))
    low = uninterrupted(solve(problem, inits.spectral(problem, BurerMonteiro, 1), pursuit, 80, 1e-4)).point
    rank, why = rank_of_completion(_without(problem, _stands_out(problem, low)), 0.1)
    return rank, f"{why}, outliers cut out by PCP"


def _stands_out(problem: RobustPCA | RobustCompletion, point: Any, deviations: float = DEVIATIONS) -> Any:
    """Which entries of the residual are so many deviations from zero, in the layout of the data."""
    gap = abs(problem.leftover(point))
    size = frobenius(point) / (problem.shape[0] * problem.shape[1]) ** 0.5
    deviation = 1.4826 * float(np.median(xp.to_numpy(problem.known_part(gap))))
    return problem.suspicious(gap) > max(deviations * deviation, RELATIVE * size)


def _most_to_trim(problem: RobustPCA | RobustCompletion, rank: int) -> float:
    """The largest share of outliers for which enough entries are left; the iterations trim twice the share."""
    m, n = problem.shape
    spare = 1 - LEFT * rank * (m + n - rank) / (problem.observed * m * n)
    return min(max(spare / 2, 0.05), 0.4)
