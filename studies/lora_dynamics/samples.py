"""How the error of a low-rank regression depends on the number of samples, of parameters, and on the nuclear norm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import lowrank_sp as lr

__all__ = ["complexity", "regression"]

Cell = Mapping[str, Any]


def regression(cell: Cell) -> dict[str, Any]:
    """Least squares over matrices of the rank, from noisy values ``<M_i, W>`` of Gaussian inputs.

    With such inputs the squared distance to the truth is the excess risk: that of new data above the noise.
    """
    side, r, n, noise = cell["side"], cell["rank"], cell["samples"], cell["noise"]
    rng = np.random.default_rng([cell["seed"], side, r, n])
    truth = lr.BurerMonteiro.random((side, side), r, rng)
    inputs = rng.standard_normal((n, side, side))
    errors = noise * rng.standard_normal(n)
    values = np.einsum("nij,ij->n", inputs, truth.dense()) + errors
    problem = lr.MatrixSensing(inputs, values, (side, side))
    start = lr.inits.spectral(problem, lr.BurerMonteiro, r)
    found = lr.solve(problem, start, lr.SOLVERS["ALS"](), max_iter=100, tol=1e-10)
    excess = float(np.linalg.norm(found.point.dense() - truth.dense()) ** 2)
    return {
        "parameters": r * 2 * side,
        "freedom": r * (2 * side - r),
        "excess": excess,
        "distance": excess**0.5,
        "gap": float(errors @ errors / n) + excess - 2 * found.fun / n,  # its mean is that with the variance of errors
    }


def complexity(cell: Cell) -> dict[str, Any]:
    """The Rademacher complexity of matrices with nuclear norm at most one: mean of ``||sum e_i M_i||_2 / n``."""
    side, n = cell["side"], cell["samples"]
    rng = np.random.default_rng([cell["seed"], side, n])
    signs = rng.choice([-1.0, 1.0], (cell["draws"], n))
    sums = (signs @ rng.standard_normal((n, side * side))).reshape(-1, side, side)
    return {"complexity": float(np.linalg.norm(sums, 2, axis=(1, 2)).mean() / n)}
