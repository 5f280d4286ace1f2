"""Test instances whose truth is no plain low-rank matrix: elementwise products and grids of blocks."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import xp
from ..coverage import covers
from ..parameterizations import BlockGrid, Hadamard
from .checks import check_rank, check_shape
from .factorization import MatrixFactorization
from .sampling import noise_like

__all__ = ["block", "hadamard"]


@covers("S19")
def hadamard(m: int, n: int, rank: int, noise: float = 0.0, seed: Any = None) -> MatrixFactorization:
    """An elementwise product of two matrices of rank r, plus noise; ``truth`` is a `Hadamard` point.

    Parameters
    ----------
    rank : int
        r of both factors, which are Gaussian; the product has rank ``min(r^2, m, n)``. Its entries have mean square 1.
    noise : float
        Relative to the Frobenius norm of the truth.

    Notes
    -----
    The loss has local minima: `lowrank_sp.hadamard_decomposition` runs batches of `Hadamard` starts and keeps the
    best. The fewer entries there are per parameter, the fewer starts succeed, for small matrices sometimes none of
    many.
    Source: section VII-B of :cite:`survey2026sp`.

    >>> problem = hadamard(8, 6, rank=2, seed=0)
    >>> int(np.linalg.matrix_rank(problem.data))
    4
    """
    check_rank(rank, check_shape((m, n)))
    first, second = _generators(seed)
    point = Hadamard.random((m, n), rank, first)
    return _noisy(point.scale(float(np.mean(point.dense() ** 2)) ** -0.125), noise, second)


@covers("S20")
def block(
    m: int,
    n: int,
    rank: int,
    grid: tuple[int, int] = (2, 2),
    condition_number: float = 1.0,
    noise: float = 0.0,
    seed: Any = None,
) -> MatrixFactorization:
    """A grid of independent blocks of rank r, plus noise; ``truth`` is a `BlockGrid` point.

    Parameters
    ----------
    rank : int
        r of every block; the matrix has rank ``min(m, n, I J r)``.
    grid : (I, J)
        Numbers of blocks, which divide m and n.
    condition_number : float
        Of every block: singular values from 1 down to its inverse, spaced linearly, with random singular vectors.
    noise : float
        Relative to the Frobenius norm of the truth.

    Notes
    -----
    Solve with ``BlockGrid.of(I, J)`` starts. Blocks do not meet in the loss, so the best approximation is a truncated
    singular value decomposition of every block, and any solver of a factorization finds it.
    Source: :cite:`barazandeh2025localized`.

    >>> block(8, 6, rank=1, grid=(2, 3), seed=0).truth.left.shape
    (2, 3, 4, 1)
    """
    shape = check_shape((m, n))
    form = BlockGrid.of(*check_shape(grid, "grid"))
    left, right = form.shapes(shape, check_rank(rank, shape))
    if not (np.isfinite(condition_number) and condition_number >= 1):
        raise ValueError(f"condition_number must be at least 1, got {condition_number}")
    first, second = _generators(seed)
    roots = np.linspace(1.0, 1.0 / condition_number, rank) ** 0.5
    u, v = (xp.orthonormalize(first.standard_normal(k)) * roots for k in (left, right))
    return _noisy(form(u, v), noise, second)


def _generators(seed: Any) -> tuple[np.random.Generator, np.random.Generator]:
    """Independent streams for the truth and for the noise."""
    first, second = np.random.default_rng(seed).spawn(2)
    return first, second


def _noisy(truth: Any, noise: float, rng: np.random.Generator) -> MatrixFactorization:
    clean = truth.dense()
    return MatrixFactorization(clean + noise_like(rng, clean, noise), truth, noiseless=noise == 0.0)
