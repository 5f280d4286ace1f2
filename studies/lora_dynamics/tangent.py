"""Steps and updates of one layer against what they are said to be: projections, bounds, costs, shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import lowrank_sp as lr
from lowrank_sp.parameterizations import DeLoRA
from lowrank_sp.rules import Horizontal, Refactored
from studies.cards.geometry import dimensions
from studies.lora_dynamics.common import gap

__all__ = ["bound", "costs", "manifold", "projection"]

Cell = Mapping[str, Any]


# LoRA-Pro -----------------------------------------------------------------------------------------------------------


def projection(cell: Cell) -> dict[str, Any]:
    """LoRA-Pro's gradients at a random point against least squares over all pairs of factor steps."""
    (m, n), r, rng = cell["shape"], cell["rank"], np.random.default_rng(cell["seed"])
    a, b, g = (rng.standard_normal(shape) for shape in ((m, r), (n, r), (m, n)))
    point, s = lr.BurerMonteiro(a, b), cell["scale"]
    grad = lr.BurerMonteiro(s * g @ b, s * g.T @ a)
    rule = Horizontal()
    # With W = W_0 + s A B both Gram matrices carry s, so that the rule sees the gradients over s^2.
    step, _ = rule.update(grad.map(lambda x: x / s**2), rule.init(point), point)
    moved = s * (step.left @ b.T + a @ step.right.T)
    jacobian = s * np.hstack((np.kron(np.eye(m), b), _swapped(a, n)))
    nearest = (jacobian @ np.linalg.lstsq(jacobian, g.ravel(), rcond=None)[0]).reshape(m, n)
    gauge = _nearest_gauge(point, step, grad)
    sylvester = np.kron(np.eye(r), b.T @ b) + np.kron(a.T @ a, np.eye(r))
    return {
        "step_gap": gap(moved, nearest),
        "gauge_gap": float(np.linalg.norm(gauge) / step.norm()),
        "uniqueness": float(np.linalg.eigvalsh(sylvester)[0] / np.linalg.eigvalsh(a.T @ a)[0]),
        "zero_start": float(np.linalg.eigvalsh(np.kron(a.T @ a, np.eye(r)))[0]),
        "misprint": abs(b.T.shape[1] - r),  # columns of B_t against rows of M_t in equation (82)
    }


def _swapped(a: np.ndarray, n: int) -> np.ndarray:
    """The matrix of ``dB -> A dB^T`` (m n, n r) on vectors in C order."""
    m, r = a.shape
    return np.einsum("ik,jl->ijlk", a, np.eye(n)).reshape(m * n, n * r)


def _nearest_gauge(point: Any, step: Any, grad: Any) -> np.ndarray:
    """The M for which ``(dA + A M, dB - B M^T)`` is nearest to the plain gradients; zero at a minimizer of (83)."""
    (m, r), n = point.left.shape, point.right.shape[0]
    on_left = np.einsum("ik,lj->ijkl", point.left, np.eye(r)).reshape(m * r, r * r)
    on_right = -np.einsum("il,kj->ijkl", point.right, np.eye(r)).reshape(n * r, r * r)
    rest = np.concatenate([(g - x).ravel() for g, x in zip(grad.arrays(), step.arrays(), strict=True)])
    return np.linalg.lstsq(np.vstack((on_left, on_right)), rest, rcond=None)[0]


# DeLoRA -------------------------------------------------------------------------------------------------------------


def bound(cell: Cell) -> dict[str, Any]:
    """Spectral norms of DeLoRA's update relative to ``lambda ||W||_2``, for random and for aligned directions."""
    (m, n), r, rng = cell["shape"], cell["rank"], np.random.default_rng(cell["seed"])
    w, strength = rng.standard_normal((m, n)), np.array([2.0])
    size = np.linalg.norm(w, 2)
    norms = {"survey": np.full(n, size), "columns": np.linalg.norm(w, axis=0)}
    x, y = cell["length"] * rng.standard_normal((m, r)), rng.standard_normal((n, r))
    aligned = [np.repeat(a[:, :1], r, axis=1) for a in (x, y)]
    row = {}
    for name, own in norms.items():
        row[name] = np.linalg.norm(DeLoRA(x, y, strength, own).dense(), 2) / strength.item() / size
    row["aligned"] = np.linalg.norm(DeLoRA(*aligned, strength, norms["survey"]).dense(), 2) / strength.item() / size
    row["unnormalized"] = np.linalg.norm(x @ y.T, 2) / r
    row["from_zero"] = row["aligned"] * (r + 1) / r  # r + 1 equal terms, divided by r
    return {name: float(value) for name, value in row.items()}


# costs, shapes, sets --------------------------------------------------------------------------------------------------


def costs(cell: Cell) -> dict[str, Any]:
    """Operations of the products in one direction of RefLoRA and LoRA-Pro, counted by torch."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    rule = {"RefLoRA": Refactored(), "LoRA-Pro": Horizontal()}[cell["rule"]]
    counts = []
    for side, rank in [(cell["side"], r) for r in cell["ranks"]] + [(k, cell["rank"]) for k in cell["sides"]]:
        torch.manual_seed(0)
        factors = [torch.randn(side, rank, dtype=torch.float64) for _ in range(4)]
        point, grad = lr.BurerMonteiro(*factors[:2]), lr.BurerMonteiro(*factors[2:])
        with FlopCounterMode(display=False) as counter:
            rule.update(grad, rule.init(point), point)
        counts.append(counter.get_total_flops())
    by_rank, by_side = counts[: len(cell["ranks"])], counts[len(cell["ranks"]) :]
    return {
        "counts": counts,
        "rank_exponent": _slope(cell["ranks"], by_rank),
        "side_exponent": _slope(cell["sides"], by_side),
    }


def _slope(x: Any, y: Any) -> float:
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def manifold(cell: Cell) -> dict[str, Any]:
    """Matrices of rank at most r: dimension, sums, and tangent dimension where the rank is lower."""
    (m, n), r, rng = cell["shape"], cell["rank"], np.random.default_rng(cell["seed"])
    a, b = (lr.BurerMonteiro.random((m, n), r, rng).dense() for _ in range(2))
    full = dimensions(lr.BurerMonteiro, (m, n), r, seed=cell["seed"])["image dimension"]
    point = lr.BurerMonteiro(*(np.hstack((rng.standard_normal((k, r - 1)), np.zeros((k, 1)))) for k in (m, n)))
    jacobian = np.hstack((np.kron(np.eye(m), point.right), _swapped(point.left, n)))
    return {
        "dimension": full,
        "subspace": r,
        "expected": r * (m + n - r),
        "rank_of_sum": int(np.linalg.matrix_rank(a + b)) - r,
        "lower_dimension": int(np.linalg.matrix_rank(jacobian)),
        # W o X Y^T reaches a matrix without zeros in W if and only if the entrywise quotient has rank at most r.
        "hira_ones": int(np.linalg.matrix_rank(a / np.ones((m, n)))) - r,
        "hira_generic": int(np.linalg.matrix_rank(a / rng.standard_normal((m, n)))) - r,
        **_shapes(m, n, r, rng),
    }


def _shapes(m: int, n: int, r: int, rng: np.random.Generator) -> dict[str, Any]:
    """Misprints of shapes, as what is missing for a product to exist, and the batched identity of FastLoRA."""
    w, x, y, z = (rng.standard_normal(shape) for shape in ((m, n), (3, m), (3, n), (3, m)))
    requests = np.stack([z[k] @ (w * np.outer(x[k], y[k])) for k in range(3)])
    one, scaled = ((z[0] * x[0]) @ w) * y[0], z[0] * x[0]
    row = {
        "nola": abs(r - n),  # columns of (sum a A) against rows of (sum b B), both thin
        "aurora": abs(n - r),  # columns of x A B against rows of B
        "loda": abs(n - r),  # columns of x A B against rows of an r x r layer
        "fast_lora": gap(((z * x) @ w) * y, requests),
        "fast_lora_product": gap(scaled @ (w @ np.diag(y[0])), one),
    }
    if m == n:
        return row | {"fast_lora_printed": gap(scaled @ (w * np.diag(y[0])), one)}
    left, right = lr.BurerMonteiro.shapes((m, n), r)
    return row | {"total_space": abs(left[0] - n) + abs(right[0] - m)}
