"""Iterations of GD, AltGD and ScaledGD on a factorization, from Gaussian and from Nystrom starts."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

import lowrank_sp as lr
from studies.nystrom_init import analysis, plots

LEVELS = [10.0**-k for k in range(1, 13)]
STARTS = {
    "gaussian 0.1": partial(lr.inits.gaussian, scale=0.1),
    "gaussian 0.001": partial(lr.inits.gaussian, scale=1e-3),
    "nystrom": lr.inits.nystrom,
    "half-nystrom 0.1": partial(lr.inits.half_nystrom, scale=0.1),
    "half-nystrom 0.001": partial(lr.inits.half_nystrom, scale=1e-3),
}
SOLVERS = {
    "GD": lr.GD,
    "AltGD": lr.AltGD,
    "ScaledGD": lr.ScaledGD,
    "AltScaledGD": lr.AltScaledGD,
    "ScaledGD damped": partial(lr.ScaledGD, damping=0.1),
    "PrecGD": lr.PrecGD,
}


def run(cell: dict[str, Any]) -> list[dict[str, Any]]:
    return {"recursion": _recursion, "success": _success, "printed": _printed}.get(cell["part"], _tune)(cell)


def _problem(cell: dict[str, Any], seed: int) -> lr.MatrixFactorization:
    return lr.synthetic.factorization(cell["m"], cell["n"], cell["rank"], cell["kappa"], seed=seed)


def _solve(cell: dict[str, Any], problem: lr.MatrixFactorization, start: Any, step: float) -> lr.Result:
    """Run to the last level, or to the cap."""
    target = 0.5 * (LEVELS[-1] * np.linalg.norm(problem.data)) ** 2
    solver = SOLVERS[cell["solver"]](step_size=step)
    return lr.solve(problem, start, solver, cell["cap"], tol=0, callback=lambda t, point, loss: loss <= target)


def _tune(cell: dict[str, Any]) -> list[dict[str, Any]]:
    """Every step of the grid on every seed; the best step is picked from the rows."""
    rows = []
    for step in cell["steps"]:
        for seed in range(cell["seeds"]):
            problem = _problem(cell, seed)
            start = STARTS[cell["start"]](problem, lr.BurerMonteiro, cell["rank"], seed=1000 + seed)
            result = _solve(cell, problem, start, step)
            row = {"step": step, "seed": seed, "counts": [result.iterations_to(level) for level in LEVELS]}
            if cell["part"] == "curves":
                loss = result.history["loss"] / result.history["loss"][0]
                at = np.minimum(analysis.sampled_iterations(cell["cap"]), len(loss) - 1)
                row["loss"] = [float(f"{value:.4g}") for value in loss[at]]
            rows.append(row)
    return rows


def _recursion(cell: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for seed in range(cell["seeds"]):
        problem = _problem(cell, seed)
        start = lr.inits.nystrom(problem, lr.BurerMonteiro, cell["rank"], seed=1000 + seed)
        result = lr.solve(problem, start, lr.ScaledGD(step_size=cell["step"]), cell["cap"], tol=0)
        rows.append({"seed": seed, "errors": result.history["error"], "count": result.iterations_to(1e-9)})
    return rows


def _success(cell: dict[str, Any]) -> list[dict[str, Any]]:
    counts, peaks = [], []
    for seed in range(cell["seeds"]):
        problem = _problem(cell, seed)
        start = lr.inits.gaussian(problem, lr.BurerMonteiro, cell["rank"], scale=cell["scale"], seed=1000 + seed)
        result = _solve(cell, problem, start, cell["step"])
        counts.append(result.iterations_to(cell["level"]))
        peaks.append(float(result.history["loss"].max() / result.history["loss"][0]))
    return [{"rate": float(np.isfinite(counts).mean()), "counts": counts, "peaks": peaks}]


def _printed(cell: dict[str, Any]) -> list[dict[str, Any]]:
    """Whether the first step of ScaledGD from the Nystrom start exists when it is read as printed."""
    problem, rng, rank = _problem(cell, 0), np.random.default_rng(0), cell["rank"]
    rows = rank if cell["reading"] == "square sketch" else cell["n"]
    try:
        left = problem.data @ rng.standard_normal((rows, rank))
        right = np.zeros((cell["n"], rank))
        step = (left @ right.T - problem.data) @ right @ np.linalg.inv(right.T @ right)
        return [{"defined": bool(np.isfinite(step).all()), "reason": "finite"}]
    except (ValueError, np.linalg.LinAlgError) as error:
        return [{"defined": False, "reason": f"{type(error).__name__}: {error}"}]


def measures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return analysis.measures(rows, LEVELS)


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return plots.figures(rows, LEVELS)


def tables(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    return analysis.tables(rows, LEVELS)
