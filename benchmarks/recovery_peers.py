"""Peers that are traced while they run: pymanopt with NumPy and torch, and scikit-learn's imputer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pymanopt
from pymanopt.manifolds import FixedRankEmbedded
from pymanopt.optimizers import ConjugateGradient

import lowrank_sp as lr

__all__ = ["Trace", "iterative_imputer", "pymanopt_numpy", "pymanopt_torch"]


class _Done(Exception):
    """Raised from the cost: pymanopt has no callback."""


class Trace:
    """Seconds, evaluations and the least error so far, on a clock that stands still while the error is computed."""

    def __init__(self, problem: Any, clock: Callable[[], float], least: float, seconds: float):
        self.problem, self.clock, self.least, self.limit = problem, clock, least, seconds
        self.begin, self.rows = clock(), []

    def record(self, point: Any) -> None:
        now = self.clock()
        error = float(self.problem.error(point))
        best = min(error, self.rows[-1][2]) if self.rows else error
        self.rows.append((now - self.begin, len(self.rows), best))
        self.begin += self.clock() - now
        if best < self.least or self.rows[-1][0] > self.limit:
            raise _Done


def _run(manifold: Any, cost: Any, start: Any, gradient: Any = None) -> None:
    solver = ConjugateGradient(
        max_iterations=10_000, max_time=3600, min_gradient_norm=1e-15, min_step_size=1e-16, verbosity=0
    )
    task = pymanopt.Problem(manifold, cost, euclidean_gradient=gradient)
    with contextlib.suppress(_Done):
        solver.run(task, initial_point=start)


def _start(problem: Any, rank: int, manifold: Any) -> Any:
    """Our own spectral start, in the coordinates of the peer."""
    x = lr.inits.spectral(problem, lr.SVD, rank)
    return manifold.random_point().__class__(x.left, x.values, x.right.T)


def pymanopt_numpy(problem: Any, rank: int, trace: Trace) -> None:
    """Fixed-rank embedded conjugate gradients with the sampled gradient written by hand; pymanopt's defaults."""
    manifold = FixedRankEmbedded(*problem.shape, rank)

    @pymanopt.function.numpy(manifold)
    def cost(u, s, vt):
        x = lr.BurerMonteiro(u * s, vt.T)
        value = problem.loss(problem.residual(x))
        trace.record(x)
        return value

    @pymanopt.function.numpy(manifold)
    def gradient(u, s, vt):
        g = problem.backproject(problem.residual(lr.BurerMonteiro(u * s, vt.T)))
        gv = g @ vt.T
        gu = (g.adjoint() if hasattr(g, "adjoint") else g.T) @ u
        return gv * s, np.einsum("ij,ij->j", u, gv), (gu * s).T

    _run(manifold, cost, _start(problem, rank, manifold), gradient)


def pymanopt_torch(problem: Any, rank: int, trace: Trace) -> None:
    """The same on the torch backend: only the sampled cost is written, gradients are automatic."""
    import torch

    manifold = FixedRankEmbedded(*problem.shape, rank)
    data = torch.as_tensor(problem.data)
    completion = isinstance(problem, lr.MatrixCompletion)
    if completion:
        rows, cols = (torch.as_tensor(a.astype(np.int64)) for a in (problem.pattern.rows, problem.pattern.cols))
    else:
        matrices = torch.as_tensor(problem.operator.rows)

    @pymanopt.function.pytorch(manifold)
    def cost(u, s, vt):
        image = ((u * s)[rows] * vt.T[cols]).sum(-1) if completion else matrices @ ((u * s) @ vt).reshape(-1)
        trace.record(lr.BurerMonteiro((u * s).detach().numpy(), vt.detach().numpy().T))
        return 0.5 * (image - data).square().sum()

    _run(manifold, cost, _start(problem, rank, manifold))


def iterative_imputer(problem: Any, rank: int, trace: Trace) -> None:
    """scikit-learn's `IterativeImputer` with its defaults: one Bayesian ridge regression per column and round."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer

    array = np.full(problem.shape, np.nan)
    array[problem.pattern.rows, problem.pattern.cols] = problem.values
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        filled = IterativeImputer(random_state=0).fit_transform(array)
    with contextlib.suppress(_Done):
        trace.record(lr.BurerMonteiro(filled, np.eye(problem.shape[1])))
