"""Test instances with a chosen size, rank, condition number, noise and seed, that carry their truth."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import xp
from ..parameterizations import BurerMonteiro
from .checks import check_rank, check_shape
from .completion import MatrixCompletion
from .ensembles import DenseEnsemble, Ensemble, RankOneEnsemble, SubsampledOrthogonal
from .factorization import MatrixFactorization
from .sensing import MatrixSensing

__all__ = [
    "completion",
    "factorization",
    "gaussian_ensemble",
    "low_rank",
    "rank_one_ensemble",
    "sensing",
    "subsampled_ensemble",
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
    return BurerMonteiro(u * values**0.5, v * values**0.5)


def _orthonormal(rng: np.random.Generator, m: int, rank: int, dtype: Any) -> np.ndarray:
    x = rng.standard_normal((m, rank))
    if np.dtype(dtype).kind == "c":
        x = x + 1j * rng.standard_normal((m, rank))
    return xp.orthonormalize(x.astype(dtype))


def _generators(seed: Any) -> tuple[np.random.Generator, np.random.Generator]:
    """Independent streams for the truth and for everything else."""
    a, b = np.random.SeedSequence(seed).spawn(2) if not isinstance(seed, np.random.Generator) else seed.spawn(2)
    return np.random.default_rng(a), np.random.default_rng(b)


def _noise(rng: np.random.Generator, clean: np.ndarray, level: float) -> np.ndarray:
    """Gaussian noise whose norm is ``level`` times that of ``clean`` on average."""
    if level < 0:
        raise ValueError(f"noise must not be negative, got {level}")
    z = rng.standard_normal(clean.shape)
    if clean.dtype.kind == "c":
        z = (z + 1j * rng.standard_normal(clean.shape)) / 2**0.5
    return z * (level * np.linalg.norm(clean) / clean.size**0.5)


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
    target = clean + _noise(second, clean, noise) if noise else clean
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
    data = clean + _noise(second, clean, noise) if noise else clean
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
    **kwargs: Any,
) -> MatrixCompletion:
    """Uniformly sampled entries of a low-rank truth.

    Parameters
    ----------
    observed : float
        Share of entries observed, in (0, 1].
    noise : float
        Relative to the norm of the clean samples.

    >>> completion(20, 16, rank=1, observed=0.5, seed=0).data.shape
    (160,)
    """
    if not 0 < observed <= 1:
        raise ValueError(f"observed must lie in (0, 1], got {observed}")
    first, second = _generators(seed)
    truth = low_rank(m, n, rank, condition_number, first, **kwargs)
    count = max(1, round(observed * m * n))
    rows, cols = np.divmod(_sample_positions(second, m * n, count), n)
    clean = truth.entries(rows, cols)
    values = clean + _noise(second, clean, noise) if noise else clean
    return MatrixCompletion(rows, cols, values, (m, n), truth)


def _sample_positions(rng: np.random.Generator, total: int, count: int) -> np.ndarray:
    """``count`` distinct integers below ``total``, sorted, without an array of length ``total`` when sparse."""
    if count * 4 > total:
        return np.sort(rng.choice(total, size=count, replace=False))
    found = np.empty(0, dtype=np.int64)
    while found.size < count:
        found = np.unique(np.concatenate((found, rng.integers(0, total, size=count - found.size + 64))))
    return np.sort(rng.permutation(found)[:count])
