"""Iterations of PoLAR's Riemannian gradient descent against rank, core, retraction and metric."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

import lowrank_sp as lr
from lowrank_sp.descent import Descent
from lowrank_sp.rules import Scaled, retract
from studies.polar_rank import analysis, plots, saddles

LEVEL = 1e-8  # of the relative error


def _scaled_metric(step: float) -> Descent:
    """PoLAR's update with the Stiefel gradients scaled by the Gram matrix of the core."""
    steps = (lr.Constant(step), lr.Constant(1.0))
    return Descent(Scaled(), steps, (("left", "right"), ("core",)), retract, "scaled metric")


METHODS = {
    "polar": partial(lr.RiemannianGD, core_step_size=1.0),
    "half core step": partial(lr.RiemannianGD, core_step_size=0.5),
    "qr": partial(lr.RiemannianGD, core_step_size=1.0, retraction="qr"),
    "landing": partial(lr.LandingGD, core_step_size=1.0),
    "scaled metric": _scaled_metric,
    "auto": lambda step: lr.RiemannianGD(),
}


def run(cell: dict[str, Any]) -> list[dict[str, Any]]:
    return [saddles.inspect(cell)] if cell["part"] == "saddle" else _tune(cell)


def _tune(cell: dict[str, Any]) -> list[dict[str, Any]]:
    """Every step of the grid on every seed; steps are in units of 1 / s_1^2, and s_1 is 1."""
    m, n = map(int, cell["shape"].split("x"))
    rows = []
    for step in cell["steps"]:
        for seed in range(cell["seeds"]):
            problem = lr.synthetic.factorization(m, n, cell["true_rank"], cell["kappa"], seed=seed)
            rows.append({"step": step, "seed": seed, **_solve(cell, problem, step, seed)})
    return rows


def _solve(cell: dict[str, Any], problem: Any, step: float, seed: int) -> dict[str, Any]:
    start = lr.inits.stiefel(problem, lr.PoLAR, cell["r"], seed=1000 + seed)
    if cell["core"] == "diagonal":
        start = lr.SVD(start.left, np.zeros(cell["r"]), start.right)
    options = {"penalty": cell["penalty"]} if cell["method"] == "landing" else {}
    target = 0.5 * (LEVEL * np.linalg.norm(problem.data)) ** 2
    defects, gaps = [], []

    def watch(iteration: int, point: Any, loss: float) -> bool:
        if cell["watch"]:
            defects.append(max(analysis.defect(point.left), analysis.defect(point.right)))
            gaps.append(np.linalg.norm(point.core - point.left.T @ problem.data @ point.right))
        return loss <= target

    result = lr.solve(problem, start, METHODS[cell["method"]](step, **options), cell["cap"], 0, watch)
    row: dict[str, Any] = {"count": result.iterations_to(LEVEL), "status": result.status.name}
    if cell["watch"]:
        row |= {"largest_defect": max(defects), "last_defect": defects[-1], "core_gap": max(gaps)}
        row["defects"] = analysis.sample(np.array(defects), cell["cap"])
    if cell["keep"]:
        row["loss"] = analysis.sample(result.history["loss"] / result.history["loss"][0], cell["cap"])
    return row


def measures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return analysis.measures(rows)


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return plots.figures(rows)


def tables(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    return analysis.tables(rows)
