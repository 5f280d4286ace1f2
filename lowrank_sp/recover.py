"""One-line entry points for people with data: sensible solver, start and checks, nothing to tune."""

from __future__ import annotations

from dataclasses import replace
from numbers import Real
from time import perf_counter
from typing import Any

import numpy as np

from . import inits, xp
from .coverage import covers
from .escalate import complete_exactly_or_robustly
from .parameterizations import BurerMonteiro, Hadamard, SymmetricBurerMonteiro
from .problems import MatrixCompletion, MatrixFactorization, MatrixSensing, QuadraticEnsemble
from .problems.checks import as_data, check_limits, freedom, warn_underdetermined
from .problems.tomography import PauliEnsemble, normalized
from .ranks import given, is_auto, rank_of_completion, rank_of_matrix, rank_of_sensing
from .result import Result, explained, join, uninterrupted
from .solve import solve
from .solvers import AltScaledGD, ScaledCG

__all__ = ["complete", "factorize", "hadamard_decomposition", "phase_retrieval", "sense", "tomography"]

# Random starts that are tried at a time, their iterations, and the relative residual at which one has met the data.
TOGETHER, TRIAL, MET = 12, 150, 1e-6
# Share of negative intensities in the sum of all magnitudes: noise of twice their mean makes about that much.
NEGATIVE = 0.25


def factorize(target: Any, rank: int | str, max_iter: int = 200, tol: float = 1e-10, seed: Any = 0) -> Result:
    """The best rank-r approximation ``X Y^H`` of a matrix: array, sparse matrix or linear operator.

    Starts from a randomized sketch and polishes it with alternating scaled gradient descent, which for an
    exactly low-rank target takes one sweep. ``rank="auto"`` counts the singular values above white noise of unknown
    level (`lowrank_sp.ranks.rank_by_noise_edge`); of a sparse matrix or operator it takes the widest gap.

    Parameters
    ----------
    target : array (m, n), scipy sparse matrix or LinearOperator
        Finite and fully known; for unknown entries see `complete`.
    rank : int or "auto"
        At most ``min(m, n)``.
    max_iter, tol : int, float
        As for `solve`.
    seed : int or Generator
        Of the sketch.

    Returns
    -------
    Result
        ``result.point`` holds the factors ``left`` (m, r) and ``right`` (n, r).

    Raises
    ------
    ValueError, TypeError
        As for `MatrixFactorization`, and for a rank or limits out of range.

    >>> import numpy as np
    >>> result = factorize(np.outer([1.0, 2.0], [3.0, 4.0, 5.0]), rank=1)
    >>> result.success
    True
    """
    check_limits(max_iter, tol)
    problem = MatrixFactorization(target)
    rank, why = rank_of_matrix(problem) if is_auto(rank) else given(rank, problem)
    start = inits.spectral(problem, BurerMonteiro, rank, seed=seed)
    result = solve(problem, start, AltScaledGD(), max_iter, tol)
    return explained(result, why, "BurerMonteiro, randomized SVD -> AltScaledGD")


@covers("S19", "P117")
def hadamard_decomposition(
    target: Any, rank: int, starts: int = 48, max_iter: int = 1000, tol: float = 1e-10, seed: Any = 0
) -> Result:
    """Two matrices of rank r whose elementwise product is closest to a matrix: ``(X1 Y1^H) o (X2 Y2^H)``.

    Conjugate gradients in the metric of ScaledGD from random starts, twelve at a time as one batch, until one meets
    the data; the best is polished. The loss has local minima: of rank 2 every few starts one succeeds, of rank 3 so
    few that more than the default may be needed. ``result.choice`` says how many were tried and met the data;
    ``result.success`` only that the best one is stationary.

    Parameters
    ----------
    target : array (m, n)
    rank : int
        Of either matrix; their product has rank ``min(r^2, m, n)`` at most.
    starts : int
        Most random starts, at least one; noisy data, which nothing meets, take all of them.
    seed : int or Generator
        Of the starts.

    Raises
    ------
    ValueError, TypeError
        For a rank or a number of starts out of range, or a target that is no matrix of finite numbers.

    Returns
    -------
    Result
        ``result.point`` is a `Hadamard` point with the factors ``left, right, left2, right2``; they are known up
        to scalings of rows and columns and two r x r matrices at best.

    Notes
    -----
    Source: section VII-B of :cite:`survey2026sp`; starts and solver are ours.

    >>> from lowrank_sp import synthetic
    >>> target = synthetic.hadamard(16, 12, rank=2, seed=0).data
    >>> bool(np.allclose(hadamard_decomposition(target, rank=2).point.dense(), target))
    True
    """
    if isinstance(starts, (bool, str)) or int(starts) != starts or starts < 1:
        raise ValueError(f"starts must be an integer of at least 1, got {starts!r}")
    check_limits(max_iter, tol)
    problem = MatrixFactorization(target)
    if problem.implicit or problem.data.ndim != 2:
        kind = f"{type(target).__name__} of shape {tuple(target.shape)}"
        raise TypeError(f"target must be an array with two axes, got {kind}; the starts form arrays of its size")
    rank, why = given(rank, problem)
    tick = perf_counter()
    point, words = _best_of_starts(problem, rank, int(starts), max(tol, 1e-8), np.random.default_rng(seed))
    seconds = perf_counter() - tick
    result = join([solve(problem, point, ScaledCG(), max_iter, tol)], "", seconds)
    return explained(result, why, f"Hadamard, {words} -> ScaledCG")


def _best_of_starts(
    problem: MatrixFactorization, rank: int, starts: int, tol: float, rng: np.random.Generator
) -> tuple[Hadamard, str]:
    """The point of least loss that short runs from random starts reach, and what was tried in words."""
    m, n = problem.shape
    # The variance of an entry of W is rank^2 scale^8: that of the target.
    scale = (problem.scale / (m * n * rank**2)) ** 0.125 or 1.0
    best, least, tried, met = None, np.inf, 0, 0
    while tried < starts and not met:
        batch = min(TOGETHER, starts - tried)
        start = inits.gaussian(problem, Hadamard, rank, scale, rng, batch)
        found = uninterrupted(solve(problem, start, ScaledCG(), TRIAL, tol))
        losses = xp.to_numpy(found.fun)
        k = int(np.argmin(losses))
        if losses[k] < least or best is None:
            best, least = found.point.map(lambda a, k=k: a[k]), float(losses[k])
        met = int((losses <= 0.5 * MET**2 * problem.scale).sum())
        tried += batch
    return best, f"the best of {tried} random starts, of which {met or 'none'} met the data"


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
    spectrum of an over-parameterized fit. Fewer measurements than degrees of freedom, ``rank (m + n - rank)``, are a
    warning.

    Parameters
    ----------
    operator : array (N, m, n) or (N, m n), scipy sparse matrix, LinearOperator on vec(W) in C order, or Ensemble
        The ``M_i``.
    measurements : array (N,)
        The ``y_i``.
    shape : (m, n)
        Of W.
    rank : int or "auto"
    max_iter, tol : int, float
        As for `solve`.

    Returns
    -------
    Result
        ``result.point`` holds the factors ``left`` (m, r) and ``right`` (n, r).

    Raises
    ------
    ValueError, TypeError
        As for `MatrixSensing`, and for a rank or limits out of range.

    >>> rng = np.random.default_rng(0)
    >>> operator, truth = rng.standard_normal((60, 6, 5)), np.outer(np.arange(6.0), np.ones(5))
    >>> result = sense(operator, np.einsum("kij,ij->k", operator, truth), (6, 5), rank=1)
    >>> bool(np.allclose(result.point.dense(), truth))
    True
    """
    check_limits(max_iter, tol)
    problem = MatrixSensing(operator, measurements, shape)
    rank, why = rank_of_sensing(problem) if is_auto(rank) else given(rank, problem)
    warn_underdetermined(problem.data.shape[-1], freedom(problem.shape, rank))
    start = inits.spectral(problem, BurerMonteiro, rank)
    return explained(solve(problem, start, ScaledCG(), max_iter, tol), why, "BurerMonteiro, spectral start -> ScaledCG")


def complete(matrix: Any, rank: int | str, max_iter: int = 500, tol: float = 1e-10, validation: float = 0.1) -> Result:
    """Fill in a matrix: an array or DataFrame with NaN for unknown entries, a sparse matrix, or a `MatrixCompletion`.

    Alternating least squares from a spectral start. Where the data are not met, which is the fate of factor methods
    on few entries of ill-conditioned matrices, `MatrixIRLS`; where that does not meet them either, they are noisy,
    and alternating least squares get the ridge that predicts held-out entries best. Where the data are met, but some
    singular value of the fit is as small as the residual, `MatrixIRLS` goes on to working precision.
    ``result.choice`` says which, and whether a singular value could not be told from nothing.

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

    Raises
    ------
    ValueError, TypeError
        As for `MatrixCompletion`, and for a rank, limits or a share out of range. Fewer entries than degrees of
        freedom, ``rank (m + n - rank)``, are a warning.

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
    check_limits(max_iter, tol)
    problem = MatrixCompletion.of(matrix)
    if not (isinstance(validation, Real) and 0 <= validation <= 0.5):
        raise ValueError(f"validation must lie in [0, 0.5], got {validation!r}")
    if is_auto(rank):
        rank, why = rank_of_completion(problem, validation or 0.1)
    else:
        rank, why = given(rank, problem)
        warn_underdetermined(problem.values.shape[-1], freedom(problem.shape, rank), "entries")
    return explained(complete_exactly_or_robustly(problem, rank, max_iter, tol, validation), why)


def phase_retrieval(vectors: Any, intensities: Any, rank: int = 1, max_iter: int = 1000, tol: float = 1e-10) -> Result:
    """A signal from squared magnitudes ``y_i = |a_i^H x|^2``, up to its sign or phase.

    Parameters
    ----------
    vectors : array (N, n)
        The ``a_i``, real or complex; six to ten times as many as the signal is long, close to Gaussian.
    intensities : array (N,)
        Real; noise may make some of them negative, which are fitted as they are.
    rank : int
        Columns of the signal, for sums of intensities ``||X^H a_i||^2``.

    Raises
    ------
    TypeError, ValueError
        For complex intensities, or when negative ones make up more than a quarter of the sum of all magnitudes, as
        in logarithms, or with a mean or a background taken off. Fewer than unknowns are a warning.

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
    check_limits(max_iter, tol)
    operator = QuadraticEnsemble(vectors)
    problem = MatrixSensing(operator, _as_intensities(intensities), operator.shape)
    rank, why = given(rank, problem)
    warn_underdetermined(operator.count, _unknowns(operator.vectors, rank), "intensities", "unknowns")
    start = inits.spectral(problem, SymmetricBurerMonteiro, rank)
    chain = "SymmetricBurerMonteiro, truncated spectral start -> ScaledCG"
    return explained(solve(problem, start, ScaledCG(), max_iter, tol), why, chain)


def _as_intensities(values: Any) -> Any:
    """Real numbers most of whose weight is positive."""
    values = as_data(values, "intensities", 1)
    _check_real(values, "intensities", "take those of abs(...) ** 2")
    magnitude = float(abs(values).sum())
    share = 0.5 * (magnitude - float(values.sum())) / (magnitude or 1.0)
    if share > NEGATIVE:
        raise ValueError(
            f"intensities are squared magnitudes, but negative ones, down to {float(values.min()):.3g}, make up "
            f"{share:.0%} of the sum of all sizes; take logarithms back, and add what was subtracted"
        )
    return values


def _check_real(values: Any, name: str, advice: str) -> None:
    if np.iscomplexobj(xp.to_numpy(values[..., :1])):
        raise TypeError(f"{name} must be real, got {values.dtype}; {advice}")


def _unknowns(vectors: Any, rank: int) -> int:
    """Real parameters of n x r signals up to an orthogonal or unitary matrix."""
    n = vectors.shape[1]
    return 2 * n * rank - rank**2 if np.iscomplexobj(xp.to_numpy(vectors[:1])) else n * rank - rank * (rank - 1) // 2


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

    Raises
    ------
    TypeError, ValueError
        As `PauliEnsemble`, and for complex expectations or another number of them than of strings. Fewer different
        strings than unknowns, ``2 d r - r^2 - 1``, are a warning.

    Returns
    -------
    Result
        ``result.point.dense()`` is the density matrix (d, d): Hermitian, positive semidefinite, of trace one. The
        trace before it was normalized is in ``result.choice``; far from one, the model or the data are wrong.

    >>> result = tomography(["II", "ZI", "IZ", "ZZ", "XX", "YY", "XY", "YX"], np.array([1, 0, 0, 1, 1, -1, 0, 0.0]))
    >>> result.point.dense().real.round(6).tolist()  # a Bell state
    [[0.5, 0.0, 0.0, 0.5], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.5, 0.0, 0.0, 0.5]]
    """
    check_limits(max_iter, tol)
    values = as_data(expectations, "expectations", 1)
    _check_real(values, "expectations", "take .real, which Hermitian operators have")
    operator = PauliEnsemble(strings, weights, values)
    if tuple(values.shape) != (operator.count,):
        raise ValueError(f"expectations must have shape ({operator.count},), one per string, got {tuple(values.shape)}")
    problem = MatrixSensing(operator, operator.scaled(values), operator.shape)
    rank, why = given(rank, problem)
    unknowns = 2 * operator.shape[0] * rank - rank**2 - 1  # the trace is known
    warn_underdetermined(len(set(operator.strings)), unknowns, "different strings", "unknowns")
    start = inits.spectral(problem, SymmetricBurerMonteiro, rank)
    result = solve(problem, start, ScaledCG(), max_iter, tol)
    point, trace = normalized(result.point)
    chain = f"SymmetricBurerMonteiro, spectral start -> ScaledCG -> trace {trace:.4g} normalized to one"
    return replace(explained(result, why, chain), point=point)
