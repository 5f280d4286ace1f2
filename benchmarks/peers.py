"""Peers run on our problems: pymanopt's fixed-rank manifold with gradients that touch only what they must."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import numpy as np
import pymanopt
from common import common_start
from pymanopt.manifolds import FixedRankEmbedded
from pymanopt.optimizers import ConjugateGradient, SteepestDescent

import lowrank_sp as lr

__all__ = ["pymanopt_fixed_rank"]


class _Reached(Exception):
    """Raised from the cost when the error is small enough: pymanopt has no callback."""


def pymanopt_fixed_rank(problem: Any, rank: int, optimizer: str) -> tuple[float, int, float]:
    """Seconds, cost evaluations and final error until relative error 1e-8; at most 1000 iterations or 60 s.

    The error is computed after each evaluation and its time subtracted.
    """
    m, n = problem.shape
    manifold = FixedRankEmbedded(m, n, rank)
    state = {"evaluations": 0, "error": 1.0, "tracking": 0.0}
    tick = time.perf_counter()
    start = _start(problem, rank)

    def point(u, s, vt):
        return lr.BurerMonteiro(u * s, vt.T)

    @pymanopt.function.numpy(manifold)
    def cost(u, s, vt):
        x = point(u, s, vt)
        value = problem.loss(problem.residual(x))
        begin = time.perf_counter()
        state["evaluations"] += 1
        state["error"] = min(state["error"], float(problem.error(x)))
        state["tracking"] += time.perf_counter() - begin
        if state["error"] < 1e-8:
            raise _Reached
        return value

    @pymanopt.function.numpy(manifold)
    def gradient(u, s, vt):
        g = problem.backproject(problem.residual(point(u, s, vt)))
        gv = g @ vt.T
        gu = (g.adjoint() if hasattr(g, "adjoint") else g.T) @ u
        return gv * s, np.einsum("ij,ij->j", u, gv), (gu * s).T

    solver = {"ConjugateGradient": ConjugateGradient, "SteepestDescent": SteepestDescent}[optimizer](
        max_iterations=1000, max_time=60, min_gradient_norm=1e-14, min_step_size=1e-16, verbosity=0
    )
    task = pymanopt.Problem(manifold, cost, euclidean_gradient=gradient)
    with contextlib.suppress(_Reached):
        solver.run(task, initial_point=start)
    return time.perf_counter() - tick - state["tracking"], state["evaluations"], state["error"]


def _start(problem: Any, rank: int) -> Any:
    """Our own start, in the coordinates of the peer."""
    x = common_start(problem, lr.SVD, rank)
    kind = FixedRankEmbedded(*problem.shape, rank).random_point().__class__
    return kind(x.left, x.values, x.right.T)
