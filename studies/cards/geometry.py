"""What a form can reach: dimensions and ranks by a numerical Jacobian, and its gauge."""

from __future__ import annotations

from typing import Any

import numpy as np

from lowrank_sp import xp
from lowrank_sp.factors import Gauged, MatrixFactors
from lowrank_sp.parameterizations import BurerMonteiro
from lowrank_sp.problems import MatrixFactorization
from lowrank_sp.rules import RULES
from lowrank_sp.spaces import FIXED
from lowrank_sp.testing.common import settle

__all__ = ["dimensions", "equivariance", "walk"]


def dimensions(form: Any, shape: tuple[int, ...], rank: int, seed: int = 0) -> dict[str, Any]:
    """Counts at a random point: numbers, dimension of the manifold, of the image, of the gauge; rank.

    The Jacobian of ``dense`` comes from automatic differentiation, the tangent space from ``project``.
    """
    point = settle(form.random(shape, rank, np.random.default_rng(seed)))
    jacobian, basis = _jacobian(point), _tangent_basis(point)
    image = int(np.linalg.matrix_rank(jacobian @ basis, tol=1e-8 * np.linalg.norm(jacobian, 2)))
    row = {
        "parameters": form.parameter_count(shape, rank),
        "manifold dimension": basis.shape[1],
        "image dimension": image,
        "gauge dimension": basis.shape[1] - image,
    }
    if issubclass(form, MatrixFactors):
        reached = max(
            np.linalg.matrix_rank(form.random(shape, rank, np.random.default_rng(s)).dense()) for s in (1, 2, 3)
        )
        m, n = shape
        row |= {
            "rank reached": int(reached),
            "rank declared": int(point.rank),
            f"matrices of rank {reached}": int(reached * (m + n - reached)),
            "parameters of BurerMonteiro": BurerMonteiro.parameter_count((m, n), rank),
        }
    return row


def _jacobian(point: Any) -> np.ndarray:
    """Derivative of ``dense`` in the arrays that move: (entries, numbers)."""
    import torch

    arrays = [torch.as_tensor(a) for a in point.arrays()]
    moving = [i for i, space in enumerate(point.spaces) if space is not FIXED]

    def image(*moved: Any) -> Any:
        now = list(arrays)
        for i, a in zip(moving, moved, strict=True):
            now[i] = a
        return type(point)(*now).dense()

    parts = torch.autograd.functional.jacobian(image, tuple(arrays[i] for i in moving))
    size = int(np.prod(point.dense().shape))
    return np.concatenate([p.reshape(size, -1).numpy() for p in parts], axis=1)


def _tangent_basis(point: Any) -> np.ndarray:
    """Orthonormal columns that span the tangent space, in the coordinates of the arrays that move."""
    sizes = [0 if space is FIXED else a.size for space, a in zip(point.spaces, point.arrays(), strict=True)]
    columns = []
    for i in range(len(sizes)):
        for k in range(sizes[i]):
            arrays = [np.zeros_like(a) for a in point.arrays()]
            arrays[i].reshape(-1)[k] = 1.0
            projected = point.project(type(point)(*arrays)).arrays()
            columns.append(np.concatenate([a.reshape(-1) for a, s in zip(projected, sizes, strict=True) if s]))
    u, s, _ = np.linalg.svd(np.array(columns).T)
    return u[:, : int((s > 1e-8).sum())]


def walk(rule: Any, problem: Any, point: Any, steps: int = 10, lr: float = 0.02) -> Any:
    """The matrix after some steps of constant size."""
    state = rule.init(point)
    for _ in range(steps):
        residual = problem.residual(point)
        gradient = point.pullback(problem.backproject(residual))
        direction, state = rule.update(gradient, state, point, problem.loss(residual))
        new = point.retract(direction, lr)
        state = rule.carry(state, point, new)
        point = new
    return xp.to_numpy(point.dense())


def equivariance(
    form: Any, shape: tuple[int, int], rank: int, rules: Any = None, seed: int = 0
) -> list[dict[str, Any]]:
    """For every rule: how far the paths from two gauge-equivalent starts are apart after ten steps, relatively."""
    rng = np.random.default_rng(seed)
    point: Any = settle(form.random(shape, rank, rng))
    if not isinstance(point, Gauged):
        return []
    turned: Any = point.gauge(point.random_gauge(rng))
    matrix, rows = turned.dense(), []
    size = np.linalg.norm(matrix, 2)
    problem = MatrixFactorization(rng.standard_normal(shape) * size / np.sqrt(max(shape)))
    for name, rule in (RULES if rules is None else rules).items():
        if isinstance(point, rule.needs):
            with np.errstate(all="ignore"):
                ends = [walk(rule, problem, p, lr=0.02 / size**2) for p in (point, turned)]
            gap = np.linalg.norm(ends[0] - ends[1]) / np.linalg.norm(ends[0])
            rows.append({"rule": name, "gap": float(gap), "declared equivariant": bool(rule.equivariant)})
    return rows
