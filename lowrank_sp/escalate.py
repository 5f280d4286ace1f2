"""How completion decides: a cheap solver first, a robust one where it fails, a validated ridge where data are noisy."""

from __future__ import annotations

import warnings
from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np

from . import inits, xp
from .descent import AlternatingLeastSquares
from .factors import Factors
from .parameterizations import BurerMonteiro
from .problems import MatrixCompletion
from .result import Result, Status, join, uninterrupted
from .reweighted import MatrixIRLS
from .solve import solve
from .solvers import ALS

__all__ = ["complete_exactly_or_robustly", "fitting_als", "misfit", "split", "validated_ridge"]

# A relative residual at which exact data count as met. At 1e-6 the small singular values of an ill-conditioned matrix
# can still be wrong altogether.
MET = 1e-9
# The factor of the ridge of alternating least squares, and the entries per degree of freedom up to which it is needed.
GUARD, FEW = 0.3, 3.0
# Iterations in which alternating least squares must meet the data: beyond, the reweighted steps are cheaper.
FIRST = 150
# A stage has stalled when this many iterations lowered the loss by less than this share.
WINDOW, SHARE = 8, 0.01
# Noise makes no use of a finer tolerance than this.
COARSE = 1e-5
# Ridges that are compared on held-out entries, relative to the mean Gram matrix, and sweeps at each of them.
RIDGES = (0.0, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
SWEEPS = 20
# The ladder ends where the held-out error is this many times its least.
WORSE = 1.2
# A singular value is found when it is this many times the residual: a smaller one may be wrong altogether.
RESOLVED = 100.0
# Below this many times the residual it may be one that the rank has too much, which few entries see little of.
OPEN = 1e5


class Stalled:
    """A callback that ends a stage when the loss hardly falls any more, unless it is at most ``enough``."""

    def __init__(self, enough: float):
        self.enough = enough
        self.losses: list[float] = []

    def __call__(self, iteration: int, point: Factors, loss: float) -> bool:
        self.losses.append(loss)
        if loss <= self.enough or len(self.losses) <= WINDOW:
            return False
        return loss > (1 - SHARE) * self.losses[-1 - WINDOW]


def misfit(problem: MatrixCompletion, point: Factors) -> float:
    """``||A(W) - y|| / ||y||``."""
    residual = problem.residual(point)
    return float(xp.to_numpy(problem.inner(residual, residual))) ** 0.5 / (problem.scale**0.5 or 1.0)


def split(problem: MatrixCompletion, share: float, seed: Any = 0) -> tuple[MatrixCompletion, tuple[Any, Any, Any]]:
    """The problem without a random ``share`` of its entries, and those: rows, columns and values."""
    rows, cols, values = problem.pattern.rows, problem.pattern.cols, problem.values
    chosen = np.zeros(values.shape[-1], bool)
    chosen[np.random.default_rng(seed).permutation(chosen.size)[: max(1, round(share * chosen.size))]] = True
    held = _beside(chosen, rows)
    weights = None if problem.roots is None else problem.roots[~held] ** 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a row that is left empty is no fault of the user's data
        rest = MatrixCompletion(rows[~held], cols[~held], values[~held], problem.shape, weights=weights)
    return rest, (rows[held], cols[held], values[held])


def _beside(mask: np.ndarray, like: Any) -> Any:
    """A NumPy mask in the library and on the device of ``like``."""
    return like.new_tensor(mask).bool() if xp.is_torch(like) else mask


def held_out_error(point: Factors, held: tuple[Any, Any, Any]) -> float:
    """Root mean square error on held-out entries."""
    rows, cols, values = held
    gap = point.entries(rows, cols) - values
    return float(xp.to_numpy(xp.inner(gap, gap, 1)) / values.shape[0]) ** 0.5


def validated_ridge(problem: MatrixCompletion, point: BurerMonteiro, share: float) -> tuple[float, BurerMonteiro, str]:
    """The ridge of `ALS` with the least error on a held-out share of the entries, from none upwards.

    With it the point fitted to the other entries, and what was found in words.
    """
    rest, held = split(problem, share)
    errors, points = [], []
    for ridge in RIDGES:
        point = uninterrupted(solve(rest, point, ALS(ridge), SWEEPS, 1e-6)).point
        errors.append(held_out_error(point, held))
        points.append(point)
        if errors[-1] > WORSE * min(errors):
            break
    best = int(np.argmin(errors))
    words = f"ridge {RIDGES[best]:g}, chosen on {share:.0%} held-out entries (error {errors[best]:.2g})"
    return RIDGES[best], points[best], words


def fitting_als(problem: MatrixCompletion, rank: int) -> AlternatingLeastSquares:
    """`ALS` whose ridge weighs less the more entries there are per degree of freedom: it guards against few of them."""
    m, n = problem.shape
    over = problem.data.shape[-1] / (rank * (m + n - rank))
    return AlternatingLeastSquares(factor=GUARD * min(1.0, (FEW / over) ** 2))


def complete_exactly_or_robustly(
    problem: MatrixCompletion, rank: int, max_iter: int, tol: float, validation: float
) -> Result:
    """ALS; where it does not meet the data, MatrixIRLS; where neither does, ALS with a validated ridge.

    Data that are met to ``tol`` leave singular values open that are no larger than the residual: for those
    MatrixIRLS goes on to working precision.
    """
    start = inits.spectral(problem, BurerMonteiro, rank)
    if problem.data.ndim > 1:
        result = solve(problem, start, ALS(), max_iter, tol)
        return join([result], "BurerMonteiro, spectral start, ALS on a batch")
    met = max(MET, 10 * tol, 50 * xp.eps(problem.data))
    stages, words = [], ["BurerMonteiro, spectral start"]
    for solver, most in ((fitting_als(problem, rank), min(FIRST, max_iter)), (MatrixIRLS(), max_iter)):
        stalled = Stalled(0.5 * problem.scale * met**2)
        stages.append(solve(problem, start, solver, most, tol, callback=stalled))
        if stages[-1].status is Status.INTERRUPTED:
            return join(stages, " -> ".join([*words, f"{solver.name}, interrupted"]))
        gap = misfit(problem, stages[-1].point)
        words.append(f"{solver.name} to a relative residual of {gap:.1e}")
        if gap <= met:
            if not stages[-1].success and most < max_iter:  # on its way, only slowly
                stages.append(solve(problem, stages[-1].point, solver, max_iter - most, tol))
            return _resolved(problem, start, stages, words, max_iter, tol)
    return _noisy(problem, stages, words, max_iter, tol, validation)


def least_share(point: Any) -> float:
    """The last singular value of a thin product, relative to the norm of all."""
    left, right = point.product()
    backend = xp.namespace(left)
    core = backend.linalg.qr(left)[1] @ xp.adjoint(backend.linalg.qr(right)[1])
    s = xp.to_numpy(xp.namespace(core).linalg.svd(core)[1])
    return float(s[-1] / (np.linalg.norm(s) or 1.0))


def _resolved(
    problem: MatrixCompletion, start: Factors, stages: list[Result], words: list[str], max_iter: int, tol: float
) -> Result:
    """The last stage if its residual resolves all its singular values or is coarse by request; else MatrixIRLS too."""
    gap, least = misfit(problem, stages[-1].point), least_share(stages[-1].point)
    if least > OPEN * gap or tol > MET or not gap:
        return join(stages, " -> ".join(words))
    words.append(f"which leaves singular values of a relative {OPEN * gap:.1e} open")
    # From the start: a point that meets the data otherwise than the truth does is a trap, not a start.
    finer = uninterrupted(solve(problem, start, MatrixIRLS(), max_iter, 0.0, callback=Stalled(0.0)))
    after = misfit(problem, finer.point)
    words.append(f"MatrixIRLS to a relative residual of {after:.1e}")
    spent = 0.0
    if after < gap:
        exact = after <= 50 * xp.eps(problem.data)
        stages.append(finer if finer.success or not exact else replace(finer, status=Status.PRECISION))
    else:
        words[-1] += ", not taken"
        spent = float(finer.history["seconds"][-1])
    least = least_share(stages[-1].point)
    if least <= RESOLVED * min(gap, after):
        words.append(f"the last singular value, a relative {least:.1e}, is not found: the rank may be smaller")
    return join(stages, " -> ".join(words), spent)


def _noisy(
    problem: MatrixCompletion, stages: list[Result], words: list[str], max_iter: int, tol: float, validation: float
) -> Result:
    """The last stage for data that no matrix of the rank meets: alternating least squares with a ridge."""
    losses = [float(stage.fun) for stage in stages]
    # The reweighted point fits noise the least of the two; not so where it is far from the data.
    point = stages[1 if losses[1] <= 4 * losses[0] else 0].point
    spare = problem.data.shape[0] * (1 - validation) - sum(a.shape[0] * a.shape[1] for a in point.arrays())
    ridge, why, tick = 0.0, "no ridge", perf_counter()
    if validation and spare > 0:
        ridge, point, why = validated_ridge(problem, point, validation)
    seconds = perf_counter() - tick
    words.append(f"ALS with {why}")
    stages.append(solve(problem, point, ALS(ridge), max_iter, max(tol, COARSE)))
    return join(stages, " -> ".join(words), seconds)
