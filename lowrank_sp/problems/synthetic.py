"""Test instances with a chosen size, rank, condition number, noise and seed, that carry their truth."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import xp
from ..parameterizations import BurerMonteiro, SymmetricBurerMonteiro
from .checks import check_rank, check_shape
from .completion import MatrixCompletion
from .ensembles import DenseEnsemble, Ensemble, QuadraticEnsemble, RankOneEnsemble, SubsampledOrthogonal
from .factorization import MatrixFactorization
from .hankel import HankelCompletion
from .robust import RobustPCA, RobustSensing, keep_largest
from .sampling import add_noise, cover, noise_like, sample_positions
from .sensing import MatrixSensing
from .synthetic_structured import block, hadamard
from .synthetic_tensor import (
    low_tensor,
    orthogonal_tensor,
    spiked_tensor,
    tensor_completion,
    tensor_factorization,
    tensor_robust,
    tensor_sensing,
)
from .tomography import tomography

__all__ = [
    "block",
    "completion",
    "factorization",
    "gaussian_ensemble",
    "hadamard",
    "hankel",
    "low_rank",
    "low_tensor",
    "orthogonal_tensor",
    "quadratic",
    "rank_one_ensemble",
    "robust",
    "robust_sensing",
    "sensing",
    "spiked_tensor",
    "subsampled_ensemble",
    "tensor_completion",
    "tensor_factorization",
    "tensor_robust",
    "tensor_sensing",
    "tomography",
]


def low_rank(
    m: int,
    n: int,
    rank: int,
    condition_number: float = 1.0,
    seed: Any = None,
    symmetric: bool = False,
    spectrum: Any = None,
    dtype: Any = np.float64,
) -> BurerMonteiro:
    """A balanced random matrix of exact rank with singular values from 1 down to ``1 / condition_number``.

    Singular vectors are uniformly distributed; the values are spaced linearly, as in the published codes of
    :cite:`tong2021scaledgd`, unless ``spectrum`` gives them. ``symmetric`` makes it positive semidefinite.

    Raises
    ------
    ValueError
        If the rank does not fit the shape or ``condition_number < 1``.
    """
    check_rank(rank, check_shape((m, n)))
    if not (np.isfinite(condition_number) and condition_number >= 1):
        raise ValueError(f"condition_number must be at least 1, got {condition_number}")
    if rank == 1 and condition_number != 1:
        raise ValueError("a matrix of rank 1 has condition_number 1")
    rng = np.random.default_rng(seed)
    values = np.linspace(1.0, 1.0 / condition_number, rank) if spectrum is None else np.asarray(spectrum, float)
    u = _orthonormal(rng, m, rank, dtype)
    v = u if symmetric and m == n else _orthonormal(rng, n, rank, dtype)
    root = (values**0.5).astype(np.real(u).dtype)
    return BurerMonteiro(u * root, v * root)


def _orthonormal(rng: np.random.Generator, m: int, rank: int, dtype: Any) -> np.ndarray:
    x = rng.standard_normal((m, rank))
    if np.dtype(dtype).kind == "c":
        x = x + 1j * rng.standard_normal((m, rank))
    return xp.orthonormalize(x.astype(dtype))


def _generators(seed: Any) -> tuple[np.random.Generator, np.random.Generator]:
    """Independent streams for the truth and for everything else."""
    a, b = np.random.SeedSequence(seed).spawn(2) if not isinstance(seed, np.random.Generator) else seed.spawn(2)
    return np.random.default_rng(a), np.random.default_rng(b)


def factorization(
    m: int,
    n: int,
    rank: int,
    condition_number: float = 1.0,
    noise: float = 0.0,
    seed: Any = None,
    **kwargs: Any,
) -> MatrixFactorization:
    """A dense target ``truth + noise``; ``noise`` is relative to the Frobenius norm of the truth.

    >>> factorization(8, 6, rank=2, condition_number=10.0, seed=0).shape
    (8, 6)
    """
    first, second = _generators(seed)
    truth = low_rank(m, n, rank, condition_number, first, **kwargs)
    clean = truth.dense()
    target = clean + noise_like(second, clean, noise) if noise else clean
    return MatrixFactorization(target, truth, noiseless=noise == 0.0)


def gaussian_ensemble(count: int, m: int, n: int, rng: np.random.Generator) -> DenseEnsemble:
    """Matrices with entries N(0, 1/count), so that ``||A(W)||`` has the size of ``||W||``."""
    return DenseEnsemble(rng.standard_normal((count, m, n)) / count**0.5)


def rank_one_ensemble(count: int, m: int, n: int, rng: np.random.Generator) -> RankOneEnsemble:
    """``a_i^T W b_i`` with Gaussian vectors, scaled as `gaussian_ensemble`."""
    return RankOneEnsemble(rng.standard_normal((count, m)) / count**0.5, rng.standard_normal((count, n)))


def subsampled_ensemble(count: int, m: int, n: int, rng: np.random.Generator) -> SubsampledOrthogonal:
    """Random signs, Fourier, and ``count`` of the ``m n`` coefficients without repetition."""
    if count > m * n:
        raise ValueError(f"a subsampled orthogonal map has at most m n = {m * n} measurements, got {count}")
    signs = rng.choice((-1.0, 1.0), size=m * n)
    return SubsampledOrthogonal(signs, np.sort(rng.permutation(m * n)[:count]), (m, n))


ENSEMBLES = {
    "gaussian": gaussian_ensemble,
    "rank-one": rank_one_ensemble,
    "subsampled-orthogonal": subsampled_ensemble,
}


def sensing(
    m: int,
    n: int,
    rank: int,
    measurements: int | None = None,
    condition_number: float = 1.0,
    noise: float = 0.0,
    seed: Any = None,
    ensemble: str | Ensemble = "gaussian",
    **kwargs: Any,
) -> MatrixSensing:
    """Linear measurements of a low-rank truth.

    Parameters
    ----------
    measurements : int, optional
        Number of measurements; six times the degrees of freedom ``rank (m + n - rank)`` by default.
    noise : float
        Relative to the norm of the clean measurements.
    ensemble : {"gaussian", "rank-one", "subsampled-orthogonal"} or Ensemble

    >>> sensing(8, 6, rank=1, measurements=60, seed=0).data.shape
    (60,)
    """
    first, second = _generators(seed)
    truth = low_rank(m, n, rank, condition_number, first, **kwargs)
    count = 6 * rank * (m + n - rank) if measurements is None else int(measurements)
    if count < 1:
        raise ValueError(f"measurements must be at least 1, got {count}")
    chosen = ensemble if isinstance(ensemble, Ensemble) else _ensemble(ensemble)(count, m, n, second)
    clean = chosen.measure([[truth]])[0]
    data = clean + noise_like(second, clean, noise) if noise else clean
    return MatrixSensing(chosen, data, (m, n), truth)


def _ensemble(name: str) -> Any:
    if name not in ENSEMBLES:
        raise ValueError(f"ensemble must be one of {sorted(ENSEMBLES)} or an Ensemble, got {name!r}")
    return ENSEMBLES[name]


def completion(
    m: int,
    n: int,
    rank: int,
    observed: float = 0.3,
    condition_number: float = 1.0,
    noise: float = 0.0,
    seed: Any = None,
    least: int = 0,
    noise_spread: float = 1.0,
    **kwargs: Any,
) -> MatrixCompletion:
    """Uniformly sampled entries of a low-rank truth.

    Parameters
    ----------
    observed : float
        Share of entries observed, in (0, 1].
    noise : float
        Relative to the norm of the clean samples.
    least : int
        Observations that every row and column gets at least: with fewer than ``rank`` of them it is not determined.
        Entries of full rows and columns are exchanged for them; needs an m x n array of booleans.
    noise_spread : float
        Ratio of the largest to the smallest standard deviation of the noise, log-uniform from entry to entry. Above
        1 the problem has the inverse variances as weights.

    >>> completion(20, 16, rank=1, observed=0.5, seed=0).data.shape
    (160,)
    """
    if not 0 < observed <= 1:
        raise ValueError(f"observed must lie in (0, 1], got {observed}")
    first, second = _generators(seed)
    truth = low_rank(m, n, rank, condition_number, first, **kwargs)
    count = max(1, round(observed * m * n))
    positions = sample_positions(second, m * n, count)
    rows, cols = np.divmod(cover(second, positions, (m, n), least) if least else positions, n)
    clean = truth.entries(rows, cols)
    values, weights = add_noise(second, clean, noise, noise_spread)
    return MatrixCompletion(rows, cols, values, (m, n), truth, weights)


def robust(
    m: int,
    n: int,
    rank: int,
    outliers: float = 0.1,
    magnitude: float = 10.0,
    condition_number: float = 1.0,
    noise: float = 0.0,
    seed: Any = None,
    **kwargs: Any,
) -> RobustPCA:
    """A low-rank truth plus sparse outliers, at most ``outliers`` of every row and column.

    Parameters
    ----------
    outliers : float
        Share of every row and column, in (0, 0.5): the largest entries of a Gaussian matrix, as in the
        published code of :cite:`tong2021scaledgd`.
    magnitude : float
        Standard deviation of that Gaussian matrix, in root mean squares of the entries of the truth.
    noise : float
        Dense Gaussian noise, relative to the norm of the truth.

    >>> robust(20, 16, rank=1, seed=0).data.shape
    (20, 16)
    """
    if not 0 < outliers < 0.5:
        raise ValueError(f"outliers must lie in (0, 0.5), got {outliers}")
    first, second = _generators(seed)
    truth = low_rank(m, n, rank, condition_number, first, **kwargs)
    clean = truth.dense()
    size = magnitude * np.linalg.norm(clean) / clean.size**0.5
    sparse = keep_largest(size * second.standard_normal(clean.shape), outliers)
    dense = clean + noise_like(second, clean, noise) if noise else clean
    return RobustPCA(dense + sparse, outliers, truth=truth)


def robust_sensing(
    m: int,
    n: int,
    rank: int,
    measurements: int | None = None,
    outliers: float = 0.2,
    magnitude: float = 10.0,
    condition_number: float = 1.0,
    noise: float = 0.0,
    seed: Any = None,
    ensemble: str | Ensemble = "gaussian",
    **kwargs: Any,
) -> RobustSensing:
    """Linear measurements, a share of which is wrong by up to ``magnitude`` times the largest clean one.

    Parameters
    ----------
    measurements, noise, ensemble
        As for `sensing`; by default eight times ``rank max(m, n)`` measurements, as in the published code of
        :cite:`tong2021subgradient`.
    outliers : float
        Share of wrong measurements, in [0, 0.5), at uniform positions.
    magnitude : float
        Errors are uniform in ``magnitude max|y| [-1, 1]``.

    >>> robust_sensing(8, 6, rank=1, seed=0).data.shape
    (64,)
    """
    count = 8 * rank * max(m, n) if measurements is None else measurements
    if not 0 <= outliers < 0.5:
        raise ValueError(f"outliers must lie in [0, 0.5), got {outliers}")
    first, rng = _generators(seed)
    clean = sensing(m, n, rank, count, condition_number, noise, first, ensemble, **kwargs)
    data = clean.data.copy()
    wrong = rng.permutation(data.size)[: int(outliers * data.size)]
    data[wrong] += magnitude * abs(data).max() * rng.uniform(-1, 1, wrong.size)
    return RobustSensing(clean.operator, data, (m, n), outliers, clean.truth)


def quadratic(
    n: int,
    rank: int = 1,
    measurements: int | None = None,
    condition_number: float = 1.0,
    noise: float = 0.0,
    seed: Any = None,
    dtype: Any = np.float64,
) -> MatrixSensing:
    """Squared magnitudes ``||X^H a_i||^2`` of a hidden X (n, rank); rank 1 is phase retrieval.

    Parameters
    ----------
    measurements : int, optional
        Ten times ``n rank`` by default. The vectors ``a_i`` are standard Gaussian.
    noise : float
        Relative to the norm of the clean measurements.
    dtype : numpy dtype
        ``complex`` for complex signals and vectors; the measurements are real.

    >>> quadratic(8, seed=0, dtype=complex).data.dtype
    dtype('float64')
    """
    first, second = _generators(seed)
    truth = low_rank(n, n, rank, condition_number, first, symmetric=True, dtype=dtype)
    count = 10 * n * rank if measurements is None else int(measurements)
    if count < 1:
        raise ValueError(f"measurements must be at least 1, got {count}")
    vectors = second.standard_normal((count, n))
    if np.dtype(dtype).kind == "c":
        vectors = (vectors + 1j * second.standard_normal((count, n))) / 2**0.5
    operator, point = QuadraticEnsemble(vectors.astype(dtype)), SymmetricBurerMonteiro(truth.left)
    clean = operator.measure([[point]])[0]
    data = clean + noise_like(second, clean, noise) if noise else clean
    return MatrixSensing(operator, data, (n, n), point)


def hankel(
    length: int,
    rank: int,
    observed: float = 0.3,
    condition_number: float = 1.0,
    noise: float = 0.0,
    seed: Any = None,
    frequencies: Any = None,
    damping: float = 0.0,
) -> HankelCompletion:
    """Some samples of ``sum_k c_k exp((2 pi i f_k - d_k) t)``, t = 0..length-1.

    Parameters
    ----------
    rank : int
        Number of frequencies.
    observed : float
        Share of the samples observed, in (0, 1], at uniform positions.
    condition_number : float
        Ratio of the largest to the smallest ``|c_k|``; spaced linearly, with random phases.
    noise : float
        Relative to the norm of the clean samples.
    frequencies : array (rank,), optional
        In cycles per sample; by default random multiples of ``1/m``, m the number of rows of the Hankel matrix,
        as in the published code of :cite:`tong2021scaledgd`.
    damping : float
        The ``d_k`` are uniform in ``[0, damping]``.

    >>> hankel(64, rank=2, observed=0.5, seed=0).shape
    (33, 32)
    """
    if not 0 < observed <= 1:
        raise ValueError(f"observed must lie in (0, 1], got {observed}")
    rows = length // 2 + 1
    check_rank(rank, check_shape((rows, length + 1 - rows)))
    first, second = _generators(seed)
    f = first.permutation(rows)[:rank] / rows if frequencies is None else np.asarray(frequencies, float)
    if f.shape != (rank,):
        raise ValueError(f"frequencies must have shape ({rank},), got {f.shape}")
    poles = np.exp(2j * np.pi * f - damping * first.random(rank))
    weights = np.linspace(1.0, 1.0 / condition_number, rank) * np.exp(2j * np.pi * first.random(rank))
    signal = poles ** np.arange(length)[:, None] @ weights
    positions = sample_positions(second, length, max(1, round(observed * length)))
    clean = signal[positions]
    values = clean + noise_like(second, clean, noise) if noise else clean
    return HankelCompletion(positions, values, length, truth=signal)
