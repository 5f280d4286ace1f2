"""One-line entry points for people with data: sensible solver, start and checks, nothing to tune."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from . import inits
from .escalate import complete_exactly_or_robustly
from .parameterizations import BurerMonteiro, SymmetricBurerMonteiro
from .problems import MatrixCompletion, MatrixFactorization, MatrixSensing, QuadraticEnsemble
from .problems.checks import as_data
from .problems.tomography import PauliEnsemble, normalized
from .ranks import given, is_auto, rank_of_completion, rank_of_matrix, rank_of_sensing
from .result import Result, explained
from .solve import solve
from .solvers import AltScaledGD, ScaledCG

__all__ = ["complete", "factorize", "phase_retrieval", "sense", "tomography"]


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
    rank, why = rank_of_matrix(problem) if is_auto(rank) else given(rank, problem)
    start = inits.spectral(problem, BurerMonteiro, rank, seed=seed)
    result = solve(problem, start, AltScaledGD(), max_iter, tol)
    return explained(result, why, "BurerMonteiro, randomized SVD -> AltScaledGD")


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
    rank, why = rank_of_sensing(problem) if is_auto(rank) else given(rank, problem)
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
    rank, why = rank_of_completion(problem, validation or 0.1) if is_auto(rank) else given(rank, problem)
    return explained(complete_exactly_or_robustly(problem, rank, max_iter, tol, validation), why)


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
    return explained(solve(problem, start, ScaledCG(), max_iter, tol), f"rank {rank} as given", chain)


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
    rank, why = given(rank, problem)
    start = inits.spectral(problem, SymmetricBurerMonteiro, rank)
    result = solve(problem, start, ScaledCG(), max_iter, tol)
    point, trace = normalized(result.point)
    chain = f"SymmetricBurerMonteiro, spectral start -> ScaledCG -> trace {trace:.4g} normalized to one"
    return replace(explained(result, why, chain), point=point)
