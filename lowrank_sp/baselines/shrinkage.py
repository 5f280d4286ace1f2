"""Nuclear-norm methods that shrink singular values: Soft-Impute, accelerated proximal gradient, SVT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..coverage import covers
from ..descent import Solver, State
from ..parameterizations import SVD
from ..problems import MatrixCompletion
from .common import SPARE, Sum, begin, combine, frobenius, leading, overlap, shrink, spectral_norm

__all__ = ["APG", "SVT", "ProximalGradient", "SingularValueThresholding", "SoftImpute"]


@dataclass(frozen=True)
class ProximalGradient(Solver):
    """``W <- D_(t penalty)(Z - t grad f(Z))``, D shrinking singular values, for ``f(W) + penalty ||W||_*``.

    The matrix in the brackets is a gradient plus thin products and is never formed: one block power iteration,
    warm-started with the last singular vectors, gives its leading triplets. The step t is 1 for completion and
    factorization; elsewhere it starts at 1 and is halved until the quadratic bound holds.

    Parameters
    ----------
    first, last : float
        The penalty falls from ``first`` to ``last``, relative to the largest singular value of ``A^* y``, at
        which the solution is zero.
    decay, every : float, int
        By this factor whenever so many iterations are done.
    rank : int, optional
        Most singular values kept; by default as many as the start has.
    accelerated : bool
        Z is W moved on by Nesterov's momentum, restarted where the step turns against it; else Z is W.
    """

    first: float
    last: float
    decay: float
    every: int
    rank: int | None = None
    accelerated: bool = True
    name: str = "APG"
    form: ClassVar[type] = SVD

    def __post_init__(self):
        if not 0 <= self.last <= self.first:
            raise ValueError(f"the penalty must fall from first to last, at least 0, got {self.first} and {self.last}")
        if not (0 < self.decay <= 1 and self.every >= 1):
            raise ValueError(f"decay must lie in (0, 1] and every be at least 1, got {self.decay} and {self.every}")

    def start(self, problem, point):
        point = begin(problem, point, self.name)
        residual = problem.residual(point)
        unit = spectral_norm(problem.backproject(problem.data), problem.like(), problem.shape[1])
        rank = point.rank if self.rank is None else self.rank
        return State(point, residual, problem.loss(residual), None, (point, residual, 1.0, 1.0, 0, (unit, rank)))

    def step(self, problem, state):
        point, residual = state.point, state.residual
        old, old_residual, theta, size, count, (unit, rank) = state.memory
        penalty = unit * max(self.last, self.first * self.decay ** (count // self.every))
        following = (1 + (1 + 4 * theta**2) ** 0.5) / 2 if self.accelerated else 1.0
        beta = (theta - 1) / following
        ahead = combine((1 + beta, point), (-beta, old)) if beta else point
        ahead_residual = residual + beta * (residual - old_residual) if beta else residual
        width = min(rank, int((point.values > 0).sum()) + SPARE)
        gradient = problem.backproject(ahead_residual)
        while True:
            wide = leading(Sum((1.0, _thin(ahead)), (-size, gradient)), point.right, width, seed=count)
            new = shrink(wide, size * penalty)
            new_residual = problem.residual(new)
            if problem.nonexpansive or _bounded(problem, new, ahead, new_residual - ahead_residual, size):
                break
            size = size / 2
        move = combine((1.0, new), (-1.0, point))
        if beta and overlap(combine((1.0, ahead), (-1.0, new)), move) > 0:
            following = 1.0
        memory = (point, residual, following, size, count + 1, (unit, rank))
        return State(new, new_residual, problem.loss(new_residual), frobenius(move) / size, memory)


def _thin(point: Any) -> Any:
    """A point as something that multiplies thin matrices."""
    return combine((1.0, point))


def _bounded(problem: Any, new: Any, ahead: Any, change: Any, size: float) -> bool:
    """Whether the quadratic bound with curvature ``1 / size`` holds along the move."""
    square = frobenius(combine((1.0, new), (-1.0, ahead))) ** 2
    return size < 1e-12 or float(problem.inner(change, change)) * size <= square * (1 + 1e-6)


@covers("O19", "S04")
def SoftImpute(
    penalty: float = 1e-3, rank: int | None = None, first: float = 0.5, decay: float = 0.8, every: int = 10
) -> ProximalGradient:
    """Fill in the unknown entries, shrink the singular values, repeat: proximal gradient of step one.

    Parameters
    ----------
    penalty : float
        The last one, relative to the norm of the zero-filled data; the solution is biased towards zero by it.
    rank : int, optional
        Most singular values kept, as in the published software; by default as many as the start has.
    first, decay, every : float, float, int
        The path of penalties, see `ProximalGradient`.

    Notes
    -----
    With few samples its rate is about one less the share observed: reported as a baseline.
    Source: :cite:`mazumder2010softimpute`.
    """
    return ProximalGradient(max(first, penalty), penalty, decay, every, rank, False, "SoftImpute")


@covers("O19", "S04")
def APG(
    penalty: float = 1e-9, rank: int | None = None, first: float = 0.15, decay: float = 0.7, every: int = 10
) -> ProximalGradient:
    """Accelerated proximal gradient for the nuclear norm, with continuation in the penalty and restarts.

    Parameters
    ----------
    penalty, rank, first, decay, every
        As for `SoftImpute`. The cap on the rank is decisive: at the true rank this is far faster than without.

    Notes
    -----
    Source: :cite:`toh2010apg`.
    """
    return ProximalGradient(max(first, penalty), penalty, decay, every, rank, True, "APG")


@dataclass(frozen=True)
class SingularValueThresholding(Solver):
    """``W = D_tau(A^* z)``, ``z <- z + step (y - A(W))``: Uzawa's iteration in the measurements.

    Parameters
    ----------
    threshold : float
        tau, relative to the largest singular value of ``A^* y / p`` with p the share observed.
    step : float, optional
        By default 1.2 / p for completion, 1.2 elsewhere.
    rank : int, optional
        Most singular values computed; min(m, n) by default.
    """

    threshold: float
    step_size: float | None = None
    rank: int | None = None
    name: str = "SVT"
    form: ClassVar[type] = SVD

    def __post_init__(self):
        if not self.threshold > 0:
            raise ValueError(f"threshold must be positive, got {self.threshold}")
        if self.step_size is not None and not self.step_size > 0:
            raise ValueError(f"step_size must be positive, got {self.step_size}")

    def start(self, problem, point):
        point = begin(problem, point, self.name)
        residual = problem.residual(point)
        share = problem.observed if isinstance(problem, MatrixCompletion) else 1.0
        size = 1.2 / share if self.step_size is None else self.step_size
        unit = spectral_norm(problem.backproject(problem.data), problem.like(), problem.shape[1])
        tau = self.threshold * unit / share
        first = -(-tau // (size * unit)) * size  # steps until the first singular value passes the threshold
        return State(point, residual, problem.loss(residual), None, (first * problem.data, size, tau, 0))

    def step(self, problem, state):
        dual, size, tau, count = state.memory
        most = min(problem.shape) if self.rank is None else self.rank
        width = min(most, int((state.point.values > 0).sum()) + SPARE)
        new = shrink(leading(problem.backproject(dual), state.point.right, width, seed=count), tau)
        residual = problem.residual(new)
        norm = frobenius(combine((1.0, new), (-1.0, state.point)))
        return State(new, residual, problem.loss(residual), norm, (dual - size * residual, size, tau, count + 1))


@covers("O19", "S04")
def SVT(threshold: float = 5.0, step_size: float | None = None, rank: int | None = None) -> SingularValueThresholding:
    """Singular value thresholding: exact data are met in the limit, with a bias that falls with the threshold.

    The start gives the first singular vectors only.

    Parameters
    ----------
    threshold : float
        Relative to the largest singular value of ``A^* y / p`` with p the share observed.
    step_size : float, optional
        ``1.2 / p`` by default for completion, 1.2 elsewhere.
    rank : int, optional
        Most singular values computed; ``min(m, n)`` by default.

    Notes
    -----
    Source: :cite:`cai2010svt`.
    """
    return SingularValueThresholding(threshold, step_size, rank)
