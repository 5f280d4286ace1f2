"""The only loop: iterate a solver, keep history, and stop for a stated reason."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

from . import xp
from .checkpoint import Keeper
from .descent import Solver, State
from .factors import Factors
from .parameterizations import BurerMonteiro
from .problems.base import LeastSquares
from .problems.checks import check_limits
from .result import Result, Status

__all__ = ["solve"]

# A loss this many times the larger of its start and the data norm counts as divergence.
GROWTH = 1e8
# Iterations without any lower loss after which a solve has stalled.
PATIENCE = 100
TINY = float(np.finfo(float).tiny)


def solve(
    problem: LeastSquares,
    start: Factors,
    solver: Solver,
    max_iter: int = 2000,
    tol: float = 1e-10,
    callback: Callable[[int, Factors, float], Any] | None = None,
    progress: bool = False,
    checkpoint: Any = None,
) -> Result:
    """Run a solver on a problem from a start.

    Parameters
    ----------
    problem : LeastSquares
        For example ``lr.MatrixCompletion(...)``.
    start : Factors
        For example ``lr.inits.spectral(problem, lr.BurerMonteiro, rank=5)``; leading axes are batch, and all
        batch elements run at once.
    solver : Solver
        For example ``lr.ScaledGD()``.
    max_iter : int
        Most iterations.
    tol : float
        Stop when the decrease of the loss, relative to the first loss, and the gradient norm, relative to the
        first (or to a hundredth of the gradient of the data alone, if larger), are both at most ``tol`` (at
        least eight machine epsilons of the data). 0 never stops early except at a residual of rounding level.
    callback : callable, optional
        ``callback(iteration, point, loss)`` after every iteration; a true return value stops the solve.
    progress : bool
        Show a progress bar (needs tqdm).
    checkpoint : path, optional
        A file that holds the state after every iteration. If it exists the solve continues from there, and ends
        with the same point and history (but for the seconds) as one that was never interrupted. For `ALS`.

    Returns
    -------
    Result

    Raises
    ------
    TypeError, ValueError
        When the start does not fit the problem or the solver, libraries are mixed, settings are off, or the
        checkpoint is damaged or that of another solve.

    >>> import lowrank_sp as lr
    >>> problem = lr.synthetic.completion(40, 30, rank=2, observed=0.5, seed=0)
    >>> start = lr.inits.spectral(problem, lr.BurerMonteiro, rank=2)
    >>> result = lr.solve(problem, start, lr.ScaledCG())
    >>> result.success, bool(result.history["error"][-1] < 1e-6)
    (True, True)
    """
    _check(problem, start, solver, max_iter, tol)
    max_iter, form = int(max_iter), type(start)
    run = _Run(problem, tol)
    point = start.to(solver.form) if solver.form is not None and isinstance(start, BurerMonteiro) else start
    bar = _progress_bar(max_iter, solver, progress)
    keeper = Keeper(checkpoint, solver)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        state, ended = keeper.restore(run, run.begin(solver, point))
        status, done = ended or Status.MAX_ITER, run.history["iteration"][-1]
        try:
            for iteration in range(done + 1, 0 if ended else max_iter + 1):
                state, ended = run.advance(solver, state, iteration)
                keeper.save(run, state, ended)
                bar(iteration, run.history["loss"][-1])
                if callback is not None and callback(iteration, state.point, state.loss):
                    status = Status.CALLBACK
                    break
                if ended is not None:
                    status = ended
                    break
        except KeyboardInterrupt:
            status = Status.INTERRUPTED
    bar(None, None)
    return run.result(state, status, solver, form)


class _Run:
    """History and stopping of one solve: losses are floats, or arrays when there is a batch."""

    def __init__(self, problem: LeastSquares, tol: float):
        self.problem, self.tol = problem, tol
        self.history: dict[str, list[Any]] = {"iteration": [], "seconds": [], "loss": [], "gradient_norm": []}
        self.tracked = problem.truth is not None
        self.seconds = 0.0
        self.quiet = 0
        self.first_gradient: Any = None

    def begin(self, solver: Solver, point: Factors) -> State:
        tick, self.descends = perf_counter(), solver.descends
        state = solver.start(self.problem, point)
        self.seconds += perf_counter() - tick
        loss = xp.to_numpy(state.loss)
        if not np.isfinite(loss).all():
            raise ValueError("the loss at the start is not finite; check the start and the scale of the data")
        self.batched = loss.ndim > 0
        self.first_loss = np.maximum(loss, TINY)
        self.bound = GROWTH * np.maximum(loss, 0.5 * self.problem.scale)
        self.precision = float(np.finfo(loss.dtype).eps)
        self.floor = self.problem.rounding(self.precision)
        self.tol = max(self.tol, 8 * self.precision) if self.tol else 0.0
        self.least_reference = self._data_gradient(point)
        self.done = self.good = np.zeros(loss.shape, bool)
        if not self.batched:
            loss, self.first_loss, self.bound = float(loss), float(self.first_loss), float(self.bound)
        self.loss = self.best = loss
        self._record(0, state, loss, np.full(np.shape(loss), np.nan))
        return state

    def advance(self, solver: Solver, state: State, iteration: int) -> tuple[State, Status | None]:
        tick = perf_counter()
        new = solver.step(self.problem, state)
        loss = xp.to_numpy(new.loss) if self.batched else float(new.loss)
        self.seconds += perf_counter() - tick
        if self.batched:
            new, loss = self._freeze(state, new, loss)
        elif not loss <= self.bound:
            return state, Status.DIVERGED
        gradient = xp.to_numpy(new.gradient_norm) if self.batched else float(new.gradient_norm)
        if self.first_gradient is None:
            self.first_gradient = np.maximum(np.maximum(gradient, self.least_reference), TINY)
        previous, self.loss = self.loss, loss
        self._record(iteration, new, loss, gradient)
        exact = (loss if self.problem.smooth else xp.to_numpy(self.problem.gap(new.residual, new.loss))) <= self.floor
        if self.batched:
            return new, self._verdict_batch(previous, loss, gradient, exact)
        return new, Status.EXACT if exact else self._verdict(previous, loss, gradient)

    def _verdict(self, previous: float, loss: float, gradient: float) -> Status | None:
        if not self.tol:
            return None
        if gradient <= self.tol * self.first_gradient and abs(previous - loss) <= self.tol * self.first_loss:
            return Status.CONVERGED
        return self._stalled(loss < self.best * (1 - 1e-12), min(loss, self.best), gradient)

    def _verdict_batch(self, previous: np.ndarray, loss: np.ndarray, gradient: np.ndarray, exact: Any) -> Status | None:
        """The end of the run once every element has converged or diverged."""
        settled = (gradient <= self.tol * self.first_gradient) & (abs(previous - loss) <= self.tol * self.first_loss)
        finished = exact | (settled & bool(self.tol))
        self.good = self.good | (finished & ~self.done)
        self.done = self.done | finished
        if self.done.all():
            return Status.CONVERGED if self.good.all() else Status.DIVERGED
        better = (loss < self.best * (1 - 1e-12)) & ~self.done
        return self._stalled(bool(better.any()), np.minimum(loss, self.best), gradient) if self.tol else None

    def _stalled(self, better: bool, best: Any, gradient: Any) -> Status | None:
        """Many iterations without a lower loss: at a small gradient that is all that the precision allows."""
        self.best = best
        self.quiet = 0 if better or not self.descends else self.quiet + 1
        if self.quiet < PATIENCE:
            return None
        small = np.asarray(gradient <= 10 * self.precision**0.5 * self.first_gradient)
        self.good = self.good | (small & ~self.done)
        return Status.PRECISION if bool(np.all(self.good)) else Status.STALLED

    def _data_gradient(self, point: Factors) -> Any:
        """A hundredth of the gradient that the data alone would give: the least reference of gradient norms.

        It lets a solve that starts at its solution end as converged.
        """
        if not (self.tol and self.problem.quadratic and self.problem.smooth):
            return 0.0
        return 0.01 * xp.to_numpy(point.project(point.pullback(self.problem.backproject(self.problem.data))).norm())

    def _freeze(self, old: State, new: State, loss: np.ndarray) -> tuple[State, np.ndarray]:
        """Batch elements that diverged now, or had ended before, keep their old point."""
        self.done = self.done | ~(loss <= self.bound)
        if not self.done.any():
            return new, loss
        keep = xp.asarray_like(self.done, self.problem.like()).real != 0
        where = xp.namespace(keep).where
        parts = zip(old.point.arrays(), new.point.arrays(), new.point.ndims, strict=True)
        point = type(new.point)(*[where(xp.expand(keep, k), a, b) for a, b, k in parts])
        residual = self.problem.residual(point)
        new = new._replace(point=point, residual=residual, loss=self.problem.loss(residual))
        return new, xp.to_numpy(new.loss)

    def _record(self, iteration: int, state: State, loss: Any, gradient: Any) -> None:
        history = self.history
        history["iteration"].append(iteration)
        history["seconds"].append(self.seconds)
        history["loss"].append(loss)
        history["gradient_norm"].append(gradient)
        if self.tracked:
            error = self.problem.error(state.point, state.residual)
            history.setdefault("error", []).append(xp.to_numpy(error))

    def result(self, state: State, status: Status, solver: Solver, form: Any) -> Result:
        point = state.point if type(state.point) is form else state.point.to(form)
        history = {key: np.asarray(values) for key, values in self.history.items()}
        converged = self.good if self.batched else status.success
        return Result(point, self.loss, int(history["iteration"][-1]), status, history, solver, converged)


def _check(problem: Any, start: Any, solver: Any, max_iter: Any, tol: Any) -> None:
    if not isinstance(problem, LeastSquares):
        raise TypeError(f"problem must be a problem such as lr.MatrixCompletion(...), got {type(problem).__name__}")
    if not isinstance(start, Factors):
        raise TypeError(
            f"start must be a point such as lr.inits.spectral(problem, lr.BurerMonteiro, rank), "
            f"got {type(start).__name__}"
        )
    if not isinstance(solver, Solver):
        raise TypeError(f"solver must be a solver such as lr.ScaledGD(), got {solver!r}")
    check_limits(max_iter, tol)
    if tuple(start.shape) != tuple(problem.shape):
        raise ValueError(f"start has shape {tuple(start.shape)}, but the problem has shape {tuple(problem.shape)}")
    xp.namespace(problem.like(), *start.arrays())
    for name, array in zip(start.names, start.arrays(), strict=True):
        if not bool(xp.namespace(array).isfinite(array).all()):
            raise ValueError(f"start.{name} holds NaN or infinite values")


def _progress_bar(total: int, solver: Any, show: bool) -> Callable[[Any, Any], None]:
    """A function that advances, or closes, the bar."""
    if not show:
        return lambda iteration, loss: None
    from tqdm.auto import tqdm

    bar = tqdm(total=total, desc=solver.name, unit="it")

    def update(iteration: Any, loss: Any) -> None:
        if iteration is None:
            bar.close()
            return
        bar.update(1)
        bar.set_postfix(loss=f"{float(np.max(loss)):.2e}", refresh=False)

    return update
