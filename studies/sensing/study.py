"""Matrix sensing: its population limit, its phase transition, its noise floor and its landscape."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import lowrank_sp as lr
from lowrank_sp.descent import Solver
from studies.sensing import analysis, plots

Cell = Mapping[str, Any]
Row = dict[str, Any]

TRANSITION: dict[str, Solver] = {
    "ScaledCG": lr.ScaledCG(),
    "AltScaledGD": lr.AltScaledGD(),
    "RiemannianCG": lr.RiemannianCG(),
}
# Every method of the comparison over condition numbers may choose among these constant steps.
STEPS: dict[str, tuple[Callable[[Any], Solver], tuple[Any, ...]]] = {
    "GD": (lr.GD, (0.25, 0.5, 0.75)),
    "ScaledGD": (lr.ScaledGD, (0.3, 0.5, 0.7)),
    "LoRAPro": (lr.LoRAPro, (0.3, 0.5, 0.7)),
    "RiemannianGD": (lr.RiemannianGD, (0.3, 0.5, 0.7)),
    "ScaledCG": (lr.ScaledCG, ("auto",)),
}
STARTS: dict[str, Solver] = {"GD": lr.GD(), "AltGD": lr.AltGD(), "ScaledCG": lr.ScaledCG()}
# Constant steps of the orthonormal factors and of the core, among which every rank chooses.
POLAR_STEPS = ((0.3, 1.0), (0.3, 0.1), (0.1, 0.1))


def _relative(a: Any, b: Any) -> float:
    """``||a - b|| / ||b||`` for arrays, numbers or factors."""
    pair = [np.concatenate([np.ravel(x) for x in (v.arrays() if hasattr(v, "arrays") else (v,))]) for v in (a, b)]
    return float(np.linalg.norm(pair[0] - pair[1]) / np.linalg.norm(pair[1]))


def _dof(cell: Cell) -> int:
    return cell["rank"] * (cell["m"] + cell["n"] - cell["rank"])


def _instance(cell: Cell, **settings: Any) -> lr.MatrixSensing:
    count = round(cell["ratio"] * _dof(cell))
    given = {"measurements": count, "seed": cell["seed"], **settings}
    return lr.synthetic.sensing(cell["m"], cell["n"], cell["rank"], **given)


def population(cell: Cell) -> Row:
    """Deviation of the sensing loss and gradient from those of the factorization, and recovery."""
    sensing = lr.synthetic.sensing(
        cell["m"], cell["n"], cell["rank"], measurements=cell["measurements"], seed=cell["seed"]
    )
    limit = lr.MatrixFactorization(sensing.truth.dense())
    point = lr.inits.gaussian(limit, lr.BurerMonteiro, cell["rank"], scale=0.3, seed=cell["seed"])
    start = lr.inits.spectral(sensing, lr.BurerMonteiro, cell["rank"])
    result = lr.solve(sensing, start, lr.ScaledCG(), max_iter=300, tol=0)
    return {
        "per_unknown": cell["measurements"] / (cell["rank"] * (cell["m"] + cell["n"])),
        "gradient_gap": _relative(sensing.gradient(point), limit.gradient(point)),
        "loss_gap": _relative(sensing.loss(sensing.residual(point)), limit.loss(limit.residual(point))),
        "error": float(result.history["error"][-1]),
    }


def finetune(cell: Cell) -> Row:
    """Loss and gradient of fine-tuning a linear layer against those of sensing with shifted data."""
    m, n, rank, count = cell["m"], cell["n"], cell["rank"], cell["measurements"]
    rng = np.random.default_rng(cell["seed"])
    matrices, before = rng.standard_normal((count, m, n)), rng.standard_normal((m, n))
    change = rng.standard_normal((m, rank)) @ rng.standard_normal((n, rank)).T
    labels = np.einsum("kij,ij->k", matrices, before + change)
    point = lr.BurerMonteiro(rng.standard_normal((m, rank)), rng.standard_normal((n, rank)))
    x, y = point.arrays()
    gap = np.einsum("kij,ij->k", matrices, before + x @ y.T) - labels
    full = np.einsum("k,kij->ij", gap, matrices)
    shifted = labels - np.einsum("kij,ij->k", matrices, before)
    problem = lr.MatrixSensing(matrices, shifted, (m, n))
    return {
        "loss_gap": _relative(problem.loss(problem.residual(point)), 0.5 * gap @ gap),
        "gradient_gap": _relative(problem.gradient(point), lr.BurerMonteiro(full @ y, full.T @ x)),
    }


def transition(cell: Cell) -> list[Row]:
    """Whether each solver recovers the truth from this many measurements."""
    problem = _instance(cell, ensemble=cell["ensemble"])
    start = lr.inits.spectral(problem, lr.BurerMonteiro, cell["rank"])
    rows = []
    for name in cell["solvers"].split():
        result = lr.solve(problem, start, TRANSITION[name], max_iter=cell["max_iter"], tol=1e-12)
        error = float(result.history["error"][-1])
        rows.append({"solver": name, "error": error, "recovered": error <= cell["success"]})
    return rows


def noise(cell: Cell) -> Row:
    """The error that noise leaves, and what least squares in the tangent space would leave."""
    problem = _instance(cell, noise=cell["level"])
    start = lr.inits.spectral(problem, lr.BurerMonteiro, cell["rank"])
    result = lr.solve(problem, start, lr.ScaledCG(), max_iter=300, tol=1e-14)
    unknowns, count = _dof(cell), problem.operator.count
    predicted = cell["level"] * (unknowns / (count - unknowns - 1)) ** 0.5
    return {"error": float(result.history["error"][-1]), "predicted": predicted}


def condition(cell: Cell) -> list[Row]:
    """Iterations of one method to a small error, with each of its steps."""
    problem = _instance(cell, condition_number=cell["kappa"])
    start = lr.inits.spectral(problem, lr.BurerMonteiro, cell["rank"])
    make, steps = STEPS[cell["solver"]]
    rows = []
    for step in steps:
        result = lr.solve(
            problem, start, make(step), cell["max_iter"], tol=0,
            callback=lambda _, point, __: lr.metrics.relative_error(point, problem.truth) <= cell["target"],
        )  # fmt: skip
        rows.append({"step": str(step), "count": result.iterations_to(cell["target"])})
    return rows


def starts(cell: Cell) -> list[Row]:
    """How far above the global minimum random starts end, relative to the loss at zero."""
    m, n, rank = cell["m"], cell["n"], cell["rank"]
    if cell["problem"] == "factorization":
        problem = lr.synthetic.factorization(m, n, 2 * rank, spectrum=1.0 / np.arange(1, 2 * rank + 1), seed=0)
        least = 0.5 * float(sum(1.0 / np.arange(rank + 1, 2 * rank + 1) ** 2))
    else:
        problem, least = lr.synthetic.sensing(m, n, rank, condition_number=2.0, seed=0), 0.0
    start = lr.inits.gaussian(problem, lr.BurerMonteiro, rank, scale=cell["scale"], seed=cell["seed"])
    rows = []
    for name, solver in STARTS.items():
        result = lr.solve(
            problem, start, solver, cell["max_iter"], tol=0,
            callback=lambda _, __, loss: loss - least <= 0.5e-12 * problem.scale,
        )  # fmt: skip
        rows.append({"solver": name, "excess": abs(result.fun - least) / (0.5 * problem.scale)})
    return rows


def saddle(cell: Cell) -> list[Row]:
    """Smallest Hessian eigenvalue at the origin of both problems, and at points that keep wrong singular pairs."""
    m, n, rank = cell["m"], cell["n"], cell["rank"]
    zero = lr.BurerMonteiro(np.zeros((m, rank)), np.zeros((n, rank)))
    limit = lr.synthetic.factorization(m, n, 2 * rank, condition_number=4.0, seed=cell["seed"])
    sensing = lr.synthetic.sensing(m, n, rank, condition_number=2.0, seed=cell["seed"])
    rows = [
        {"point": name, **_curvature(problem, zero, -float(np.linalg.norm(problem.surrogate(), 2)))}
        for name, problem in (("origin of factorization", limit), ("origin of sensing", sensing))
    ]
    u, s, vt = np.linalg.svd(limit.data)
    for kept in combinations(range(2 * rank), rank):
        point = lr.BurerMonteiro(u[:, kept] * s[list(kept)] ** 0.5, vt[kept, :].T * s[list(kept)] ** 0.5)
        left_out = max(s[i] for i in range(2 * rank) if i not in kept)
        best = kept == tuple(range(rank))
        predicted = 0.0 if best else float(min(s[list(kept)]) - left_out)
        rows.append({"point": "minimum" if best else "wrong pairs", **_curvature(limit, point, predicted)})
    return rows


def _curvature(problem: Any, point: lr.BurerMonteiro, predicted: float, width: float = 1e-4) -> Row:
    """Smallest eigenvalue of the Hessian by central differences of the gradient, and the gradient norm."""
    gradient = problem.gradient(point)
    columns = []
    for index, array in enumerate(point.arrays()):
        for place in np.ndindex(array.shape):
            shift = np.zeros(array.shape)
            shift[place] = width
            ends = [problem.gradient(point.with_array(index, array + sign * shift)) for sign in (1.0, -1.0)]
            columns.append(np.concatenate([np.ravel(a) for a in (ends[0] - ends[1]).arrays()]) / (2 * width))
    hessian = np.array(columns)
    return {
        "gradient": float(gradient.inner(gradient)) ** 0.5,
        "eigenvalue": float(np.linalg.eigvalsh((hessian + hessian.T) / 2)[0]),
        "predicted": predicted,
    }


def _settled(problem: Any, point: Any, loss: float, success: float) -> bool:
    """Whether the truth is recovered, or the data are interpolated by something else."""
    if 2 * loss <= 1e-20 * problem.scale:
        return True
    return lr.metrics.relative_error(point, problem.truth) <= 1e-2 * success


def overparametrized(cell: Cell) -> list[Row]:
    """Recovery by PoLAR's published iteration when its rank exceeds that of the truth."""
    problem = _instance(cell)
    start = lr.inits.stiefel(problem, lr.PoLAR, cell["factor"] * cell["rank"], seed=cell["seed"])
    rows = []
    for step, core_step in POLAR_STEPS:
        result = lr.solve(
            problem, start, lr.RiemannianGD(step, core_step), cell["max_iter"], tol=0,
            callback=lambda _, point, loss: _settled(problem, point, loss, cell["success"]),
        )  # fmt: skip
        error = float(result.history["error"][-1])
        rows.append({
            "steps": f"{step:g}, {core_step:g}",
            "error": error,
            "relative_residual": float((2 * result.fun / problem.scale) ** 0.5),
            "recovered": error <= cell["success"],
            "count": result.iterations_to(cell["success"]),
        })  # fmt: skip
    return rows


PARTS: dict[str, Callable[[Cell], Row | list[Row]]] = {
    "population": population,
    "finetune": finetune,
    "transition": transition,
    "ensembles": transition,
    "noise": noise,
    "condition": condition,
    "starts": starts,
    "saddle": saddle,
    "overparametrized": overparametrized,
}


def run(cell: Cell) -> Row | list[Row]:
    """Run one cell of the part that it names."""
    return PARTS[cell["part"]](cell)


def measures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the claims speak about."""
    return analysis.measures(rows)


def tables(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Success rates and best steps."""
    return analysis.tables(rows)


def figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """One figure for every question."""
    return plots.figures(rows)
