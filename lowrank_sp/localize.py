"""Points from some of their distances: multidimensional scaling with unknown entries, in one line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from . import indexing, inits, xp
from .coverage import covers
from .operators import is_sparse, sparse_entries, unmasked
from .parameterizations import SymmetricBurerMonteiro
from .problems import MatrixSensing
from .problems.checks import as_data, check_limits, check_shape, warn_underdetermined
from .problems.distances import DistanceEnsemble
from .result import Result, Status, explained, join, uninterrupted
from .solve import solve
from .solvers import ScaledCG

__all__ = ["Localization", "localize"]

Array = Any

# Relative residuals of the squared distances: at which exact data count as met, and the share at which a fit is better.
MET, BETTER = 1e-6, 0.999
# Dimensions more than there are, in which local minima of the loss are escaped: how many, with which damping relative
# to the mean Gram matrix, and for how many iterations.
EXTRA, DAMPING, WIDE = 2, 1e-3, 300
# How far two values of one distance may differ, relative to the largest.
DIFFERENCE = 1e-6


class Localization(NamedTuple):
    """Points that have the distances."""

    result: Result
    """Of their Gram matrix, up to a rigid motion."""
    positions: Any
    """The points (n, d): centred and along their principal axes, or moved to the anchors."""


@covers("S12")
def localize(
    distances: Any, dimension: int, anchors: Any = None, max_iter: int = 1000, tol: float = 1e-10
) -> Localization:
    """The points that some of their distances belong to: the Gram matrix ``X X^T`` has rank d.

    Conjugate gradients in the metric of ScaledGD on the squared distances, from classical scaling of the lengths of
    shortest paths, which is the solution where all distances are known. Where that does not meet the data, points in
    two more dimensions are sought first, in which the loss has fewer local minima, and projected on their principal
    axes; what fits better is taken.

    Parameters
    ----------
    distances : array (n, n) or sparse matrix
        NaN for unknown distances; in sparse matrices all that is not stored. Either triangle will do, or both.
    dimension : int
        d.
    anchors : array (n, d), optional
        Known positions, NaN for the other points: the result is moved, and mirrored where that helps, to be close to
        them. At least d + 1.
    max_iter, tol : int, float
        Of every stage.

    Returns
    -------
    Localization
        ``(result, positions)``.

    Raises
    ------
    ValueError, TypeError
        For distances that are negative, infinite, not symmetric, none, or that do not connect all points, a
        dimension out of range, or too few anchors. Fewer distances than coordinates are a warning.

    Notes
    -----
    Source: :cite:`torgerson1952mds`, :cite:`shang2003localization`; the Gram matrix as a matrix of low rank
    :cite:`tasissa2019distance`.

    >>> square = np.array([[0.0, 0], [0, 1], [1, 1], [1, 0]])
    >>> distances = np.linalg.norm(square[:, None] - square, axis=-1)
    >>> found = localize(distances, dimension=2, anchors=square)
    >>> bool(np.allclose(found.positions, square))
    True
    """
    check_limits(max_iter, tol)
    rows, cols, values, n = _pairs(distances)
    whole = not isinstance(dimension, bool) and isinstance(dimension, (int, np.integer))
    if not (whole and 1 <= dimension < n):
        raise ValueError(f"dimension must be an integer from 1 to n - 1 = {n - 1}, got {dimension!r}")
    known = None if anchors is None else _known_anchors(anchors, n, dimension, values)
    warn_underdetermined(
        values.shape[0], n * dimension - dimension * (dimension + 1) // 2, "distances", "coordinates up to motions"
    )
    problem = MatrixSensing(DistanceEnsemble(rows, cols, n, values), values**2, (n, n))
    result = _best(problem, int(dimension), max_iter, tol)
    result = replace(result, point=_principal(result.point, int(dimension)))
    positions = result.point.factor if known is None else _moved(result.point.factor, *known)
    return Localization(explained(result, f"dimension {dimension} as given"), positions)


def _best(problem: MatrixSensing, dimension: int, max_iter: int, tol: float) -> Result:
    """From the scaled paths, and where that fails through more dimensions."""
    start = inits.spectral(problem, SymmetricBurerMonteiro, dimension)
    direct = solve(problem, start, ScaledCG(), max_iter, tol)
    gap = _misfit(problem, direct)
    words = f"classical scaling of path lengths -> ScaledCG to a relative residual of {gap:.1e}"
    width = min(dimension + EXTRA, problem.shape[0])
    if gap <= max(MET, 50 * xp.eps(problem.data)) or direct.status is Status.INTERRUPTED or width == dimension:
        return join([direct], words)
    start = inits.spectral(problem, SymmetricBurerMonteiro, width)
    damping = DAMPING * float(start.norm()) ** 2 / width
    wide = uninterrupted(solve(problem, start, ScaledCG(damping=damping), min(WIDE, max_iter), max(tol, 1e-4)))
    again = uninterrupted(solve(problem, _principal(wide.point, dimension), ScaledCG(), max_iter, tol))
    after = _misfit(problem, again)
    words += f" -> in {width} dimensions, then projected and solved again, to {after:.1e}"
    if after < BETTER * gap:
        return join([direct, wide, again], words)
    spent = sum(float(stage.history["seconds"][-1]) for stage in (wide, again))
    return join([direct], f"{words}, not taken", spent)


def _misfit(problem: MatrixSensing, result: Result) -> float:
    return (2 * float(result.fun) / (problem.scale or 1.0)) ** 0.5


def _principal(point: SymmetricBurerMonteiro, dimension: int) -> SymmetricBurerMonteiro:
    """Centred points, along the axes on which they spread most."""
    x = point.factor
    u, s, _ = xp.namespace(x).linalg.svd(x - x.mean(-2)[..., None, :], full_matrices=False)
    return SymmetricBurerMonteiro(u[..., :dimension] * s[..., None, :dimension])


def _pairs(distances: Any) -> tuple[np.ndarray, np.ndarray, Array, int]:
    """Known distances between different points, every pair once: first, second, values, and the number of points."""
    if is_sparse(distances):
        rows, cols, values = sparse_entries(distances)
    else:
        distances = distances.detach() if xp.is_torch(distances) else unmasked(distances)
        if distances.ndim != 2:
            raise ValueError(f"distances must be a square matrix, got shape {tuple(distances.shape)}")
        known = distances == distances
        rows, cols = known.nonzero(as_tuple=True) if xp.is_torch(known) else known.nonzero()
        values = distances[known]
    n, other = check_shape(tuple(distances.shape), "the shape of distances")
    if n != other:
        raise ValueError(f"distances must be a square matrix, got shape {(n, other)}")
    rows, cols = xp.to_numpy(rows), xp.to_numpy(cols)
    if not (rows != cols).any():
        raise ValueError("distances holds no known distance between two points")
    values = as_data(values, "distances", 1)
    return *_once(np.minimum(rows, cols), np.maximum(rows, cols), values, n), n


def _once(low: np.ndarray, high: np.ndarray, values: Array, n: int) -> tuple[np.ndarray, np.ndarray, Array]:
    """The pairs of different points without repetitions, whose values agree."""
    numbers = xp.to_numpy(values)
    if np.iscomplexobj(numbers) or numbers.min() < 0:
        raise ValueError("distances must be real and not negative; give distances, not similarities")
    if numbers[low == high].any():
        raise ValueError("distances of points to themselves must be zero or unknown")
    apart = np.flatnonzero(low != high)
    _, first, inverse = np.unique(low[apart] * np.int64(n) + high[apart], return_index=True, return_inverse=True)
    kept = apart[first]
    spread = abs(numbers[kept][inverse] - numbers[apart]).max()
    if spread > DIFFERENCE * numbers.max():
        raise ValueError(f"distances must be symmetric, but two values of one distance differ by {spread:.3g}")
    return low[kept], high[kept], values[indexing.beside(kept, values)]


def _known_anchors(anchors: Any, n: int, dimension: int, like: Array) -> tuple[np.ndarray, np.ndarray]:
    """Which points have a known position, and the positions (k, d)."""
    array = xp.to_numpy(anchors.detach()) if xp.is_torch(anchors) else np.asarray(anchors, float)
    if array.shape != (n, dimension):
        raise ValueError(f"anchors must have shape {(n, dimension)}, with NaN for other points, got {array.shape}")
    known = np.isfinite(array).all(-1)
    if known.sum() <= dimension:
        raise ValueError(f"anchors must hold at least {dimension + 1} positions, got {int(known.sum())}")
    return known, array[known]


def _moved(positions: Array, known: np.ndarray, anchors: np.ndarray) -> Array:
    """The positions after the rigid motion that brings the known ones closest to the anchors (Procrustes)."""
    points = xp.to_numpy(positions)
    centre, target = points[known].mean(0), anchors.mean(0)
    u, _, vh = np.linalg.svd((points[known] - centre).T @ (anchors - target))
    return xp.asarray_like((points - centre) @ (u @ vh) + target, positions)
