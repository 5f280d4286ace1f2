"""Starts that look at the data: Nystrom sketches and the spectral start."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import xp
from ..coverage import covers
from ..parameterizations import BurerMonteiro, SymmetricBurerMonteiro
from ..parameterizations.tensor import TensorFactors
from .common import check_init, fit_scale, normal, reach
from .tensor import tensor_spectral

__all__ = ["half_nystrom", "nystrom", "nystrom_two_sided", "spectral"]


@covers("I13")
def nystrom(problem: Any, form: Any, rank: int, seed: Any = None) -> Any:
    """``X_0 = A Phi``, ``Y_0 = 0`` with Phi an n x r Gaussian matrix with entries N(0, 1/n).

    A is the target of a factorization and the surrogate ``A^* y`` (scaled to the size of W) elsewhere.
    Other forms take the nearest point to the two-sided sketch with the arrays at zero that the form names
    (``zeros``): a core where there is one. The symmetric form takes ``A Phi`` itself.

    Parameters
    ----------
    problem : LeastSquares
        Gives the data, and with them shape, library, device and floating type.
    form : type[Factors]
    rank : int
        The size that the form counts.
    seed : int or Generator, optional

    Returns
    -------
    Factors
        A point of the form.

    Notes
    -----
    The source prints Phi as r x r, which cannot multiply A; it is n x r. Solvers cope with the zero factor
    by not moving its partner in the first step.
    Source: equation (14) of :cite:`survey2026sp`; :cite:`li2024nystrom`.
    """
    rank = check_init(problem, form, rank)
    rng = np.random.default_rng(seed)
    left = _sketch(problem, rank, rng)
    if form is BurerMonteiro:
        return BurerMonteiro(left, normal(problem, (problem.shape[1], rank), rng) * 0 + 0 * _batch_row(left))
    if form is SymmetricBurerMonteiro:
        return SymmetricBurerMonteiro(left)
    right = _sketch(problem, rank, rng, transposed=True)
    point = form.from_product(left, right, rank)
    pairs = zip(point.names, point.arrays(), strict=True)
    return type(point)(*[0 * a if name in point.zeros else a for name, a in pairs])


@covers("I13")
def nystrom_two_sided(problem: Any, form: Any, rank: int, seed: Any = None) -> Any:
    """``X_0 = A Phi``, ``Y_0 = A^H Psi`` with independent Gaussian sketches, scaled to fit the data.

    Parameters
    ----------
    problem : LeastSquares
        Gives the data, and with them shape, library, device and floating type.
    form : type[Factors]
    rank : int
        The size that the form counts.
    seed : int or Generator, optional

    Returns
    -------
    Factors
        A point of the form.
    """
    rank = check_init(problem, form, rank)
    rng = np.random.default_rng(seed)
    left, right = _sketch(problem, rank, rng), _sketch(problem, rank, rng, transposed=True)
    return _scaled(problem, form, left, right, rank)


@covers("I15")
def half_nystrom(problem: Any, form: Any, rank: int, scale: float = 0.1, seed: Any = None) -> Any:
    """``X_0 = A Phi``, ``Y_0`` with independent N(0, scale^2) entries: only the column space is aligned.

    Parameters
    ----------
    problem : LeastSquares
        Gives the data, and with them shape, library, device and floating type.
    form : type[Factors]
    rank : int
        The size that the form counts.
    scale : float
        Standard deviation of the entries of ``Y_0``.
    seed : int or Generator, optional

    Returns
    -------
    Factors
        A point of the form.

    Notes
    -----
    Source: Theorem 6 of :cite:`survey2026sp`; :cite:`ward2023altgd`, whose theory scales both factors with
    the step size.
    """
    rank = check_init(problem, form, rank)
    rng = np.random.default_rng(seed)
    left = _sketch(problem, rank, rng)
    right = scale * normal(problem, (problem.shape[1], rank), rng) + 0 * _batch_row(left)
    return form.from_product(left, right, rank)


@covers("I04")
def spectral(problem: Any, form: Any, rank: int, seed: Any = 0) -> Any:
    """The balanced best rank-r approximation of the surrogate ``A^* y``, scaled to fit the data.

    For a factorization this is the solution. A form that is not universal takes the point nearest to the best
    approximation of the rank that it can reach, where a universal one takes rank r. Computed by a
    randomized block Krylov method on products with thin matrices, so sparse surrogates stay sparse. A tensor
    form takes `tensor_spectral`.

    Parameters
    ----------
    problem : LeastSquares
        Gives the data, and with them shape, library, device and floating type.
    form : type[Factors]
    rank : int
        The size that the form counts.
    seed : int or Generator
        Of the Krylov method.

    Returns
    -------
    Factors
        A point of the form.

    Notes
    -----
    Source: :cite:`halko2011finding`.

    >>> import lowrank_sp as lr
    >>> problem = lr.MatrixFactorization(np.outer([1.0, 2.0], [3.0, 4.0, 5.0]))
    >>> bool(np.allclose(spectral(problem, lr.BurerMonteiro, rank=1).dense(), problem.data))
    True
    """
    rank = check_init(problem, form, rank)
    if issubclass(form, TensorFactors):
        return tensor_spectral(problem, form, rank)
    width = rank if form.universal else reach(form, problem.shape, rank)
    u, s, v = truncated_svd(problem.surrogate(), problem, width, np.random.default_rng(seed))
    # The scale is matched to the data in any case; that of the surrogate may have squares beyond the range of the type.
    top = s[..., :1]
    root = ((s / (top + (top == 0))) ** 0.5)[..., None, :]
    return _scaled(problem, form, u * root, v * root, rank)


def _sketch(problem: Any, rank: int, rng: np.random.Generator, transposed: bool = False) -> Any:
    a = problem.surrogate()
    n = problem.shape[0] if transposed else problem.shape[1]
    return (xp.adjoint(a) if transposed else a) @ (normal(problem, (n, rank), rng) / n**0.5)


def _batch_row(left: Any) -> Any:
    """A (..., 1, r) slice that carries the batch axes of ``left``."""
    return left[..., :1, :]


def _scaled(problem: Any, form: Any, left: Any, right: Any, rank: int) -> Any:
    """``sqrt(c) left, sqrt(c) right`` with the best c, in the form asked for."""
    root = xp.expand(fit_scale(problem, left, right) ** 0.5, 2)
    return form.from_product(root * left, root * right, rank)


def truncated_svd(a: Any, problem: Any, rank: int, rng: np.random.Generator) -> tuple[Any, Any, Any]:
    """Leading singular triplets of anything with ``@``: dense SVD when small, else block Krylov."""
    m, n = problem.shape
    if (isinstance(a, np.ndarray) or xp.is_torch(a)) and min(m, n) <= 500:
        u, s, vh = xp.namespace(a).linalg.svd(a, full_matrices=False)
        return u[..., :rank], s[..., :rank], xp.adjoint(vh[..., :rank, :])
    width = min(rank + 8, min(m, n))
    y = a @ normal(problem, (n, width), rng)
    basis = [xp.orthonormalize(y)]
    cat = xp.namespace(y).concatenate
    for _ in range(4):
        if (len(basis) + 1) * width > min(m, n):
            break
        q = a @ xp.orthonormalize(xp.adjoint(a) @ basis[-1])
        basis.append(xp.orthonormalize(q))
    q = xp.orthonormalize(cat(basis, -1))
    u, s, vh = xp.namespace(y).linalg.svd(xp.adjoint(xp.adjoint(a) @ q), full_matrices=False)
    return (q @ u)[..., :rank], s[..., :rank], xp.adjoint(vh[..., :rank, :])
