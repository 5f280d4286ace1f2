"""Measures of matrices, subspaces, factor pairs and convergence curves."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import xp
from .coverage import covers
from .factors import Factors
from .problems.base import relative_error as _relative_error

__all__ = [
    "balancedness",
    "convergence_order",
    "convergence_rate",
    "effective_rank",
    "gauge_distance",
    "principal_angles",
    "relative_error",
    "stable_rank",
]

Array = Any


def relative_error(point: Any, truth: Any) -> Any:
    """``|| F(x) - truth ||_F / || truth ||_F`` for factors or an array (..., m, n) against factors or an array; (...).

    Of two arrays the last two axes are the matrix; tensors are given as factors.

    >>> float(relative_error(1.5 * np.eye(2), np.eye(2)))
    0.5
    """
    if isinstance(point, Factors):
        return _relative_error(point, truth)
    truth = truth.dense() if isinstance(truth, Factors) else truth
    xp.namespace(point, truth)
    gap = point - truth
    return (xp.inner(gap, gap) / xp.inner(truth, truth)) ** 0.5


def _singular_values(matrix: Any) -> Array:
    if hasattr(matrix, "product"):
        left, right = matrix.product()
        backend = xp.namespace(left, right)
        core = backend.linalg.qr(left)[1] @ xp.adjoint(backend.linalg.qr(right)[1])
        return backend.linalg.svd(core, full_matrices=False)[1]
    return xp.namespace(matrix).linalg.svd(matrix, full_matrices=False)[1]


def _relative(values: Array) -> Array:
    """Singular values over the largest one, and zeros for a zero matrix."""
    top = values[..., :1]
    return values / (top + (top == 0))


@covers("T10", "D13")
def stable_rank(matrix: Any) -> Any:
    """``||W||_F^2 / ||W||_2^2`` of an array (..., m, n) or a point; between 1 and the rank, and 0 for a zero matrix.

    The footnote of :cite:`survey2026sp` prints the inverse.

    >>> float(stable_rank(np.eye(4)))
    4.0
    """
    s = _relative(_singular_values(matrix))
    return (s**2).sum(-1)


@covers("T13")
def effective_rank(matrix: Any) -> Any:
    """``exp`` of the entropy of the normalized singular values: k for k equal values, 1 for rank one, 0 for zero.

    >>> round(float(effective_rank(np.eye(3))), 12)
    3.0
    """
    s = _relative(_singular_values(matrix))
    total = s.sum(-1)
    p = s / (total + (total == 0))[..., None]
    backend = xp.namespace(p)
    safe = backend.where(p > 0, p, backend.ones_like(p))
    return backend.exp(-(p * backend.log(safe)).sum(-1)) * (total > 0)


def principal_angles(a: Array, b: Array) -> Array:
    """Angles in radians between the column spaces of ``a`` and ``b``, ascending; (..., min(r_a, r_b)).

    Small angles come from sines, large ones from cosines, so both ends are accurate.

    Parameters
    ----------
    a, b : arrays (..., n, r_a) and (..., n, r_b)
        Of full column rank.

    >>> principal_angles(np.eye(3)[:, :1], np.eye(3)[:, 1:]).round(6).tolist()
    [1.570796]
    """
    backend = xp.namespace(a, b)
    qa, qb = (backend.linalg.qr(x)[0] for x in (a, b))
    if qa.shape[-1] < qb.shape[-1]:
        qa, qb = qb, qa
    overlap = xp.adjoint(qa) @ qb
    u, cosines, vh = backend.linalg.svd(overlap, full_matrices=False)
    v = xp.adjoint(vh)
    gap = qb @ v - qa @ (u * cosines[..., None, :])
    sines = (abs(gap) ** 2).sum(-2) ** 0.5
    one = backend.ones_like(sines)
    return backend.where(
        cosines**2 >= 0.5,
        backend.arcsin(backend.minimum(sines, one)),
        backend.arccos(backend.minimum(cosines, one)),
    )


def gauge_distance(a: Any, b: Any) -> Any:
    """Distance of two balanced factor pairs up to rotation: ``min_Q ||[X; Y] - [U; V] Q||_F`` over unitary Q.

    Both points are balanced first, so the distance is a function of the two matrices alone.

    >>> import lowrank_sp as lr
    >>> x = lr.BurerMonteiro(np.ones((3, 1)), np.ones((2, 1)))
    >>> round(float(gauge_distance(x, lr.BurerMonteiro(-4 * x.left, -x.right / 4))), 6)
    0.0
    """
    p, q = (point.balanced() for point in (a, b))
    backend = xp.namespace(p.left, q.left)
    x = backend.concatenate((p.left, p.right), -2)
    y = backend.concatenate((q.left, q.right), -2)
    u, _, vh = backend.linalg.svd(xp.adjoint(y) @ x, full_matrices=False)
    gap = x - y @ (u @ vh)
    return xp.inner(gap, gap) ** 0.5


@covers("T28")
def balancedness(point: Any) -> Any:
    """``|| X^H X - Y^H Y ||_F``: zero for a balanced pair, conserved by gradient flow."""
    gap = xp.gram(point.left) - xp.gram(point.right)
    return xp.inner(gap, gap) ** 0.5


def _positive_tail(values: Any, floor: float) -> np.ndarray:
    e = np.asarray(values, dtype=float)
    if e.ndim != 1 or not np.isfinite(e).all():
        raise ValueError(f"errors must be a finite curve with one axis, got shape {e.shape}")
    stop = np.flatnonzero(e <= floor)
    return e[: stop[0]] if stop.size else e


def convergence_rate(errors: Any, floor: float = 1e-13, tail: float = 0.5) -> float:
    """The linear rate: factor per iteration, from a least-squares line through the log of the curve.

    Parameters
    ----------
    errors : array (k,)
        Errors per iteration.
    floor : float
        Values from the first one at or below it on are left out (rounding).
    tail : float
        Share of the remaining curve, from its end, that is fitted.

    Raises
    ------
    ValueError
        If fewer than three points remain.

    >>> round(convergence_rate(0.5 ** np.arange(30)), 6)
    0.5
    """
    e = _positive_tail(errors, floor)
    e = e[int(len(e) * (1 - tail)) :]
    if len(e) < 3:
        raise ValueError(f"a rate needs at least 3 errors above the floor, got {len(e)}")
    return float(np.exp(np.polyfit(np.arange(len(e)), np.log(e), 1)[0]))


def convergence_order(errors: Any, floor: float = 1e-13) -> float:
    """The order q in ``e_{t+1} ~ c e_t^q``: slope of the last log-error against the one before it.

    Fitted over the steps whose error is below a tenth; at least two such steps are needed.

    Parameters
    ----------
    errors, floor
        As for `convergence_rate`.

    Raises
    ------
    ValueError
        If the curve is too short above the floor.

    >>> round(convergence_order([1e-1, 1e-2, 1e-4, 1e-8]), 6)
    2.0
    """
    e = _positive_tail(errors, floor)
    e = e[e < 0.1]
    if len(e) < 3:
        raise ValueError(f"an order needs at least 3 errors between the floor and 0.1, got {len(e)}")
    x, y = np.log(e[:-1]), np.log(e[1:])
    return float(np.polyfit(x, y, 1)[0])
