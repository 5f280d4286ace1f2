"""Soft-Impute, the nuclear-norm baseline: fill in the unknown entries, shrink the singular values, repeat."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

import lowrank_sp as lr
from lowrank_sp.baselines.common import Sum, combine, leading, shrink

__all__ = ["penalty_path", "soft_impute"]

SPARE = 5  # columns of the block beyond the values that survive


def penalty_path(problem: lr.MatrixCompletion, count: int, decay: float) -> np.ndarray:
    """Decreasing penalties ``s_1 decay^k``, k = 1..count, with s_1 the norm of the zero-filled data.

    At s_1 itself the solution is zero.
    """
    filled, v = problem.backproject(problem.data), np.ones((problem.shape[1], 1))
    for _ in range(30):
        v = filled.adjoint() @ (filled @ v)
        v = v / np.linalg.norm(v)
    return np.linalg.norm(filled @ v) * decay ** np.arange(1, count + 1)


def soft_impute(
    problem: lr.MatrixCompletion,
    penalties: Iterable[float],
    rank: int,
    sweeps: int = 100,
    tol: float = 2e-4,
    seed: int = 0,
) -> Iterator[tuple[int, lr.SVD]]:
    """Minimise ``1/2 ||P(W - M)||^2 + penalty ||W||_*`` along a path of penalties, with warm starts.

    One iteration is ``W <- S(P(M) + P'(W))``, the proximal gradient step of length one; S shrinks singular
    values by the penalty. The matrix in the brackets is sparse plus low rank and is never formed: one warm
    block power iteration gives its leading singular triplets. The block is a few columns wider than the
    number of values that survive, up to ``rank``, the cap that the published software has as well.

    Parameters
    ----------
    problem : MatrixCompletion
    penalties : iterable of float
        In decreasing order, in the units of the singular values of W.
    rank : int
        Most singular values kept.
    sweeps : int
        Most iterations at one penalty.
    tol : float
        A penalty is done when the singular values change by less, relative to their norm.
    seed : int
        Of the random start of the block.

    Yields
    ------
    (int, SVD)
        The index of the penalty, and the iterate after each iteration.

    Notes
    -----
    Source: algorithm 1 of :cite:`mazumder2010softimpute`.
    """
    rng, (m, n) = np.random.default_rng(seed), problem.shape
    point = lr.SVD(np.zeros((m, 0)), np.zeros(0), np.zeros((n, 0)))
    for index, penalty in enumerate(penalties):
        for _ in range(sweeps):
            wide = _widened(point, min(rank, int((point.values > 0).sum()) + SPARE), rng)
            point = _shrunk(problem, wide, penalty)
            yield index, point
            if np.linalg.norm(point.values - wide.values) <= tol * np.linalg.norm(point.values):
                break


def _widened(point: lr.SVD, width: int, rng: np.random.Generator) -> lr.SVD:
    """At least ``width`` singular triplets: new ones are random directions with value zero."""
    u, s, v = point.arrays()
    more = max(0, width - len(s))
    if more:
        new = rng.standard_normal((len(v), more))
        v = np.hstack((v, np.linalg.qr(new - v @ (v.T @ new))[0]))
    return lr.SVD(np.pad(u, ((0, 0), (0, more))), np.pad(s, (0, more)), v)


def _shrunk(problem: lr.MatrixCompletion, point: lr.SVD, penalty: float) -> lr.SVD:
    """Leading singular triplets of ``W - P(W - M)``, with shrunk values."""
    filled = Sum((1.0, combine((1.0, point))), (-1.0, problem.backproject(problem.residual(point))))
    return shrink(leading(filled, point.right, point.rank), penalty)
