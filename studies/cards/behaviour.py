"""How a form or rule behaves: iterations on the one-layer testbed, and samples that sensing needs."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

import lowrank_sp as lr
from lowrank_sp.descent import Descent
from lowrank_sp.testing.common import settle

__all__ = ["Budget", "convergence", "sample_complexity", "solvers"]

GOAL = 1e-6


@dataclass(frozen=True)
class Budget:
    """How much a card may spend: iterations of a solve, instances of a sensing problem, timed repetitions."""

    iterations: int = 300
    instances: int = 5
    repetitions: int = 15


def solvers() -> dict[str, Any]:
    """The named solvers with their default steps."""
    return {name: make() for name, make in lr.SOLVERS.items()}


def convergence(
    form: Any, shape: tuple[int, int], rank: int, methods: dict[str, Any], budget: Budget, seed: int = 0
) -> list[dict[str, Any]]:
    """Iterations to a relative error of 1e-6 on ``1/2 ||F(x) - A||^2`` for every method.

    A has rank ``rank`` and condition number 1, 10 and 100 for forms that reach all such matrices, and is an
    image of the form itself for others; the last columns start with twice the size at condition number 10.
    From a Gaussian start of a tenth of the scale of A.
    """
    cases = [("kappa 1", 1.0, rank), ("kappa 10", 10.0, rank), ("kappa 100", 100.0, rank)]
    cases = cases if form.universal else [("own image", None, rank)]
    if _fits(form, shape, 2 * rank):
        cases.append(("size x2", 10.0 if form.universal else None, 2 * rank))
    return [
        {"method": name, **{case[0]: _iterations(form, shape, rank, method, case, budget, seed) for case in cases}}
        for name, method in methods.items()
    ]


def _fits(form: Any, shape: tuple[int, int], rank: int) -> bool:
    try:
        form.shapes(shape, rank)
    except ValueError:
        return False
    return rank <= min(shape)


def _target(form: Any, shape: tuple[int, int], rank: int, kappa: float | None, seed: int) -> np.ndarray:
    if kappa is not None:
        return lr.synthetic.low_rank(*shape, rank, condition_number=kappa, seed=seed).dense()
    dense = settle(form.random(shape, rank, np.random.default_rng(seed))).dense()
    return dense / np.linalg.norm(dense, 2)


def _iterations(
    form: Any, shape: tuple[int, int], rank: int, method: Any, case: tuple[str, Any, int], budget: Budget, seed: int
) -> int | str:
    _, kappa, size = case
    target = _target(form, shape, rank, kappa, seed)
    problem = lr.MatrixFactorization(target)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            start = lr.inits.gaussian(problem, form, size, scale=0.1, seed=seed + 1)
            result = lr.solve(problem, start, method, max_iter=budget.iterations, tol=0.0)
    except TypeError:
        return "does not fit"
    scale = np.sqrt(2 * result.history["loss"]) / np.linalg.norm(target)
    reached = np.flatnonzero(scale <= GOAL)
    return int(result.history["iteration"][reached[0]]) if len(reached) else f"{scale[-1]:.0e} left"


def sample_complexity(
    form: Any, shape: tuple[int, int], rank: int, dimension: int, budget: Budget
) -> list[dict[str, Any]]:
    """Share of exact recoveries (relative error below 1e-4) from Gaussian measurements of an image of the form."""
    rows = []
    for factor in (1.0, 1.5, 2.0, 3.0, 4.0):
        count = int(np.ceil(factor * dimension))
        found = [_recovered(form, shape, rank, count, budget, seed) for seed in range(budget.instances)]
        if None in found:
            return []
        rows.append({"measurements / dimension": factor, "measurements": count, "recovered": float(np.mean(found))})
    return rows


def _recovered(form: Any, shape: tuple[int, int], rank: int, count: int, budget: Budget, seed: int) -> bool | None:
    rng = np.random.default_rng(seed)
    truth = _target(form, shape, rank, 1.0 if form.universal else None, seed)
    operator = rng.standard_normal((count, *shape)) / np.sqrt(count)
    problem = lr.MatrixSensing(operator, (operator * truth).sum((1, 2)), shape)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            start = _start(problem, form, rank, seed)
            result = lr.solve(problem, start, _default(start), max_iter=budget.iterations, tol=1e-12)
    except TypeError:
        return None
    return bool(np.linalg.norm(result.point.dense() - truth) < 1e-4 * np.linalg.norm(truth))


def _start(problem: Any, form: Any, rank: int, seed: int) -> Any:
    """The spectral start where the form has one."""
    try:
        return lr.inits.spectral(problem, form, rank)
    except TypeError:
        return lr.inits.gaussian(problem, form, rank, scale=0.1, seed=seed)


def _default(point: Any) -> Descent:
    return lr.ScaledCG() if point.flat else lr.RiemannianGD()
