"""Completion of extremely ill-conditioned matrices from few entries: which solver survives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import lowrank_sp as lr
from studies.ill_conditioned import plots
from studies.ill_conditioned.plots import rate

Cell = Mapping[str, Any]
Row = Mapping[str, Any]

GRADIENT = ("ScaledGD", "ScaledCG", "RiemannianCG")


def _from_spectral(solver: Any, iterations: int) -> Callable[[lr.MatrixCompletion, int], Any]:
    """A solver from the spectral start; tolerance zero, so that it goes on to rounding or to its last iteration."""

    def solved(problem: lr.MatrixCompletion, rank: int) -> Any:
        start = lr.inits.spectral(problem, lr.BurerMonteiro, rank)
        return lr.solve(problem, start, solver, iterations, 0.0)

    return solved


SOLVERS: dict[str, Callable[[lr.MatrixCompletion, int], Any]] = {
    "lr.complete": lr.complete,
    "MatrixIRLS": _from_spectral(lr.MatrixIRLS(), 80),
    "ALS": _from_spectral(lr.ALS(), 200),
    "ScaledCG": _from_spectral(lr.ScaledCG(), 300),
    "ScaledGD": _from_spectral(lr.ScaledGD(), 400),
    "RiemannianCG": _from_spectral(lr.RiemannianCG(), 300),
}


def run(cell: Cell) -> Row:
    """One instance with geometrically spaced singular values, solved once."""
    size, rank, kappa = cell["size"], cell["rank"], cell["condition"]
    share = cell["ratio"] * rank * (2 * size - rank) / size**2
    problem = lr.synthetic.completion(
        size, size, rank, observed=share, least=rank, seed=cell["seed"], spectrum=np.geomspace(1, 1 / kappa, rank)
    )
    assert problem.truth is not None
    truth = problem.truth.dense()
    tick = perf_counter()
    result = SOLVERS[cell["solver"]](problem, rank)
    seconds = perf_counter() - tick
    gap = float(np.linalg.norm(result.point.dense() - truth))
    return {
        "error": gap / float(np.linalg.norm(truth)),
        "least_error": gap * kappa,  # relative to the least singular value, which is 1 / kappa
        "iterations": int(result.nit),
        "seconds": seconds,
        "status": result.status.name,
    }


def measures(rows: Sequence[Row]) -> dict[str, Any]:
    """Success rates over the seeds, one value per condition number (and ratio, and solver, where several are named)."""
    conditions = sorted({row["condition"] for row in rows})
    ratios = sorted({row["ratio"] for row in rows})
    present = {row["solver"] for row in rows}
    high = [c for c in conditions if c >= 1e4]

    def rates(solver: str, chosen: Sequence[float], ratio: float, key: str = "error") -> list[float]:
        return [rate(rows, solver, c, ratio, key) for c in chosen if ratio in ratios]

    def lead(one: str, other: str) -> list[float]:
        pairs = [(c, x) for c in conditions for x in ratios]
        return [rate(rows, one, c, x) - rate(rows, other, c, x) for c, x in pairs]

    gradient = [s for s in GRADIENT if s in present]
    return {
        "irls_3": rates("MatrixIRLS", conditions, 3.0),
        "irls_all_3": rates("MatrixIRLS", [c for c in conditions if c <= 1e8], 3.0, "least_error"),
        "irls_low": rates("MatrixIRLS", high, 1.5),
        "irls_2": rates("MatrixIRLS", conditions, 2.0),
        "default_3": rates("lr.complete", conditions, 3.0) + rates("lr.complete", conditions, 5.0),
        "default_all_3": rates("lr.complete", [c for c in conditions if c <= 1e4], 3.0, "least_error"),
        "default_all_beyond": rates("lr.complete", [c for c in conditions if c > 1e4], 3.0, "least_error"),
        "default_over_als": lead("lr.complete", "ALS"),
        "als_5": rates("ALS", conditions, 5.0),
        "als_2_high": rates("ALS", high, 2.0),
        "gradient_easy": [x for s in gradient for x in rates(s, [1.0], 5.0)],
        "gradient_high": [x for s in gradient for ratio in ratios for x in rates(s, high, ratio)],
    }


def tables(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Success rates by both criteria, and times."""
    return plots.tables(rows)


def figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """Success rates of every solver over condition number and samples, by both criteria."""
    return plots.figures(rows)
