"""The scalar testbed of the survey: curvature on gauge orbits, one-step updates, and tuned steps."""

from __future__ import annotations

from typing import Any

import numpy as np

import lowrank_sp as lr
from studies.scalar_landscape import analysis, plots

STEPS = np.arange(1, 201) / 240  # holds 1/10, 1/6 and 1/3
SPREAD = np.geomspace(1, 1000, 31)
ORBIT = np.geomspace(0.25, 4, 129)
PATH_STEP = {"GD": 0.05, "ScaledGD": 0.2, "RefLoRA": 0.05}  # RefLoRA(eta) = ScaledGD(4 eta) at xy = 4


def hessian(x: Any, y: Any, target: float = 1.0) -> np.ndarray:
    """Hessian of ``(xy - target)^2 / 2``, (..., 2, 2); equation (13) of the survey at target 1."""
    cross = 2 * x * y - target
    return np.stack((np.stack((y * y, cross), -1), np.stack((cross, x * x), -1)), -2)


def difference_hessian(problem: Any, x: float, y: float, h: float = 1e-5) -> np.ndarray:
    """The same by central differences of the gradient that the library computes."""

    def gradient(x: float, y: float) -> np.ndarray:
        return np.array([float(a.item()) for a in problem.gradient(point(x, y)).arrays()])

    columns = [(gradient(x + a, y + b) - gradient(x - a, y - b)) / (2 * h) for a, b in ((h, 0.0), (0.0, h))]
    return np.stack(columns, -1)


def point(x: float, y: float) -> lr.BurerMonteiro:
    """The pair as a point of rank one and size 1 x 1."""
    return lr.BurerMonteiro(np.array([[float(x)]]), np.array([[float(y)]]))


def path(problem: Any, start: Any, solver: str, step: float, iterations: int, level: float = 0.0) -> np.ndarray:
    """The iterates (x, y) of a solver, (k, 2), until the loss is at most ``level^2 / 2``."""
    visited = [tuple(start)]

    def note(_: int, place: Any, loss: float) -> bool:
        visited.append((place.left.item(), place.right.item()))
        return loss <= 0.5 * level**2

    lr.solve(problem, point(*start), lr.SOLVERS[solver](step), iterations, tol=0, callback=note)
    return np.array(visited)


def run(cell: dict[str, Any]) -> dict[str, Any]:
    problem = lr.MatrixFactorization(np.array([[cell["target"]]]))
    return PARTS[cell["part"]](problem, cell)


def _hessian(problem, cell):
    x, y = cell["point"]
    exact = hessian(np.float64(x), np.float64(y))
    gap = np.abs(exact - difference_hessian(problem, x, y)).max()
    return {"matrix": exact, "eigenvalues": np.linalg.eigvalsh(exact), "difference_gap": gap}


def _orbit(problem, cell):
    root = cell["product"] ** 0.5
    x, y = root * SPREAD, root / SPREAD
    return {"spread": SPREAD, "larger": x, "smaller": y, "top": np.linalg.eigvalsh(hessian(x, y))[:, -1]}


def _dominance(problem, cell):
    place = point(cell["radius"], cell["radius"])
    return {"ratio": problem.gradient(place).norm() ** 2 / problem.loss(problem.residual(place))}


def _one_step(problem, cell):
    ends = np.array([path(problem, cell["start"], cell["solver"], eta, 1)[-1] for eta in STEPS])
    return {"step": STEPS, "x": ends[:, 0], "y": ends[:, 1]}


def _orbit_step(problem, cell):
    ends = np.array([path(problem, (2 * t, 2 / t), "GD", cell["step"], 1)[-1] for t in ORBIT])
    return {"imbalance": ORBIT**2, "loss": 0.5 * (ends.prod(-1) - 1) ** 2}


def _path(problem, cell):
    step = PATH_STEP[cell["solver"]]
    ends = path(problem, cell["start"], cell["solver"], step, cell["iterations"], 1e-9)
    return {"step": step, "x": ends[:, 0], "y": ends[:, 1]}


def _scale(problem, cell):
    root = (4 * cell["target"]) ** 0.5
    end = path(problem, (root, root), cell["solver"], cell["step"], 1)[-1]
    return {"relative_error": abs(end.prod() / cell["target"] - 1)}


def _tuning(problem, cell):
    def count(seed: int) -> float:
        rng = np.random.default_rng(seed)
        root, t = rng.uniform(0.25**0.5, 2.5**0.5), 4 ** rng.uniform(-1, 1)
        ends = path(problem, (root * t, root / t), cell["solver"], cell["step"], cell["iterations"], 1e-12)
        return len(ends) - 1 if abs(ends[-1].prod() - 1) <= 1.01e-12 else np.inf

    tuning = [count(1000 + seed) for seed in range(cell["tuning_starts"])]
    return {"tuning": tuning, "report": [count(seed) for seed in range(cell["report_starts"])]}


PARTS = {
    "hessian": _hessian,
    "orbit": _orbit,
    "dominance": _dominance,
    "one_step": _one_step,
    "orbit_step": _orbit_step,
    "path": _path,
    "scale": _scale,
    "tuning": _tuning,
}


def measures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return analysis.measures(rows)


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return plots.figures(rows)


def tables(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return analysis.tables(rows)
