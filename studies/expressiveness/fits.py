"""The nearest matrix of each form that a solver finds, with ``2 n r`` numbers in a matrix of side n."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import lowrank_sp as lr
from studies.expressiveness.targets import kronecker, unit

__all__ = ["FITS", "hira"]

Array = np.ndarray
START = 20261122  # seed of random starts, and of no target
Fit = tuple[Array, int]  # the matrix, and how many numbers its form holds


def _nearest(target: Array, form: Any, size: int) -> Fit:
    near = form.from_product(target, np.eye(target.shape[1]), size).dense()
    return near, form.parameter_count(target.shape, size)


def _core(target: Array) -> Fit:
    """The largest core within the budget; the nearest matrix is LoRA's of that rank."""
    n = target.shape[0]
    size = max(k for k in range(1, n) if lr.Core.parameter_count((n, n), k) <= 2 * n * unit(n))
    return _nearest(target, lr.Core, size)


def _hadamard(target: Array) -> Fit:
    """The best of descents from the nearest matrix of rank r and from a random point; no closed form is known."""
    n, size = target.shape[0], unit(target.shape[0]) // 2
    problem, found = lr.MatrixFactorization(target), []
    for start in (_from_svd(target, size), _at_random(target, size)):
        result = lr.solve(problem, start, lr.ScaledCG(), max_iter=200 if n < 128 else 50, tol=0)
        found.append((result.fun, result.point.dense()))
    return min(found, key=lambda pair: pair[0])[1], lr.Hadamard.parameter_count((n, n), size)


def _from_svd(target: Array, size: int) -> lr.Hadamard:
    near = lr.BurerMonteiro.from_product(target, np.eye(target.shape[1]), size)
    return lr.Hadamard.from_product(near.left, near.right)


def _at_random(target: Array, size: int) -> lr.Hadamard:
    start = lr.Hadamard.random(target.shape, size, np.random.default_rng(START))
    return start.scale(float(np.linalg.norm(target) / np.linalg.norm(start.dense())) ** 0.25)


def _sparse(target: Array, rounds: int = 30) -> Fit:
    """Alternate truncated SVDs with the largest entries of what is left; the support comes from the target."""
    n, low = target.shape[0], unit(target.shape[0]) // 2
    size, sparse = n * unit(n), np.zeros_like(target)
    near, places = lr.BurerMonteiro(target[:, :low], target[:low].T), np.arange(size)
    for _ in range(rounds):
        near = lr.BurerMonteiro.from_product(target - sparse, np.eye(n), low)
        rest = (target - near.dense()).ravel()
        places = np.sort(np.argpartition(-abs(rest), size)[:size])
        sparse = np.zeros(n * n)
        sparse[places] = rest[places]
        sparse = sparse.reshape(n, n)
    form = lr.LowRankPlusSparse.on(*np.divmod(places, n), target.shape)
    point = form(near.left, near.right, sparse.ravel()[places])
    return point.dense(), form.parameter_count(target.shape, low)


def hira(target: Array, weight: Array) -> Fit:
    """``W o X Y^T``: the quotient target / W, completed with the weights W^2."""
    n, size = target.shape[0], unit(target.shape[0])
    safe = np.where(abs(weight) < 1e-6 * abs(weight).max(), 1e-6 * abs(weight).max(), weight)
    rows, cols = np.divmod(np.arange(n * n), n)
    weights = safe.ravel() ** 2 / np.mean(safe**2)
    problem = lr.MatrixCompletion(rows, cols, (target / safe).ravel(), target.shape, weights=weights)
    start = lr.inits.gaussian(problem, lr.BurerMonteiro, size, seed=0)
    result = lr.solve(problem, start, lr.ALS(), max_iter=40, tol=0)
    return weight * result.point.dense(), lr.BurerMonteiro.parameter_count(target.shape, size)


FITS: dict[str, Callable[[Array], Fit]] = {
    "LoRA": lambda a: _nearest(a, lr.BurerMonteiro, unit(len(a))),
    "core": _core,
    "Localized 2 x 2": lambda a: _nearest(a, lr.BlockGrid.of(2, 2), unit(len(a)) // 2),
    "MELoRA": lambda a: _nearest(a, lr.BlockDiagonal.of(4), unit(len(a))),
    "Kronecker": lambda a: _nearest(a, kronecker(len(a)), unit(len(a))),
    "Hadamard": _hadamard,
    "low rank + sparse": _sparse,
}
