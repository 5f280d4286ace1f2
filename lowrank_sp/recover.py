"""One-line entry points for people with data: sensible solver, start and checks, nothing to tune."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from . import inits, xp
from .baselines import PCP
from .escalate import complete_exactly_or_robustly
from .parameterizations import SVD, BurerMonteiro, SymmetricBurerMonteiro
from .problems import MatrixCompletion, MatrixFactorization, MatrixSensing, QuadraticEnsemble, RobustPCA
from .problems.checks import as_data, check_rank
from .problems.tomography import PauliEnsemble, normalized
from .ranks import is_auto, rank_by_gap, rank_of_completion, rank_of_matrix, rank_of_sensing
from .result import Result, join
from .solve import solve
from .solvers import ALS, AltScaledGD, ScaledCG

__all__ = ["Separation", "complete", "factorize", "phase_retrieval", "robust_pca", "sense", "tomography"]

# What robust_pca calls an outlier: an entry of the residual this many standard deviations of the rest from zero,
# and at least this share of the root mean square of W.
DEVIATIONS, RELATIVE = 5.0, 1e-3
# Where the first step fails much stands out. What is trimmed must leave so many known entries per degree of freedom.
LEFT = 2.5


def factorize(target: Any, rank: int | str, max_iter: int = 200, tol: float = 1e-10, seed: Any = 0) -> Result:
    """The best rank-r approximation ``X Y^H`` of a matrix: array, sparse matrix or linear operator.

    Starts from a randomized sketch and polishes it with alternating scaled gradient descent, which for an
    exactly low-rank target takes one sweep. ``rank="auto"`` counts the singular values above white noise of unknown
    level (`lowrank_sp.ranks.rank_by_noise_edge`); of a sparse matrix or operator it takes the widest gap.

    >>> import numpy as np
    >>> result = factorize(np.outer([1.0, 2.0], [3.0, 4.0, 5.0]), rank=1)
    >>> result.success
    True
    """
    problem = MatrixFactorization(target)
    rank, why = rank_of_matrix(problem) if is_auto(rank) else _given(rank, problem)
    start = inits.spectral(problem, BurerMonteiro, rank, seed=seed)
    result = solve(problem, start, AltScaledGD(), max_iter, tol)
    return _explained(result, why, "BurerMonteiro, randomized SVD -> AltScaledGD")


def sense(
    operator: Any,
    measurements: Any,
    shape: tuple[int, int],
    rank: int | str,
    max_iter: int = 1000,
    tol: float = 1e-10,
) -> Result:
    """A low-rank matrix from linear measurements ``y_i = <M_i, W>``; arguments as `MatrixSensing`.

    Conjugate gradients in the metric of ScaledGD from a spectral start. ``rank="auto"`` takes the widest gap in the
    spectrum of an over-parameterized fit.
    """
    problem = MatrixSensing(operator, measurements, shape)
    rank, why = rank_of_sensing(problem) if is_auto(rank) else _given(rank, problem)
    start = inits.spectral(problem, BurerMonteiro, rank)
    return _explained(
        solve(problem, start, ScaledCG(), max_iter, tol), why, "BurerMonteiro, spectral start -> ScaledCG"
    )


def complete(matrix: Any, rank: int | str, max_iter: int = 500, tol: float = 1e-10, validation: float = 0.1) -> Result:
    """Fill in a matrix: an array or DataFrame with NaN for unknown entries, a sparse matrix, or a `MatrixCompletion`.

    Alternating least squares from a spectral start. Where the data are not met, which is the fate of factor methods
    on few entries of ill-conditioned matrices, `MatrixIRLS`; where that does not meet them either, they are noisy,
    and alternating least squares get the ridge that predicts held-out entries best. ``result.choice`` says which.

    Parameters
    ----------
    matrix : array (m, n), scipy sparse matrix, torch sparse tensor, DataFrame or MatrixCompletion
    rank : int or "auto"
        ``"auto"`` grows the rank as long as held-out entries are predicted better.
    max_iter, tol : int, float
        Of every stage; one that does not meet the data ends when it stalls, and noisy data get a tolerance of 1e-5.
    validation : float
        Share of the entries held out to choose a ridge or a rank, in [0, 0.5]; 0 for no ridge. What is chosen is then
        fitted to all entries.

    Returns
    -------
    Result
        ``result.point.dense()`` is the completed matrix and ``result.point.entries(rows, cols)`` some of its
        entries; `fill` puts them where ``matrix`` has none.

    >>> import numpy as np
    >>> matrix = np.outer([1.0, 2.0, 3.0], [3.0, 4.0, 5.0])
    >>> matrix[1, 1] = np.nan
    >>> round(float(complete(matrix, rank=1).point.dense()[1, 1]), 8)
    8.0
    """
    problem = MatrixCompletion.of(matrix)
    if not 0 <= validation <= 0.5:
        raise ValueError(f"validation must lie in [0, 0.5], got {validation!r}")
    rank, why = rank_of_completion(problem, validation or 0.1) if is_auto(rank) else _given(rank, problem)
    return _explained(complete_exactly_or_robustly(problem, rank, max_iter, tol, validation), why)


def _given(rank: Any, problem: Any) -> tuple[int, str]:
    rank = check_rank(rank, problem.shape)
    return rank, f"rank {rank} as given"


def _explained(result: Result, *words: str) -> Result:
    """The result with what was chosen before it."""
    return join([result], "; ".join([*words, *[result.choice] * bool(result.choice)]))


class Separation(NamedTuple):
    """A matrix as low rank plus sparse."""

    result: Result
    """Of the low-rank part: ``result.point.dense()``."""
    sparse: Any
    """The sparse part, an array (m, n)."""


def robust_pca(
    matrix: Any, rank: int | str, outliers: float | None = None, max_iter: int = 500, tol: float = 1e-10
) -> Separation:
    """A matrix as a low-rank part plus sparse outliers of any size.

    Three steps: principal component pursuit with few singular values for a start, alternating scaled gradient
    descent on the trimmed loss of `RobustPCA`, and least squares on the entries that are no outliers.

    Parameters
    ----------
    matrix : array (m, n), scipy sparse matrix, torch sparse tensor or DataFrame
        NaN marks unknown entries, and in sparse containers the stored entries, zeros included, are the known ones, as
        for `complete`; outliers are then separated and the rest is filled in.
    rank : int or "auto"
        Of the low-rank part; ``"auto"`` takes the widest gap of its spectrum once outliers are cut out, by principal
        component pursuit with full decompositions.
    outliers : float, optional
        Largest share of outliers in any row or column, in (0, 0.5), if known; by default what stands out after
        the first step. See `RobustPCA` for what it refers to where entries are unknown.

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
    problem = RobustPCA(matrix, 0.1 if outliers is None else outliers)
    if len(problem.data.shape) != 2:
        raise ValueError(f"matrix must have two axes, got shape {tuple(problem.data.shape)}")
    rank, why = _rank_with_outliers(problem) if is_auto(rank) else _given(rank, problem)
    first = inits.spectral(problem, BurerMonteiro, rank)
    wide = solve(problem, first, PCP(rank=rank + 10), 80, 1e-4).point.to(SVD)
    point = SVD(*(a[..., :rank] for a in wide.arrays())).to(BurerMonteiro)
    if outliers is None:
        share = min(_largest_share(problem, _stands_out(problem, point)), _most_to_trim(problem, rank))
        problem = problem.trimming(max(share, 1e-3))
    point = solve(problem, point, AltScaledGD(), max_iter, max(tol, 1e-6)).point
    wrong = _stands_out(problem, point)
    clean = ~wrong if problem.known is None else problem.known & ~wrong
    result = solve(_entries(problem.data, clean), point, ALS(ridge=0.0), max_iter, tol)
    chain = f"PCP -> AltScaledGD with at most {problem.outliers:.2g} outliers per row and column -> ALS on the rest"
    outside = _stands_out(problem, result.point)  # again: the last fit is closer, and fewer entries are outliers
    return Separation(_explained(result, why, chain), (problem.data - result.point.dense()) * outside)


def _rank_with_outliers(problem: RobustPCA) -> tuple[int, str]:
    """The widest gap in the spectrum of the matrix whose outliers are replaced by what pursuit puts there."""
    low = solve(problem, inits.spectral(problem, BurerMonteiro, 1), PCP(), 300, 1e-6).point
    wrong = _stands_out(problem, low)
    unusable = wrong if problem.known is None else wrong | ~problem.known
    clean = problem.data * ~unusable + low.dense() * unusable
    rank = rank_by_gap(xp.to_numpy(xp.namespace(clean).linalg.svd(clean)[1]))
    return rank, f"rank {rank} from the widest gap of the spectrum, outliers cut out by PCP"


def _entries(matrix: Any, mask: Any) -> MatrixCompletion:
    """The completion problem of the entries of a matrix under a mask."""
    where = mask.nonzero(as_tuple=True) if xp.is_torch(mask) else mask.nonzero()
    return MatrixCompletion(*where, matrix[mask], tuple(matrix.shape))


def _stands_out(problem: RobustPCA, point: Any) -> Any:
    """Which entries (m, n) of the residual are outliers."""
    low = point.dense()
    gap, size = abs(problem.masked(problem.data - low)), float(xp.inner(low, low) / low.shape[0] / low.shape[1]) ** 0.5
    deviation = 1.4826 * float(np.median(xp.to_numpy(gap if problem.known is None else gap[problem.known])))
    return gap > max(DEVIATIONS * deviation, RELATIVE * size)


def _largest_share(problem: RobustPCA, mask: Any) -> float:
    """The largest share of true entries in any row or column."""
    rows, cols = problem.counts
    return max(float(mask.sum(-1).max()) / rows, float(mask.sum(-2).max()) / cols)


def _most_to_trim(problem: RobustPCA, rank: int) -> float:
    """The largest share of outliers for which enough entries are left; the iterations trim twice the share."""
    m, n = problem.shape
    spare = 1 - LEFT * rank * (m + n - rank) / (problem.observed * m * n)
    return min(max(spare / 2, 0.05), 0.4)


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
    chain = "SymmetricBurerMonteiro, truncated spectral start -> ScaledCG"
    return _explained(solve(problem, start, ScaledCG(), max_iter, tol), f"rank {rank} as given", chain)


def tomography(
    strings: Any, expectations: Any, rank: int = 1, weights: Any = None, max_iter: int = 1000, tol: float = 1e-10
) -> Result:
    """A quantum state of low rank from the expectation values of Pauli strings.

    Parameters
    ----------
    strings : sequence of N str
        For example ``["XIZ", "ZZI"]``, one letter per qubit.
    expectations : array (N,)
        ``tr(P_i W)``, in [-1, 1] up to noise.
    rank : int
        1 for pure states.
    weights : array (N,), optional
        Of the squared residuals; with the numbers of shots ``n_i`` the efficient ones are about
        ``n_i / (1 - y_i^2)``, kept away from a vanishing denominator.

    Returns
    -------
    Result
        ``result.point.dense()`` is the density matrix (d, d): Hermitian, positive semidefinite, of trace one. The
        trace before it was normalized is in ``result.choice``; far from one, the model or the data are wrong.

    >>> result = tomography(["II", "ZI", "IZ", "ZZ", "XX", "YY", "XY", "YX"], np.array([1, 0, 0, 1, 1, -1, 0, 0.0]))
    >>> result.point.dense().real.round(6).tolist()  # a Bell state
    [[0.5, 0.0, 0.0, 0.5], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.5, 0.0, 0.0, 0.5]]
    """
    values = as_data(expectations, "expectations", 1)
    operator = PauliEnsemble(strings, weights, values)
    if tuple(values.shape) != (operator.count,):
        raise ValueError(f"expectations must have shape ({operator.count},), one per string, got {tuple(values.shape)}")
    problem = MatrixSensing(operator, operator.scaled(values), operator.shape)
    rank, why = _given(rank, problem)
    start = inits.spectral(problem, SymmetricBurerMonteiro, rank)
    result = solve(problem, start, ScaledCG(), max_iter, tol)
    point, trace = normalized(result.point)
    chain = f"SymmetricBurerMonteiro, spectral start -> ScaledCG -> trace {trace:.4g} normalized to one"
    return replace(_explained(result, why, chain), point=point)
